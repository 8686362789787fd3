"""Draw ``docs/performance.md`` from the results in the repository, or compare those with another commit's.

    python -m benchmarks.report                # writes the page and its figures
    python -m benchmarks.report --base REV     # prints what changed since REV, writes nothing

Measured tables lie in ``benchmarks/results/<machine>/``; what a benchmark writes by default, beside these folders, is
not committed: whoever measures on a machine worth keeping moves the files into a folder of its name. The compile table,
the ratios of ``bench_check``, the goals and the notes lie in ``benchmarks/`` itself. The page states nothing that is
not in these files.
"""

import argparse
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report_markdown import Rows, number, read, table
from benchmarks.report_parts import measured

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
# What names a row of a table, and the numbers of it that are compared with another commit's.
KEYS = {
    "peers": ("case", "provider", "part", "precision", "shape"),
    "end_to_end": ("case", "input", "precision", "shape"),
    "sampling": ("part", "way", "networks", "shape", "dtype"),
    "inference": ("case", "way", "precision", "shape"),
    "scoring": ("provider", "shape"),
    "data_reading": ("provider", "layout", "order", "cache", "events", "size"),
    "data_preparation": ("way", "layout", "codec", "ranks", "events", "size"),
    "data_opening": ("events",),
    "zero_stages": ("size", "precision", "ranks", "micro_batch", "zero_stage"),
    "scaling": (
        "kind", "model", "ranks", "zero_stage", "precision", "zero_hpz_partition_size", "accumulation", "megabits",
        "turn",
    ),
    "baseline": ("device", "pair", "quantity"),
    "compiled": ("op", "kernel", "case", "direction", "target", "options"),
}  # fmt: skip
NUMBERS = {
    "peers": ("cpu_p50_s", "p50_s", "peak_gb"),
    "end_to_end": ("cpu_p50_s", "p50_s", "peak_gb", "needs_gb", "training_gflop"),
    "sampling": ("p50_s",),
    "inference": ("p50_s",),
    "scoring": ("p50_s", "cpu_least_s"),
    "data_reading": ("windows_per_core_s", "windows_per_s"),
    "data_preparation": ("bare_ms", "ours_ms", "megabytes"),
    "data_opening": ("seconds", "mib"),
    "zero_stages": ("samples_per_s", "step_cpu_s_p50", "state_mib", "computed_state_mib", "peak_mib"),
    "scaling": ("seconds", "processor_seconds", "sent_bytes", "computed_bytes", "model_seconds"),
    "baseline": ("ratio",),
    "compiled": ("registers", "spill_bytes", "shared_bytes"),
}
CHANGED = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or print what changed since a commit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--base", metavar="REV", help="compare with the results of this commit")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    if options.base:
        for line in changes(options.base):
            print(line)
        return 0
    from benchmarks.report_figures import draw  # late: a comparison needs no drawing

    figures = options.page.parent / "performance"
    drawn = draw(folders(), figures)
    options.page.write_text(page(folders(), drawn), encoding="utf-8")
    print(options.page)
    return 0


def folders() -> dict[str, dict[str, Rows]]:
    """Return the measured tables of every machine by its name and theirs."""
    found: dict[str, dict[str, Rows]] = {}
    for path in sorted(RESULTS.glob("*/*.csv")):
        found.setdefault(path.parent.name, {})[path.stem] = read(path.read_text(encoding="utf-8"))
    return found


def page(machines: Mapping[str, Mapping[str, Rows]], figures: Sequence[str] = ()) -> str:
    """Return the page as Markdown."""
    parts = [
        "# Performance",
        "What was measured, set beside what else would do the same work, and what was not measured. Every number lies "
        "in a CSV of the repository; `make performance` draws this page from them, and nothing on it is written by "
        "hand. `python -m benchmarks.report --base REV` says what changed since a commit.",
    ]
    for machine, tables in machines.items():
        parts += [f"## Measured on {machine}", *measured(tables)]
        parts += [f"![{name.removesuffix('.png')}](performance/{name})" for name in figures if machine in name]
    parts += ["## Ratios that are guarded", *ratios_part(read(_text("baseline.csv")))]
    parts += ["## Compiled kernels", *compiled_part(read(_text("compiled.csv")))]
    parts += ["## What was tried", *notes_part(read(_text("optimisations.csv")))]
    parts += ["## Goals that stand unmeasured", *goals_part(read(_text("goals.csv")))]
    return "\n\n".join(parts) + "\n"


def _text(name: str) -> str:
    return (ROOT / "benchmarks" / name).read_text(encoding="utf-8")


