"""Fill tables of performance and baselines from the CSV files, or compare these with another commit's.

    python -m benchmarks.tabulate              # rewrites the tables
    python -m benchmarks.tabulate --check      # fails if a table is out of date
    python -m benchmarks.tabulate --base REV   # prints the numbers that changed by over 2 % since REV

A table is between ``<!-- table FILE OPTION=VALUE ... -->`` and ``<!-- end -->``, FILE below ``benchmarks/``. Options:

- ``columns=a>Heading,b/1e6>Other_heading`` chooses columns, with an optional divisor and heading (``_`` is a space).
- ``where=name:value,...`` chooses rows (``name:`` those with an empty cell).
- ``ratio=name:value:a,b`` compares each row with its baseline: the row whose column ``name`` is ``value`` and whose
  other text columns are equal. It adds ``ref.c``, the baseline's value of every numeric column c, and for the columns
  a and b the ratios ``x.a`` and ``x.b``, baseline divided by row. ``keep=name:value`` chooses rows afterwards.
- ``group=a,b`` joins rows, with the largest number of each column.
- ``shares=column:name`` transposes a column of ``key:number`` pairs: a row per key, a column per value of ``name``.

Columns in which all rows agree, and the provenance, follow the table in a collapsed block. ``<!-- list FILE title=a
columns=b>Heading,... -->`` writes long texts as a list instead.
"""

