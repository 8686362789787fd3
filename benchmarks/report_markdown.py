"""Rows of a CSV as Markdown: tables, numbers, ratios, and the line that says what made them."""

import csv
import io
from collections.abc import Mapping, Sequence

Row = Mapping[str, str]
Rows = list[dict[str, str]]


def read(text: str) -> Rows:
    """Return the rows of a CSV, all values as text."""
    return list(csv.DictReader(io.StringIO(text)))


def number(text: str) -> str:
    """Return a number of a table with three digits that count, ``-`` for none."""
    if not text:
        return "-"
    value = float(text)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def milliseconds(text: str) -> str:
    """Return seconds as milliseconds."""
    return number(str(1e3 * float(text))) if text else "-"


def times(over: Row | None, under: Row | None, name: str) -> str:
    """Return one row's number over another's; ``-`` where one of them is not there."""
    if not over or not under or not over.get(name) or not under.get(name):
        return "-"
    return f"{float(over[name]) / float(under[name]):.2f}x"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def same(one: Row, other: Row, names: Sequence[str]) -> bool:
    """Say whether two rows have equal values under these names."""
    return all(one[name] == other[name] for name in names)


def first(rows: Sequence[Row], **wanted: str) -> Row | None:
    """Return the first row with these values, None where there is none."""
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def made(commands: str | Sequence[str], rows: Sequence[Row]) -> str:
    """Return the line with what was called, each once, and on what machines."""
    called = [commands] if isinstance(commands, str) else list(dict.fromkeys(commands))
    machines = sorted({f"{row['device']}, Python {row['python']}, torch {row['torch']}" for row in rows})
    return f"Command: {'; '.join(f'`{one}`' for one in called)}. Machine: {'; '.join(machines)}."