def ratios_part(rows: Rows) -> list[str]:
    """Return the table of guarded ratios."""
    lines = [(r["device"], r["pair"], r["quantity"], f"{float(r['ratio']):.3f}", r["tolerance"]) for r in rows]
    measured = sorted({row["measured_on"] for row in rows})
    return [
        "Ours over what does the same plainly, in one run, so below 1 ours takes less. On a CPU an operator runs its "
        "twin: there the ratio is the price of an operator that computes again in backward rather than keeping. "
        "`make bench-check` fails where a ratio passes the committed one by the factor beside it.",
        table(("device", "pair", "quantity", "ratio", "passes up to times"), lines),
        f"Command: `python -m benchmarks.bench_check --update`. Measured on {'; '.join(measured)}.",
    ]


def compiled_part(rows: Rows) -> list[str]:
    """Return one line for each operator and target over all its dispatched launches."""
    groups: dict[tuple[str, str], Rows] = defaultdict(list)
    for row in rows:
        if row["dispatched"] == "True":
            groups[row["op"], row["target"]].append(row)
    lines = []
    for (op, target), found in sorted(groups.items()):
        wide, accesses = (sum(int(row[name]) for row in found) for name in ("wide", "accesses"))
        units = sorted({row["unit"] for row in found} - {""})
        spilling = sum(int(row["spill_bytes"]) > 0 for row in found)
        most = [max(int(row[name]) for row in found) for name in ("registers", "shared_bytes")]
        share = f"{100 * wide / accesses:.0f} %" if accesses else "-"
        lines.append((op, target, str(len(found)), *map(str, most), str(spilling), ", ".join(units) or "-", share))
    versions = sorted({row["triton"] for row in rows})
    head = (
        "op",
        "target",
        "launches",
        "most registers",
        "most shared bytes",
        "that spill",
        "matrix units",
        "16-byte accesses",
    )
    return [
        "Compiled ahead of time, without a GPU, so these are facts of the code and no speeds. Which launches may "
        "spill, and why, stands in each operator's `cases.py`. `make kernels` names what got worse.",
        table(head, lines),
        f"Command: `python -m benchmarks.compile_kernels --update`, triton {', '.join(versions)}.",
    ]


def notes_part(rows: Rows) -> list[str]:
    """Return the table of optimisations: predicted, measured, kept or not."""
    head = ("what", "predicted", "measured", "losses", "kept", "command")
    return [table(head, [tuple(row[name] for name in head) for row in rows])]


def goals_part(rows: Rows) -> list[str]:
    """Return the table of goals that nobody could measure, with what would."""
    head = ("part", "goal", "needs", "command that would measure it")
    lines = [(row["issue"], row["goal"], row["needs"], f"`{row['command']}`") for row in rows]
    return ["No GPU was at hand. What was aimed at and is not known:", table(head, lines)]


def changes(revision: str) -> list[str]:
    """Return a line for each number that differs by over 2 % from another commit's, and for rows that came or went.

    Raises:
        SystemExit: there is no such commit.
    """
    git = ["git", "-C", str(ROOT)]
    if subprocess.run(
        [*git, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"], capture_output=True
    ).returncode:
        raise SystemExit(f"--base {revision} is no commit of this repository")
    told = []
    for path in sorted([*RESULTS.glob("*/*.csv"), *(ROOT / "benchmarks").glob("*.csv")]):
        if path.stem not in KEYS:
            continue
        name = path.relative_to(ROOT)
        shown = subprocess.run([*git, "show", f"{revision}:{name}"], capture_output=True, text=True, check=False)
        before = read(shown.stdout) if shown.returncode == 0 else []
        told += [f"{name}: {text}" for text in compared(path.stem, before, read(path.read_text(encoding="utf-8")))]
    return told or [f"nothing differs from {revision} by over {100 * CHANGED:.0f} %"]


def compared(kind: str, before: Rows, after: Rows) -> list[str]:
    """Return what differs between two tables of one kind."""
    # A commit may have had a table of this name with other columns.
    old, new = ({tuple(row.get(name, "") for name in KEYS[kind]): row for row in rows} for rows in (before, after))
    told = [f"{' '.join(key)}: gone" for key in old if key not in new]
    for key, row in new.items():
        if key not in old:
            told.append(f"{' '.join(key)}: new")
            continue
        for name in NUMBERS[kind]:
            was, now = old[key].get(name), row[name]
            if was and now and abs(float(now) - float(was)) > CHANGED * abs(float(was)):
                ratio = f" ({float(now) / float(was):.2f}x)" if float(was) else ""
                told.append(f"{' '.join(key)}: {name} {number(was)} -> {number(now)}{ratio}")
    return told


if __name__ == "__main__":
    sys.exit(main())