import argparse
import csv
import io
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(
    ROOT / "docs" / page
    for page in (
        "results/performance.md",
        "results/performance-tables.md",
        "results/kernel-estimates.md",
        "reference/baselines.md",
    )
)
TABLE = re.compile(r"(<!-- (table|list) (\S+)((?: [^\n]+?)?) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
CHANGED = 0.02
PROVENANCE = ("commit", "public_commit", "load")
"""Columns whose values are listed below a table even if they differ between rows."""
UNLISTED = ("turn",)
HEADINGS = {
    "rows": "measurements per row",
    "public_commit": "commit of the reference",
    "torch": "PyTorch",
    "python": "Python",
}
_LONG_INTEGER = 5
Row = dict[str, str]


class Column(NamedTuple):
    """A column to show: its name in the CSV, its heading, and the divisor of its numbers."""

    name: str
    heading: str
    divisor: float = 1.0

    def cell(self, row: Row) -> str:
        """Return the cell of a row."""
        text = row[self.name]
        if self.name.startswith("x."):
            return text  # a ratio, rounded already
        return _shown(f"{float(text) / self.divisor!r}" if text and self.divisor != 1 else text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite, check or compare the tables; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if a table is out of date")
    parser.add_argument("--base", metavar="REV", help="compare the CSV files with those of this commit")
    options = parser.parse_args(arguments)
    if options.base:
        print("\n".join(changes(options.base)) or f"no number changed by over {CHANGED:.0%} since {options.base}")
        return 0
    outdated = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            outdated.append(page)
            if not options.check:
                page.write_text(filled, encoding="utf-8")
    if options.check:
        print("\n".join(f"{page.name} is out of date: make performance" for page in outdated) or "up to date")
        return int(bool(outdated))
    return 0


def fill(text: str) -> str:
    """Return Markdown with every marked table filled from its CSV file."""

    def replace(found: re.Match[str]) -> str:
        start, kind, name, words, end = found.groups()
        rows = read((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))
        options = dict(option.split("=", 1) for option in words.split(" ") if option)
        if kind == "list":
            return f"{start}{listing(rows, **options)}\n\n{end}"
        lines, conditions = rows_of_table(rows, **options)
        block = f"\n<details><summary>Conditions</summary>{conditions}.</details>\n" if conditions else ""
        return f"{start}{lines}\n{block}\n{end}"

    return TABLE.sub(replace, text)


def read(text: str) -> list[Row]:
    """Return the rows of a CSV, all values as text."""
    return list(csv.DictReader(io.StringIO(text)))


def table(rows: list[Row], **options: str) -> str:
    """Return rows as a Markdown table, then the columns in which they agree; see the module for the options."""
    lines, conditions = rows_of_table(rows, **options)
    return f"{lines}\n\nAll rows: {conditions}.\n" if conditions else f"{lines}\n"


def rows_of_table(
    rows: list[Row],
    columns: str = "",
    where: str = "",
    ratio: str = "",
    keep: str = "",
    group: str = "",
    shares: str = "",
) -> tuple[str, str]:
    """Return a Markdown table, and the conditions of its rows; see the module for the options.

    Raises:
        ValueError: no row has the values of ``where``.
    """
    # 1. Rows
    rows = _selected(rows, where)
    if ratio:
        rows = rows_with_ratios(rows, *ratio.replace("&nbsp;", " ").split(":"))
    rows = _selected(rows, keep)
    if shares:
        return _shares_table(rows, *shares.split(":")), _conditions(rows, [])
    if group:
        rows = _grouped(rows, group.split(","))
    # 2. Columns
    chosen = [_column(text) for text in _split(columns)] if columns else [Column(name, name) for name in rows[0]]
    if not any(column.name.startswith(("x.", "ref.")) for column in chosen):
        chosen += [Column(name, name) for name in rows[0] if name.startswith("x.")]
    varying = [column for column in chosen if len(rows) == 1 or len({row[column.name] for row in rows}) > 1]
    # 3. Text
    head = [[column.heading for column in varying], ["---"] * len(varying)]
    lines = head + [[column.cell(row) for column in varying] for row in rows]
    return _lines(lines), _conditions(rows, [column.name for column in varying])


def _lines(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _split(columns: str) -> list[str]:
    """Split at commas, except those within headings, which a space (``_``) follows."""
    return re.split(r",(?!_)", columns)


def _column(text: str) -> Column:
    """Parse ``name/divisor>heading``."""
    source, _, heading = text.partition(">")
    name, _, divisor = source.partition("/")
    return Column(name, heading.replace("_", " ") or name, float(divisor or 1))


def _selected(rows: list[Row], conditions: str) -> list[Row]:
    for condition in filter(None, conditions.replace("&nbsp;", " ").split(",")):
        name, value = condition.split(":")
        rows = [row for row in rows if row[name] == value]
    if not rows:
        raise ValueError(f"no row has {conditions}")
    return rows


def _conditions(rows: list[Row], shown: Sequence[str]) -> str:
    """Return the columns in which all rows agree, and the provenance, as text."""
    parts = []
    for name in rows[0]:
        values = list(dict.fromkeys(_shown(row[name]) for row in rows if row[name]))
        hidden = name in shown or name in UNLISTED or name.startswith(("x.", "ref."))
        if not hidden and values and (len(values) == 1 or name in PROVENANCE):
            parts.append(f"{HEADINGS.get(name, name)} {', '.join(values)}")
    return "; ".join(parts)


def _shares_table(rows: list[Row], name: str, by: str) -> str:
    """Return ``key:number`` pairs as a table with a row per key; rows without pairs are skipped."""
    pairs = {row[by]: dict(pair.split(":") for pair in row[name].split()) for row in rows if row[name]}
    keys = dict.fromkeys(key for found in pairs.values() for key in found)
    lines = [["", *pairs], ["---"] * (1 + len(pairs))]
    return _lines(lines + [[key, *(_shown(found.get(key, "")) for found in pairs.values())] for key in keys])


def listing(rows: list[Row], title: str, columns: str) -> str:
    """Return rows as a list: the title in bold, and below it a line per column that is not empty."""
    chosen = [_column(text) for text in _split(columns)]
    lines = []
    for row in rows:
        lines.append(_wrapped(f"- **{row[title]}**", "  "))
        lines += [
            _wrapped(f"    - {column.heading}: {_item(row, column)}", "      ")
            for column in chosen
            if row[column.name] not in ("", "-")
        ]
    return "\n".join(lines)


def _item(row: Row, column: Column) -> str:
    """Return a text of a list; a command is a code span."""
    return f"`{row[column.name]}`" if column.name == "command" else row[column.name]


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def rows_with_ratios(rows: list[Row], name: str, value: str, columns: str) -> list[Row]:
    """Return rows with the columns ``ref.*`` and ``x.*`` of option ``ratio`` (see the module)."""
    numbers = [column for column in rows[0] if _is_number(rows, column)]
    texts = [column for column in rows[0] if column not in (name, *numbers, *PROVENANCE)]
    base = {tuple(row[text] for text in texts): row for row in rows if row[name] == value}
    result = []
    for row in rows:
        other = base.get(tuple(row[text] for text in texts), {})
        ratios = {
            f"x.{column}": f"{float(other[column]) / float(row[column]):.2f}"
            if other.get(column) and row[column]
            else "-"
            for column in columns.split(",")
        }
        result.append(row | {f"ref.{column}": other.get(column, "") for column in numbers} | ratios)
    return result


def _grouped(rows: list[Row], names: list[str]) -> list[Row]:
    """Join rows with equal ``names``: the largest number of each column, and the provenance of all rows."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    numbers = [name for name in rows[0] if name not in names and _is_number(rows, name)]
    joined = []
    for key, found in sorted(groups.items(), key=lambda group: [_sort_key(text) for text in group[0]]):
        largest = {name: max((row[name] for row in found if row[name]), key=float, default="") for name in numbers}
        texts = {
            name: ", ".join(dict.fromkeys(row[name] for row in found))
            for name in rows[0]
            if name not in names and name not in numbers
        }
        joined.append(dict(zip(names, key, strict=True)) | {"rows": str(len(found))} | largest | texts)
    return joined


def _sort_key(text: str) -> tuple[bool, float, str]:
    """Sort numbers by value and before texts; an empty cell is first."""
    try:
        return (False, float(text or "-inf"), "")
    except ValueError:
        return (True, 0.0, text)


def _is_number(rows: list[Row], name: str) -> bool:
    if name in PROVENANCE:
        return False  # a commit such as 4e13725 reads as a number
    try:
        return bool([float(row[name]) for row in rows if row[name]])
    except ValueError:
        return False


def _shown(text: str) -> str:
    """Return a cell: numbers with three significant digits, long integers with commas, an empty cell as a dash."""
    if re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?", text):
        value = float(text)
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if text.isdecimal() and len(text) >= _LONG_INTEGER:
        return f"{int(text):,}"
    return text.replace("|", "\\|") or "-"


def changes(revision: str) -> list[str]:
    """Return a line per number that differs by over 2 % from another commit's.

    Raises:
        SystemExit: there is no such commit.
    """
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "rev-parse", "-q", "--verify", f"{revision}^{{commit}}"], capture_output=True).returncode:
        raise SystemExit(f"--base {revision} is not a commit of this repository")
    lines = []
    for path in sorted((ROOT / "benchmarks").rglob("*.csv")):
        name = path.relative_to(ROOT).as_posix()
        old = subprocess.run([*git, "show", f"{revision}:{name}"], capture_output=True, text=True, check=False)
        lines += [f"{name}: {line}" for line in compare(read(old.stdout), read(path.read_text(encoding="utf-8")))]
    return lines


def compare(before: list[Row], after: list[Row]) -> list[str]:
    """Return what differs between two versions of a table; a row is identified by its text columns and integers."""
    if not after:
        return []
    measured = [name for name in after[0] if any("." in row[name] for row in after) and _is_number(after, name)]
    keys = [name for name in after[0] if name not in measured and name not in ("commit", "torch", "python", "load")]
    old = {tuple(row.get(name, "") for name in keys): row for row in before}
    lines = []
    for row in after:
        key = tuple(row[name] for name in keys)
        if key not in old:
            lines.append(f"{' '.join(key)}: new")
            continue
        for name in measured:
            was, now = old[key].get(name), row[name]
            if was and now and name != "load" and abs(float(now) - float(was)) > CHANGED * abs(float(was)):
                lines.append(f"{' '.join(key)}: {name} {_shown(was)} -> {_shown(now)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
