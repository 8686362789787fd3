"""Fill the tables of ``docs/results/performance.md`` from the CSV files, or compare these with another commit's.

    python -m benchmarks.tabulate              # rewrites the tables
    python -m benchmarks.tabulate --check      # fails if a table is out of date
    python -m benchmarks.tabulate --base REV   # prints the numbers that changed by over 2 % since REV

A table is between ``<!-- table FILE OPTION=VALUE ... -->`` and ``<!-- end -->``, FILE below ``benchmarks/``. Options:
``columns=a,b`` chooses columns, ``where=name:value`` rows; ``ratio=name:value:a,b`` adds, for the columns a and b, the
number of the row whose column ``name`` is ``value`` (other text columns equal) divided by this row's; ``group=a,b``
joins rows, with the largest number of each column. Columns in which all rows agree follow the table as a line.
"""

import argparse
import csv
import io
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "performance.md"
TABLE = re.compile(r"(<!-- table (\S+)((?: [^\n]+?)?) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
CHANGED = 0.02
Row = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite, check or compare the tables; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if a table is out of date")
    parser.add_argument("--base", metavar="REV", help="compare the CSV files with those of this commit")
    options = parser.parse_args(arguments)
    if options.base:
        print("\n".join(changes(options.base)) or f"no number changed by over {CHANGED:.0%} since {options.base}")
        return 0
    text = PAGE.read_text(encoding="utf-8")
    filled = fill(text)
    if options.check:
        print("docs/results/performance.md is out of date: make performance" if filled != text else "up to date")
        return int(filled != text)
    PAGE.write_text(filled, encoding="utf-8")
    return 0


def fill(text: str) -> str:
    """Return Markdown with every marked table filled from its CSV file."""

    def replace(found: re.Match[str]) -> str:
        rows = read((ROOT / "benchmarks" / found[2]).read_text(encoding="utf-8"))
        options = dict(option.split("=", 1) for option in found[3].split(" ") if option)
        return f"{found[1]}{table(rows, **options)}\n{found[4]}"

    return TABLE.sub(replace, text)


def read(text: str) -> list[Row]:
    """Return the rows of a CSV, all values as text."""
    return list(csv.DictReader(io.StringIO(text)))


def table(rows: list[Row], columns: str = "", where: str = "", ratio: str = "", group: str = "") -> str:
    """Return rows as a Markdown table, then the columns in which they agree; see the module for the options."""
    for condition in filter(None, where.split(",")):
        name, value = condition.split(":")
        rows = [row for row in rows if row[name] == value]
    if not rows:
        raise ValueError(f"no row has {where}")
    if ratio:
        rows = _with_ratios(rows, *ratio.replace("&nbsp;", " ").split(":"))
    if group:
        rows = _grouped(rows, group.split(","))
    names = columns.split(",") if columns else list(rows[0])
    names += [name for name in rows[0] if name.startswith("x ") and name not in names]
    varying = [name for name in names if len({row[name] for row in rows}) > 1 or len(rows) == 1]
    lines = [varying, ["---"] * len(varying), *([_shown(row[name]) for name in varying] for row in rows)]
    agreed = [
        f"{name} {rows[0][name]}" for name in rows[0] if name not in varying and len({r[name] for r in rows}) == 1
    ]
    table_ = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return table_ + (f"\n\n*All rows: {'; '.join(agreed)}.*\n" if agreed else "\n")


def _with_ratios(rows: list[Row], name: str, value: str, columns: str) -> list[Row]:
    texts = [column for column in rows[0] if column != name and not _is_number(rows, column) and "commit" not in column]
    base = {tuple(row[text] for text in texts): row for row in rows if row[name] == value}
    result = []
    for row in rows:
        other = base.get(tuple(row[text] for text in texts), {})
        ratios = {
            f"x {column}": f"{float(other[column]) / float(row[column]):.2f}"
            if other.get(column) and row[column]
            else "-"
            for column in columns.split(",")
        }
        result.append(row | ratios)
    return result


def _grouped(rows: list[Row], names: list[str]) -> list[Row]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    numbers = [name for name in rows[0] if name not in names and _is_number(rows, name)]
    return [
        dict(zip(names, key, strict=True))
        | {"rows": str(len(found))}
        | {name: f"{max(float(row[name] or 0) for row in found):g}" for name in numbers}
        for key, found in sorted(groups.items())
    ]


def _is_number(rows: list[Row], name: str) -> bool:
    try:
        return bool([float(row[name]) for row in rows if row[name]])
    except ValueError:
        return False


def _shown(text: str) -> str:
    """Return a cell: numbers with three significant digits, an empty cell as a dash."""
    if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", text):
        value = float(text)
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
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
