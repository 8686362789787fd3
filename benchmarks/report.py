"""Draw ``docs/performance.md`` from the results in the repository, or compare those with another commit's.

    python -m benchmarks.report                # writes the page and its figures
    python -m benchmarks.report --base REV     # prints what changed since REV, writes nothing

Measured tables lie in ``benchmarks/results/<machine>/``; what a benchmark writes by default, beside these folders, is
not committed: whoever measures on a machine worth keeping moves the files into a folder of its name. The compile table,
the ratios of ``bench_check``, the goals and the notes lie in ``benchmarks/`` itself. The page states nothing that is
not in these files.
"""

import argparse
import csv
import io
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
# What names a row of a table, and its numbers, of which all but the second kind are the better the smaller.
KEYS = {
    "peers": ("case", "provider", "part", "precision", "shape"),
    "end_to_end": ("case", "input", "precision", "shape"),
    "baseline": ("device", "pair", "quantity"),
    "compiled": ("op", "kernel", "case", "direction", "target", "options"),
}
NUMBERS = {
    "peers": ("cpu_p50_s", "p50_s", "peak_gb"),
    "end_to_end": ("cpu_p50_s", "p50_s", "peak_gb", "needs_gb", "training_gflop"),
    "baseline": ("ratio",),
    "compiled": ("registers", "spill_bytes", "shared_bytes"),
}
CHANGED = 0.02
Rows = list[dict[str, str]]


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


def read(text: str) -> Rows:
    """Return the rows of a CSV, all values as text."""
    return list(csv.DictReader(io.StringIO(text)))


def page(machines: Mapping[str, Mapping[str, Rows]], figures: Sequence[str] = ()) -> str:
    """Return the page as Markdown."""
    parts = [
        "# Performance",
        "What was measured, set beside what else would do the same work, and what was not measured. Every number lies "
        "in a CSV of the repository; `make performance` draws this page from them, and nothing on it is written by "
        "hand. `python -m benchmarks.report --base REV` says what changed since a commit.",
    ]
    for machine, tables in machines.items():
        parts.append(f"## Measured on {machine}")
        if "peers" in tables:
            parts += ["### Beside the public code", *peers_part(tables["peers"])]
        if "end_to_end" in tables:
            parts += ["### Whole training steps", *end_to_end_part(tables["end_to_end"])]
        parts += [f"![{name.removesuffix('.png')}](performance/{name})" for name in figures if machine in name]
    parts += ["## Ratios that are guarded", *ratios_part(read(_text("baseline.csv")))]
    parts += ["## Compiled kernels", *compiled_part(read(_text("compiled.csv")))]
    parts += ["## What was tried", *notes_part(read(_text("optimisations.csv")))]
    parts += ["## Goals that stand unmeasured", *goals_part(read(_text("goals.csv")))]
    return "\n\n".join(parts) + "\n"


def _text(name: str) -> str:
    return (ROOT / "benchmarks" / name).read_text(encoding="utf-8")


