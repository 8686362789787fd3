"""Summary of a run on a GPU in Markdown: machine, stages, tests, times, sweep, profiled steps, and what is missing."""

import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.result_lines import Result, op_of
from benchmarks.harness import STARTED, TIMED
from benchmarks.providers import EAGER, OURS

QUERIES = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "power.draw",
    "temperature.gpu", "memory.total",
)  # fmt: skip


@dataclass
class Report:
    """What a run has so far; every stage adds to it.

    Attributes:
        about: device, versions and commit.
        states: state of the GPU by the moment of the query.
        stages: per stage the predicted and the measured seconds and how it ended.
        results: of the tests.
        excluded: per op why it was not timed; empty for a timed op.
        rows: of the timed and the failed providers.
        swept: rows of the sweep.
        profiled: rows of the profiled steps.
        missing: what was not measured, with the reason.
    """

    about: Mapping[str, str]
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    stages: list[tuple[str, float, float, str]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)
    swept: list[dict[str, str]] = field(default_factory=list)
    profiled: list[dict[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def gpu_state() -> dict[str, str]:
    """Return driver, clocks, power and temperature of the first CUDA device by nvidia-smi; empty without it."""
    uuid = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    device = f"--id=GPU-{uuid.removeprefix('GPU-')}" if uuid else "--id=0"
    command = ["nvidia-smi", device, f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(QUERIES, (value.strip() for value in done.stdout.splitlines()[0].split(",")), strict=False))


def markdown(report: Report) -> str:
    """Return the summary as Markdown."""
    parts = [f"# Kernels on {report.about['device']}, commit {report.about['commit']}", _machine(report)]
    parts.append(
        "## Stages\n\n" + _table(("stage", "predicted s", "s", "end"), [_stage(stage) for stage in report.stages])
    )
    parts.append("## Tests\n\n" + _table(("op", "passed", "failed", "memory", "skipped", "timed"), _tests(report)))
    header = ("case", "mode", "op us", "plain PyTorch us", "speed-up", "of copy", "of limit", "best other baseline")
    parts.append("## Times\n\nMedian per call, replayed from a CUDA graph.\n\n" + _table(header, _times(report.rows)))
    header = ("kernel", "case", "dispatched us", "best us", "best warps", "best stages")
    parts.append("## Warps and pipeline stages\n\n" + _table(header, _swept(report.swept)))
    header = ("network", "batch", "step ms", "kernel", "ms", "share")
    parts.append("## Training step\n\n" + _table(header, _profiled(report.profiled)))
    missing = [*report.missing, *_failures(report)]
    parts.append("## Not measured\n\n" + ("\n".join(f"- {line}" for line in missing) or "Everything was measured."))
    return "\n\n".join(parts) + "\n"


def _machine(report: Report) -> str:
    lines = [f"- {name}: {value}" for name, value in report.about.items()]
    lines += [
        f"- GPU {moment}: " + (", ".join(f"{k} {v}" for k, v in state.items()) or "nvidia-smi does not answer")
        for moment, state in report.states.items()
    ]
    return "\n".join(lines)


def _stage(stage: tuple[str, float, float, str]) -> tuple[str, ...]:
    name, predicted, seconds, end = stage
    return name, f"{predicted:.0f}", f"{seconds:.0f}", end or "complete"


def _tests(report: Report) -> list[tuple[Any, ...]]:
    ops = list(report.excluded)
    counts = Counter((op_of(result.test, ops), result.outcome) for result in report.results)
    outcomes = ("passed", "failed", "memory", "skipped")
    return [
        (op or "all ops", *(counts[op, outcome] for outcome in outcomes), report.excluded.get(op, "") or "yes")
        for op in [*ops, ""]
        if op or any(counts[op, outcome] for outcome in outcomes)
    ]


def _times(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, str, str], dict[str, Mapping[str, str]]] = {}
    for row in rows:
        if row["status"] == TIMED:
            groups.setdefault((row["op"], row["case"], row["mode"]), {})[row["provider"]] = row
    lines = []
    for (op, case, mode), found in groups.items():
        if not mode.endswith("/graph") and (op, case, f"{mode}/graph") in groups:
            continue
        own = next((found[name] for name in OURS if name in found), None)
        eager = next((found[name] for name in EAGER if name in found), None)
        others = {n: float(row["p50"]) for n, row in found.items() if n not in (*OURS, *EAGER)}
        best = min(others, key=others.__getitem__, default="")
        lines.append(
            (
                f"{op} {case}",
                mode,
                own["p50"] if own else "-",
                eager["p50"] if eager else "-",
                f"{float(eager['p50']) / float(own['p50']):.2f}" if own and eager else "-",
                f"{100 * float(own['fraction_of_copy']):.0f} %" if own else "-",
                f"{100 * float(own['fraction_of_limit']):.0f} % ({own['limit']})" if own else "-",
                f"{best} {others[best]:.2f}" if best else "-",
            )
        )
    return lines


def _swept(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    lines = []
    for key in dict.fromkeys((row["op"], row["kernel"], row["case"]) for row in rows):
        own = [r for r in rows if (r["op"], r["kernel"], r["case"]) == key and r["status"] == TIMED]
        base = next((row["p50"] for row in own if row["variant"] == "dispatched"), "-")
        best = min(own, key=lambda row: float(row["p50"]), default=None)
        cells = (best["p50"], best["num_warps"], best["num_stages"]) if best else ("-", "-", "-")
        lines.append((f"{key[0]} {key[1]}", key[2], base, *cells))
    return lines


def _profiled(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network and row["status"] == "profiled"]
        for row in own[:11]:
            kernel = row["kernel"][:70].replace("|", "/")
            lines.append((network, row["batch"], row["step_ms"], kernel, row["ms"], row["share"]))
    return lines


def _failures(report: Report) -> list[str]:
    ops = [f"{op}: {reason}" for op, reason in report.excluded.items() if reason]
    rows = [
        f"{row['op']} {row['case']}, {row['provider']} {row['mode']}".rstrip() + f": {row['status']}"
        for row in report.rows
        if row["status"] not in (TIMED, STARTED)
    ]
    swept = Counter(row["kernel"] for row in report.swept if row["status"] != TIMED)
    variants = [f"sweep of {kernel}: {count} variants cannot run" for kernel, count in swept.items()]
    steps = [f"{row['network']}: {row['status']}" for row in report.profiled if row["status"] != "profiled"]
    return ops + rows + variants + steps


def _table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    if not lines:
        return "No results."
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)
