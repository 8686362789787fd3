"""Test every kernel on a CUDA machine, then time every op whose tests pass, in under 8 minutes.

    PYTHONPATH=kernels python -m benchmarks.run_gpu

Requires torch, triton and pytest; the project need not be installed. An op is found by its cases in
``benchmarks/cases``, its tests by ``tests/kernels/test_<op>*.py``, its benchmark by ``benchmarks/<op>.py``. Stages:

1. The kernels of all cases are compiled by one process per core into Triton's cache.
2. Tests, several processes at a time; those of real shapes first. Other processes meanwhile compile what the later
   stages need: the variants of the sweep, ``torch.compile`` of the baselines, the kernels of a training step.
3. Each op and plain PyTorch are timed in all cases that are not edge cases, those that decide most first.
4. The other baselines are timed in the best cases.
5. Every kernel is timed with other numbers of warps and pipeline stages.
6. One training step of SimVP and of Earthformer is profiled.

Every process has its own time limit, and every result is written at once: a test, provider or process that fails,
crashes or hangs loses nothing else. The rows of all timings are in ``gpu-<commit>-<device>.csv`` in the folder
``RESULTS``, by default ``benchmarks/results``; a folder of the same name has the tests, the sweep, the profiles and
``summary.md``.
"""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import op_names
from benchmarks.gpu.case_order import best_cases, ops_by_worth, rank, timed_cases
from benchmarks.gpu.child_processes import Ended, Task, run_all, run_one
from benchmarks.gpu.duration import Counts, Seconds, counted, predicted_seconds
from benchmarks.gpu.gpu_summary import Report, gpu_state, markdown
from benchmarks.gpu.profile_step import NETWORKS
from benchmarks.gpu.result_lines import read_results, verdicts
from benchmarks.harness import DEVICE_LOST, STARTED, is_failure, show
from benchmarks.measurements import RESULTS, ROOT, machine, read_rows, write_rows
from simcast_hpc.storage.atomic_files import write_text

# Seconds after the start at which a stage must have ended; time that a stage leaves is used by the next.
COMPILE_END, TEST_END, FIRST_END, REST_END, SWEEP_END, TOTAL_SECONDS = 75.0, 200.0, 340.0, 415.0, 435.0, 468.0
STALL_SECONDS = 45.0  # without a row: the provider hangs
LEAST_SECONDS = 15.0  # no process is started with less
# Counted by pytest, which collects 229 tests on a GPU; only the prediction uses them.
REAL_TESTS, SMALL_TESTS = 70, 159
SMALL_SHARDS = {"cuboid_attention": 6}  # processes of small tests; most compile kernels of their own
MODE_SECONDS = 0.1


def main() -> int:
    """Run all stages; return 1 after a failed test or wrong result, 2 without a CUDA device."""
    if not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False; nothing was run", file=sys.stderr)
        return 2
    run = Run(began=time.perf_counter(), report=Report(machine("cuda")))
    print(", ".join(f"{key} {value}" for key, value in run.report.about.items()))
    counts = counted(real_tests=REAL_TESTS, small_tests=SMALL_TESTS)
    predicted = predicted_seconds(counts, cores=run.cores)
    print(f"predicted duration {predicted.total:.0f} s on {run.cores} cores")
    run.report.states["before"] = gpu_state()
    stages(run, counts, predicted)
    show(run.report.rows)
    text = markdown(run.report)
    print(text)
    print(f"{len(run.report.rows)} rows in {run.csv}; {run.spent():.0f} s, predicted {predicted.total:.0f} s")
    failed = any(run.report.excluded.values()) or any(is_failure(row) for row in run.report.rows)
    return int(failed or any(result.outcome == "failed" for result in run.report.results))