def peers_part(rows: Rows) -> list[str]:
    """Return a table of steps and ensembles, ours over public, and how it was measured."""
    lines = []
    for ours in (row for row in rows if row["provider"] == "ours" and row["part"] in ("step", "ensemble")):
        public = next(
            r for r in rows if r["provider"] == "public" and _same(r, ours, ("case", "part", "precision", "shape"))
        )
        lines.append(
            (
                ours["case"], ours["precision"], ours["shape"],
                f"{number(public['cpu_p50_s'])} / {number(ours['cpu_p50_s'])}", times(public, ours, "cpu_p50_s"),
                f"{number(public['p50_s'])} / {number(ours['p50_s'])}", times(public, ours, "p50_s"),
                f"{number(public['peak_gb'])} / {number(ours['peak_gb'])}", times(public, ours, "peak_gb"),
                ours["apart"], ours["rounds"], ours["load"], ours["public_commit"], ours["commit"],
            )
        )  # fmt: skip
    head = (
        "case", "precision", "shape", "processor s, public / ours", "times", "clock s, public / ours", "times",
        "peak GB, public / ours", "times", "apart", "steps", "load", "public commit", "our commit",
    )  # fmt: skip
    return [
        "Forward and backward pass of one sample, without an optimizer, at equal weights and inputs, a process for "
        "each; `times` is how much less ours takes. `apart` is the largest difference of the two forecasts over the "
        "largest. `load` is how many processes wanted the machine's cores in the mean of the last minute: where it "
        "passes the number of cores, the clock says how crowded the machine was, and the processor's seconds are to be "
        "read. One or two steps a contender after one that warms up: differences of a few per cent are noise. fp32 is "
        "the precision that all three train in by default.",
        table(head, lines),
        _made("python -m benchmarks.peers --earthformer PATH --openstl PATH --cascast PATH", rows),
    ]


def end_to_end_part(rows: Rows) -> list[str]:
    """Return a table of whole steps and one of their kinds of work."""
    head = (
        "case", "input", "precision", "shape", "parameters", "GFLOP", "needs GB", "processor s", "clock s", "samples/s",
        "peak GB", "TFLOP/s of a product", "of it", "load", "commit",
    )  # fmt: skip
    lines = [
        (
            row["case"], row["input"], row["precision"], row["shape"], f"{int(row['parameters']) / 1e6:.1f} M",
            number(row["training_gflop"]), number(row["needs_gb"]), number(row["cpu_p50_s"]), number(row["p50_s"]),
            number(row["samples_per_s"]), number(row["peak_gb"]), number(row["product_tflop_per_s"]),
            f"{100 * float(row['model_flop_utilisation']):.0f} %" if row["model_flop_utilisation"] else "-",
            row["load"] or "-", row["commit"],
        )
        for row in rows
    ]  # fmt: skip
    kinds = [(row["case"], row["input"], row["precision"], dict(_kinds(row))) for row in rows if row["kinds"]]
    names = list(kinds[0][3]) if kinds else []
    shares = [(*which, *(f"{100 * found[name]:.0f} %" for name in names)) for *which, found in kinds]
    return [
        "Forward, loss, backward and AdamW of one window, a process for each. GFLOP are counted, of matrix products "
        "and convolutions, forward and backward, what is computed again included; `needs` is computed: fp32 weights, "
        "gradients and both moments, and the activations kept for backward. `of it` is the model's GFLOP a second over "
        "those of a large product of the same dtype in the same run. Rows without seconds are counted only.",
        table(head, lines),
        "Shares of the calling thread's time by kind of work:",
        table(("case", "input", "precision", *names), shares),
        _made("python -m benchmarks.end_to_end", rows),
    ]  # fmt: skip


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
    old, new = ({tuple(row[name] for name in KEYS[kind]): row for row in rows} for rows in (before, after))
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


def number(text: str) -> str:
    """Return a number of a table with three digits that count, ``-`` for none."""
    if not text:
        return "-"
    value = float(text)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(public: Mapping[str, str], ours: Mapping[str, str], name: str) -> str:
    """Return how much less ours takes: public over ours."""
    return f"{float(public[name]) / float(ours[name]):.2f}x"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _same(one: Mapping[str, str], other: Mapping[str, str], names: Sequence[str]) -> bool:
    return all(one[name] == other[name] for name in names)


def _kinds(row: Mapping[str, str]) -> list[tuple[str, float]]:
    return [(name, float(share)) for name, share in (kind.split(":") for kind in row["kinds"].split())]


def _made(command: str, rows: Rows) -> str:
    machines = sorted({f"{row['device']}, Python {row['python']}, torch {row['torch']}" for row in rows})
    return f"Command: `{command}`. Machine: {'; '.join(machines)}."


if __name__ == "__main__":
    sys.exit(main())
