"""Pytest plugin that appends one JSON line per finished test to a file, so that a stopped run keeps its results.

    python -m pytest -p benchmarks.gpu.result_lines --result-lines FILE [--part real|small] [--shard 1/4] tests/kernels

``--part real`` selects the tests of real shapes, which are marked ``gpu`` but not ``kernel``; ``small`` the others.
``--shard i/n`` selects every n-th of the remaining tests. A line has ``test``, ``outcome`` (``passed``, ``failed``,
``memory`` for a failure by lack of device memory, ``skipped``) and ``seconds``. Errors while files are collected are
lines too.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

Outcome = Literal["passed", "failed", "memory", "skipped"]
OUT_OF_MEMORY = ("OutOfMemoryError", "CUDA out of memory", "CUDA error: out of memory")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    group = parser.getgroup("result lines")
    group.addoption("--result-lines", type=Path, help="file to which a JSON line per test is appended")
    group.addoption("--part", choices=["all", "real", "small"], default="all")
    group.addoption("--shard", default="1/1", help="i/n: every n-th test, from the i-th on")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the tests of a part and a shard."""
    part = config.getoption("--part")
    if part != "all":
        items[:] = [item for item in items if _is_real(item) == (part == "real")]
    shard, shards = map(int, str(config.getoption("--shard")).split("/"))
    items[:] = items[shard - 1 :: shards]


def _is_real(item: pytest.Item) -> bool:
    return item.get_closest_marker("gpu") is not None and item.get_closest_marker("kernel") is None


def pytest_configure(config: pytest.Config) -> None:
    """Register the writer if a file is named."""
    path = config.getoption("--result-lines")
    if path is not None:
        config.pluginmanager.register(_Writer(path), "result-lines-writer")


class _Writer:
    def __init__(self, path: Path):
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the line of a test after its body, or after its preparation or clean-up if these fail or skip it."""
        if report.when == "call" or not report.passed:
            self._write(report.nodeid, report.outcome, report.duration, report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Write a line for a file that cannot be imported."""
        if report.failed:
            self._write(report.nodeid, "failed", 0.0, report.longreprtext)

    def _write(self, test: str, outcome: str, seconds: float, text: str) -> None:
        if outcome == "failed" and any(words in text for words in OUT_OF_MEMORY):
            outcome = "memory"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "outcome": outcome, "seconds": round(seconds, 3)}) + "\n")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the file."""

    test: str
    outcome: Outcome
    seconds: float


def read_results(paths: Iterable[Path]) -> list[Result]:
    """Return the results in files that exist; a last line that was cut off is skipped."""
    results = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                results.append(Result(**json.loads(line)))
            except (json.JSONDecodeError, TypeError):
                continue
    return results


def op_of(test: str, ops: Iterable[str]) -> str:
    """Return the op of a test by its file, ``test_<op>*.py``; empty for a test of all ops, such as dispatch."""
    stem = Path(test.split("::")[0]).stem.removeprefix("test_")
    return max((op for op in ops if stem == op or stem.startswith(f"{op}_")), key=len, default="")


def verdicts(results: Iterable[Result], ops: Iterable[str]) -> dict[str, str]:
    """Return for each op why it is not timed, or an empty string.

    An op is timed if a test passed and none failed; lack of memory, where tests share the device, is no failure. A
    failed test that belongs to no op counts for all.
    """
    ops, results = list(ops), list(results)
    reasons = {}
    for op in ops:
        own = [r for r in results if op_of(r.test, ops) in (op, "")]
        failed = [r.test for r in own if r.outcome == "failed"]
        passed = [r for r in own if r.outcome == "passed" and op_of(r.test, ops) == op]
        reasons[op] = f"failed: {', '.join(failed[:3])}" if failed else "" if passed else "no test passed"
        if len(failed) > 3:
            reasons[op] += f" and {len(failed) - 3} more"
    return reasons
