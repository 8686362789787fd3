"""Test every kernel on a CUDA machine, then time every op whose tests pass; writes one CSV, in under 8 minutes.

    PYTHONPATH=kernels python -m benchmarks.run_gpu

Requires torch, triton and pytest; the project need not be installed. An op is found by its cases in
``benchmarks/cases``, its tests by ``tests/kernels/test_<op>*.py``, its benchmark by ``benchmarks/<op>.py``. Each
benchmark runs in its own process, so that a kernel that corrupts the CUDA context affects no other op. The CSV is
written to the folder in ``RESULTS``, by default ``benchmarks/results``.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.cases import op_cases, op_names
from benchmarks.harness import show
from benchmarks.measurements import RESULTS, ROOT, machine, read_rows, write_rows

TOTAL_SECONDS = 465.0
TEST_SECONDS = 240.0
# Time for a case that starts just before the time of its op is over.
CASE_SECONDS = 30.0


def main() -> int:
    """Run tests and benchmarks; return 1 after a failed test or wrong result, 2 without a CUDA device."""
    if not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False; nothing was run", file=sys.stderr)
        return 2
    began = time.perf_counter()
    about = machine("cuda")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    environment = child_environment()
    with tempfile.TemporaryDirectory() as folder:
        # 1. Tests
        report = Path(folder, "tests.xml")
        tests_passed = _run(
            ["pytest", "tests/kernels", "-m", "gpu and not slow", "-q", f"--junitxml={report}"],
            TEST_SECONDS,
            environment,
        )
        failed = failed_ops(report, op_names()) if not tests_passed else set()
        # 2. Benchmarks of the ops without failures, smallest first
        ops = [op for op in by_size(op_names()) if (ROOT / "benchmarks" / f"{op}.py").is_file() and op not in failed]
        timed, rows = True, []
        for i, op in enumerate(ops):
            share = (TOTAL_SECONDS - (time.perf_counter() - began)) / (len(ops) - i)
            result = Path(folder, f"{op}.csv")
            seconds = max(0.0, share - CASE_SECONDS)
            command = [f"benchmarks.{op}", "--device", "cuda", "--seconds", f"{seconds:.0f}", "--csv", str(result)]
            timed &= _run(command, max(share, CASE_SECONDS), environment)
            rows += read_rows(result) if result.is_file() else []
    # 3. Results
    path = write(rows, about)
    show(rows)
    print(f"{len(rows)} rows in {path}; {time.perf_counter() - began:.0f} s")
    if failed:
        print(f"not timed, because tests failed: {', '.join(sorted(failed))}", file=sys.stderr)
    return 0 if tests_passed and timed else 1


def child_environment() -> dict[str, str]:
    """Return the environment of this process with the repository on PYTHONPATH and the default implementation."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SIMCAST_KERNELS")}
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def failed_ops(report: Path, ops: Iterable[str]) -> set[str]:
    """Return the ops with a failed test in pytest's JUnit report; all of them without a complete report.

    A failed test that belongs to no op, such as one of dispatch, counts for all.
    """
    ops = set(ops)
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return ops
    bad = [
        case.get("classname", "")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    failed: set[str] = set()
    for name in bad:
        stem = name.rpartition("test_")[2]
        owners = {op for op in ops if stem == op or stem.startswith(f"{op}_")}
        failed |= owners or ops
    return failed


def by_size(ops: Sequence[str]) -> list[str]:
    """Return the ops sorted by the size of their largest case."""
    return sorted(ops, key=lambda op: max(case.bytes_moved("forward") for case in op_cases(op).CASES))


def write(rows: Sequence[dict[str, str]], about: dict[str, str]) -> Path:
    """Write all rows to one CSV named after commit and device, and return its path."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"gpu {about['commit']} {about['device']}").strip("-")
    path = Path(os.environ.get("RESULTS") or RESULTS) / f"{name}.csv"
    write_rows(rows, path)
    return path


def _run(module: Sequence[str], seconds: float, environment: dict[str, str]) -> bool:
    """Run ``python -m module`` for at most ``seconds``; return whether it succeeded."""
    try:
        done = subprocess.run([sys.executable, "-m", *module], cwd=ROOT, env=environment, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"{module[0]}: stopped after {seconds:.0f} s", file=sys.stderr)
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
