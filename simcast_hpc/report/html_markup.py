"""HTML elements from text, tables and images. All text is escaped here; callers pass plain strings.

Images are embedded as data URIs, so that a report is a single file.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline

from .colors import LineStyle, Steps
from .lead_time_curves import Chart
from .score_tables import Group, Row, Table

_CODE = re.compile(r"`([^`]+)`")
_DASHES = {"-": "", "--": "7 4", "-.": "8 3 2 3", ":": "2 3"}


def text(tag: str, content: str, *, identifier: str = "", kind: str = "") -> str:
    """Return an element with escaped text; words in backticks become ``<code>`` elements, except in a title."""
    where = f' id="{escape(identifier)}"' if identifier else ""
    what = f' class="{escape(kind)}"' if kind else ""
    inner = escape(content) if tag in ("title", "code") else _inline(content)
    return f"<{tag}{where}{what}>{inner}</{tag}>"


def _inline(content: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(content))


def bullets(items: Sequence[str]) -> str:
    """Return an unordered list of escaped sentences."""
    return "<ul>\n" + "\n".join(text("li", item) for item in items) + "\n</ul>"


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a definition list of (term, meaning)."""
    return "<dl>\n" + "\n".join(text("dt", term) + text("dd", meaning) for term, meaning in pairs) + "\n</dl>"


def links(pairs: Sequence[tuple[str, str]], *, label: str) -> str:
    """Return a navigation list of (identifier in the document, title)."""
    items = "\n".join(f'<li><a href="#{escape(identifier)}">{escape(title)}</a></li>' for identifier, title in pairs)
    return f'<nav aria-label="{escape(label)}">\n<ul>\n{items}\n</ul>\n</nav>'


def collapsible(summary: str, content: str, *, is_open: bool = False) -> str:
    """Return a collapsible section, which requires no script."""
    return f"<details{' open' if is_open else ''}>\n{text('summary', summary)}\n{content}\n</details>"


def image(data: bytes, *, alt: str, size: tuple[int, int] | None = None, kind: str = "") -> str:
    """Return an image element of a PNG or GIF; ``size``, width and height, prevents layout shifts while decoding."""
    measures = f' width="{size[0]}" height="{size[1]}"' if size else ""
    what = f' class="{escape(kind)}"' if kind else ""
    return f'<img src="{data_uri(data)}" alt="{escape(alt)}"{measures}{what}>'


def data_uri(data: bytes) -> str:
    """Return a PNG or GIF as a data URI."""
    kind = "gif" if data.startswith(b"GIF") else "png"
    return f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"


def animated_figure(data: bytes, *, alt: str) -> str:
    """Return a figure of a GIF that loads only when it is displayed."""
    return f'<figure class="moving"><img src="{data_uri(data)}" alt="{escape(alt)}" loading="lazy"></figure>'


def picture(data: bytes, *, alt: str, caption: str, wide: bool = False) -> str:
    """Return a figure with a caption; a wide one keeps its size and scrolls on a narrow screen."""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>\n{image(data, alt=alt)}\n{text('figcaption', caption)}\n</figure>"


def chart_grid(charts: Sequence[Chart], *, caption: str, legend: str = "") -> str:
    """Return a figure with charts in a grid that adapts to the width of the screen.

    Args:
        charts: the charts.
        caption: caption of the figure.
        legend: HTML from :func:`line_legend`.
    """
    cells = "\n".join(
        f'<div class="chart">{text("p", chart.title, kind="title")}\n{image(chart.png, alt=chart.alt)}</div>'
        for chart in charts
    )
    below = text("figcaption", caption)
    kind = "grid even" if len(charts) in (2, 4) else "grid"
    return f'<figure class="charts">\n{legend}\n<div class="{kind}">\n{cells}\n</div>\n{below}\n</figure>'


def line_legend(styles: Mapping[str, LineStyle]) -> str:
    """Return a legend with a line sample for each name."""
    items = "\n".join(f"<li>{_line(style)}{escape(name)}</li>" for name, style in styles.items())
    return f'<ul class="legend">\n{items}\n</ul>'


def color_legend(steps: Steps, *, title: str, unit: str) -> str:
    """Return a legend of a color scale: a patch and the lower level of each step, and a patch for missing pixels."""
    labels = [f"below {steps.labels[0]}", *(f"≥ {label}" for label in steps.labels)]
    items = [
        f'<li><span class="patch" style="background:{color}"></span>{escape(name)}</li>'
        for color, name in zip(steps.colors, labels, strict=True)
    ]
    items.append('<li><span class="patch missing"></span>missing</li>')
    heading = f"{title}, {unit}" if unit else title
    return (
        f'<div class="scale">{text("span", heading, kind="title")}\n<ul class="legend">\n{"".join(items)}\n</ul></div>'
    )


def _line(style: LineStyle) -> str:
    dashes = f' stroke-dasharray="{_DASHES[style.dashes]}"' if _DASHES[style.dashes] else ""
    stroke = f'stroke="{style.color}" stroke-width="2.4"'
    marker = f'<path d="{_outline(style.marker)}" fill="{style.color}"/>' if style.marker else ""
    return (
        f'<svg width="44" height="14" viewBox="-22 -7 44 14" aria-hidden="true"><path d="M-21 0H21" fill="none" '
        f"{stroke}{dashes}/>{marker}</svg>"
    )


def _outline(marker: str) -> str:
    shape = MarkerStyle(marker)
    letters = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    parts = []
    for points, code in shape.get_path().transformed(shape.get_transform()).iter_segments():
        numbers = " ".join(f"{(-1) ** k * 9 * value:.1f}" for k, value in enumerate(points))
        parts.append("Z" if code == Outline.CLOSEPOLY else letters[code] + numbers)
    return "".join(parts)


def table(content: Table) -> str:
    """Return a table with caption and scoped headings, in a container that scrolls on a narrow screen."""
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
    value, bracket, bounds = ("", "", "") if words else cell.partition(" [")
    content = f"{escape(value)} <small>[{escape(bounds)}</small>" if bracket else escape(cell)
    content = f"<strong>{content}</strong>" if best else content
    return f'<td class="words">{_inline(cell)}</td>' if words else f"<td>{content}</td>"