@dataclass
class Run:
    """The state of a run: what it has found, and where it is written."""

    began: float
    report: Report
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def __post_init__(self):
        about = self.report.about
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"gpu {about['commit']} {about['device']}").strip("-")
        self.csv = Path(os.environ.get("RESULTS") or RESULTS) / f"{name}.csv"
        self.folder = self.csv.with_name(name)
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier run of this commit
        self.folder.mkdir(parents=True)

    def spent(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.began

    def left(self, end: float) -> float:
        """Return the seconds until ``end`` seconds after the start."""
        return max(0.0, end - self.spent())

    def save(self) -> None:
        """Write the rows and the summary."""
        write_rows(self.report.rows, self.csv)
        write_rows([vars(result) for result in self.report.results], self.folder / "tests.csv")
        write_text(self.folder / "summary.md", markdown(self.report))


def stages(run: Run, counts: Counts, predicted: Seconds) -> None:
    """Run every stage and save what is there after each."""
    report = run.report

    def stage(name: str, seconds: float, function: Callable[..., str], *arguments: Any) -> None:
        began, end = run.spent(), ""
        print(f"--- {name}, predicted {seconds:.0f} s", flush=True)
        try:
            end = function(run, *arguments)
        except Exception as error:  # the next stages do not depend on it
            end = f"{type(error).__name__}: {error}"
        report.stages.append((name, seconds, run.spent() - began, end))
        run.save()

    stage("compile", predicted.compile, compile_kernels)
    stage("tests", predicted.tests, run_tests)
    ops = [op for op in ops_by_worth() if not report.excluded.get(op, "not tested")]
    ops = [op for op in ops if (ROOT / "benchmarks" / f"{op}.py").is_file()]
    stage("op and plain PyTorch", predicted.first, time_ops, ops, "first", FIRST_END, counts.first)
    report.states["after timing"] = gpu_state()
    stage("other baselines", predicted.rest, time_ops, ops, "rest", REST_END, counts.rest)
    stage("sweep", predicted.sweep, sweep_launches, ops)
    stage("training steps", predicted.profile, profile_steps)


def compile_kernels(run: Run) -> str:
    """Compile the kernels of all cases into the cache."""
    words = ("benchmarks.gpu.precompile", "--jobs", str(run.cores), "--csv", str(run.folder / "compiled.csv"))
    return run_one(Task(name="compile", words=words), run.left(COMPILE_END)).reason


def run_tests(run: Run) -> str:
    """Run the tests in parallel processes, then set the results and the reasons why ops are not timed."""
    names: dict[Path, str] = {}
    tasks = [*test_tasks(run.folder, "real", names), *warm_tasks(run), *test_tasks(run.folder, "small", names)]

    def ended(end: Ended) -> None:
        run.report.results = read_results(names)
        write_rows([vars(result) for result in run.report.results], run.folder / "tests.csv")
        expected = (0, 1, 5)  # tests passed, some failed (they have lines), none selected
        if end.status not in expected and not end.task.name.startswith("warm"):
            run.report.missing.append(f"{end.task.name}: {end.reason}")

    ends = run_all(tasks, run.left(TEST_END), workers=run.cores, ended=ended)
    run.report.excluded = verdicts(read_results(names), op_names())
    stopped = [end.task.name for end in ends if end.status is None]
    return f"stopped: {', '.join(stopped)}" if stopped else ""


def test_tasks(folder: Path, part: str, names: dict[Path, str]) -> list[Task]:
    """Return a pytest process for each op and each shard, and add the files of their results to ``names``.

    Test files that belong to no op, such as those of dispatch, have a process together.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "tests" / "kernels").glob("test_*.py")):
        stem = path.stem.removeprefix("test_")
        owner = max((op for op in op_names() if stem == op or stem.startswith(f"{op}_")), key=len, default="other")
        files.setdefault(owner, []).append(path)
    tasks = []
    for op in [*ops_by_worth(), "other"]:
        shards = SMALL_SHARDS.get(op, 1) if part == "small" else 1
        for shard in range(1, shards + 1) if files.get(op) else ():
            lines = folder / "tests" / f"{op}-{part}-{shard}.jsonl"
            names[lines] = op
            options = ("--result-lines", str(lines), "--part", part, "--shard", f"{shard}/{shards}")
            plugin = ("-p", "benchmarks.gpu.result_lines", "-p", "no:cacheprovider", "-q", "-m", "gpu and not slow")
            words = ("pytest", *plugin, *options, *(str(path.relative_to(ROOT)) for path in files[op]))
            tasks.append(Task(name=f"tests {op} {part} {shard}/{shards}", words=words))
    return tasks


def warm_tasks(run: Run) -> list[Task]:
    """Return the processes that compile what later stages need: baselines, training steps, variants of the sweep."""
    tasks = []
    for op in ops_by_worth():
        csv = str(run.folder / "warm" / f"{op}.csv")
        words = (f"benchmarks.{op}", "--device", "cuda", "--cases", "best", "--group", "rest", "--check-only")
        tasks.append(Task(name=f"warm {op}", words=(*words, "--csv", csv)))
    for network in NETWORKS:
        words = ("benchmarks.gpu.profile_step", "--network", network, "--batch", "1", "--check-only")
        tasks.append(Task(name=f"warm {network}", words=(*words, "--csv", str(run.folder / "warm" / "none.csv"))))
    words = ("benchmarks.gpu.precompile", "--sweep", "--jobs", str(max(1, run.cores // 4)))
    tasks.append(Task(name="warm sweep", words=words))
    return tasks


def time_ops(run: Run, ops: Sequence[str], group: str, end: float, seconds: dict[str, float]) -> str:
    """Time the ops in their own processes; each has a share of the time that is left by its predicted seconds."""
    reasons = []
    for i, op in enumerate(ops):
        share = seconds[op] / sum(seconds[one] for one in ops[i:])
        reason = time_op(run, op, group, run.left(end) * share)
        if reason:
            reasons.append(f"{op}: {reason}")
        run.report.rows = timed_rows(run.folder)
        run.save()
    return "; ".join(reasons)


def time_op(run: Run, op: str, group: str, seconds: float) -> str:
    """Time an op; after a crash or a hang, continue with the next provider in a new process.

    Returns:
        why cases are missing, or an empty string.
    """
    path, deadline = run.folder / "times" / f"{op}.csv", time.perf_counter() + seconds
    words = (f"benchmarks.{op}", "--device", "cuda", "--group", group, "--mode-seconds", str(MODE_SECONDS), "--resume")
    words += ("--cases", "timed" if group == "first" else "best", "--csv", str(path))
    words += ("--roofline", str(run.folder / "roofline.json"))
    reason = "no time was left"
    while (left := deadline - time.perf_counter()) > LEAST_SECONDS:
        before = len(read_rows(path)) if path.is_file() else 0
        limit = ("--seconds", f"{max(1.0, left - LEAST_SECONDS):.0f}")  # no case starts that would be cut off
        end = run_one(Task(name=op, words=(*words, *limit), progress=path, stall=STALL_SECONDS), left)
        rows = read_rows(path) if path.is_file() else []
        interrupted = any(row["status"] == STARTED for row in rows)
        if interrupted:
            write_rows([row | _closed(row, end) for row in rows], path)
        if end.status in (0, 1) and not interrupted and rows:
            reason = ""
            break
        reason = end.reason
        if end.status != DEVICE_LOST and not interrupted and len(rows) <= before:
            break  # it does not start
    missing = [case.name for case in (timed_cases if group == "first" else best_cases)(op)]
    found = {row["case"] for row in (read_rows(path) if path.is_file() else [])}
    if left_out := [name for name in missing if name not in found]:
        run.report.missing.append(f"{op} {', '.join(left_out)}: {reason or 'the time of the op was over'}")
    return reason


def _closed(row: dict[str, str], end: Ended) -> dict[str, str]:
    return {"status": end.reason or "the process ended without a result"} if row["status"] == STARTED else {}


def timed_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of all ops, the cases that decide most first."""
    order = {(op, case.name): (rank(op, case), i) for op in op_names() for i, case in enumerate(timed_cases(op))}
    rows = [row for path in sorted((folder / "times").glob("*.csv")) for row in read_rows(path)]
    return sorted(rows, key=lambda row: (order[row["op"], row["case"]], row["op"], row["case"]))


def sweep_launches(run: Run, ops: Sequence[str]) -> str:
    """Time the kernels of ops with other numbers of warps and stages."""
    path = run.folder / "sweep.csv"
    words = ("benchmarks.gpu.launch_sweep", "--csv", str(path), *(word for op in ops for word in ("--op", op)))
    if not ops or run.left(SWEEP_END) < LEAST_SECONDS:
        return "no time was left" if ops else "no op is left"
    end = run_one(Task(name="sweep", words=words, progress=path, stall=STALL_SECONDS), run.left(SWEEP_END))
    run.report.swept = list(read_rows(path)) if path.is_file() else []
    return end.reason


def profile_steps(run: Run) -> str:
    """Profile a training step of every network."""
    reasons = []
    for i, network in enumerate(NETWORKS):
        seconds = run.left(TOTAL_SECONDS) / (len(NETWORKS) - i)
        if seconds < LEAST_SECONDS:
            reasons.append(f"{network}: no time was left")
            continue
        path = run.folder / f"profile-{network}.csv"
        words = ("benchmarks.gpu.profile_step", "--network", network, "--csv", str(path))
        end = run_one(Task(name=network, words=(*words, "--trace", str(path.with_suffix(".json.gz")))), seconds)
        if path.is_file():
            run.report.profiled += read_rows(path)
        elif end.reason:
            reasons.append(f"{network}: {end.reason}")
    run.report.missing += reasons
    return "; ".join(reasons)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the child processes, too
    sys.exit(main())
