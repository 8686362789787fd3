"""HTML out of text and tables. Every text is escaped here; callers pass plain strings and join what comes back."""

from html import escape
from urllib.parse import quote

from .tables import Group, Row, Table


def text(tag: str, content: str, *, identifier: str = "") -> str:
    """Return an element with escaped text."""
    where = f' id="{escape(identifier)}"' if identifier else ""
    return f"<{tag}{where}>{escape(content)}</{tag}>"


def bullets(items: list[str]) -> str:
    """Return an unordered list of escaped sentences."""
    return "<ul>\n" + "\n".join(text("li", item) for item in items) + "\n</ul>"


def definitions(pairs: list[tuple[str, str]]) -> str:
    """Return a list of terms and what they mean."""
    return "<dl>\n" + "\n".join(text("dt", term) + text("dd", meaning) for term, meaning in pairs) + "\n</dl>"


def links(pairs: list[tuple[str, str]], *, label: str) -> str:
    """Return a navigation list of (identifier on this page, title)."""
    items = "\n".join(f'<li><a href="#{escape(identifier)}">{escape(title)}</a></li>' for identifier, title in pairs)
    return f'<nav aria-label="{escape(label)}">\n<ul>\n{items}\n</ul>\n</nav>'


def picture(file_name: str, *, alt: str, caption: str, wide: bool = False) -> str:
    """Return a figure whose picture opens at full size; a wide one keeps its size and scrolls on a narrow screen."""
    source = escape(quote(file_name))
    image = f'<a href="{source}"><img src="{source}" alt="{escape(alt)}"></a>'
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>\n{image}\n{text('figcaption', caption)}\n</figure>"


def table(content: Table) -> str:
    """Return a table with caption and scoped headings, in a frame that scrolls on a narrow screen."""
    heads = "".join(_head(column, words=k <= content.text_cells) for k, column in enumerate(content.columns))
    body = "\n".join(_group(group, content) for group in content.groups)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(content.caption)}">\n'
        f"<table>\n{text('caption', content.caption)}\n<thead><tr>{heads}</tr></thead>\n{body}\n"
        "</table>\n</div>"
    )


def _head(column: str, *, words: bool) -> str:
    kind = ' class="words"' if words else ""
    return f'<th scope="col"{kind}>{escape(column)}</th>'


def _group(group: Group, content: Table) -> str:
    rows = [_row(row, text_cells=content.text_cells) for row in group.rows]
    if group.heading:
        heading = f'<th scope="rowgroup" colspan="{len(content.columns)}">{escape(group.heading)}</th>'
        rows.insert(0, f'<tr class="group">{heading}</tr>')
    return "<tbody>\n" + "\n".join(rows) + "\n</tbody>"


def _row(row: Row, *, text_cells: int) -> str:
    cells = "".join(_cell(cell, best=k in row.best, words=k < text_cells) for k, cell in enumerate(row.cells))
    return f'<tr><th scope="row">{escape(row.heading)}</th>{cells}</tr>'


def _cell(cell: str, *, best: bool, words: bool) -> str:
    content = f"<strong>{escape(cell)}</strong>" if best else escape(cell)
    return f'<td class="words">{content}</td>' if words else f"<td>{content}</td>"
