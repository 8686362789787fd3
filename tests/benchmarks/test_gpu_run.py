"""A run on a GPU loses nothing but what failed: order of cases, crashes, hangs, time limits, predicted duration.

Without a GPU: the device is stubbed, and child processes are Python scripts or replaced by their output files.
"""

import argparse
import importlib
import json
import os
import time
from pathlib import Path

import pytest
import torch

from benchmarks import harness, run_gpu
from benchmarks.cases import op_cases, op_names
from benchmarks.gpu import case_order, child_processes, duration, result_lines
from benchmarks.gpu.child_processes import Ended, Task, run_all, run_one
from benchmarks.gpu.gpu_summary import Report, markdown
from benchmarks.gpu.result_lines import Result, read_results, verdicts
from benchmarks.harness import DEVICE_LOST, STARTED, TIMED
from benchmarks.measurements import read_rows, write_rows

ABOUT = {"device": "NVIDIA H200", "torch": "2", "triton": "3", "commit": "abc1234", "python": "3"}


# Order


def test_every_case_is_ordered_and_edge_cases_are_never_timed():
    for op in op_names():
        cases = op_cases(op).CASES
        assert sorted(c.name for c in case_order.by_worth(op)) == sorted(c.name for c in cases)
        untimed = {name for where, name in case_order.UNTIMED if where == op}
        assert untimed <= {c.name for c in cases if not c.edge} - {name for _, name in case_order.RANKED}
        assert {c.name for c in case_order.timed_cases(op)} == {c.name for c in cases if not c.edge} - untimed
        assert case_order.best_cases(op) and not any(c.edge for c in case_order.best_cases(op))


def test_the_cases_of_the_goals_are_first():
    assert [case_order.timed_cases(op)[0].name for op in case_order.ops_by_worth()] == [
        "sevir-axial-t", "inception", "pixel-size", "sevir-attention", "sevir-student", "pixels-ddim", "sevir-hidden",
    ]  # fmt: skip
    known = {(op, case.name) for op in op_names() for case in op_cases(op).CASES}
    assert set(case_order.RANKED) <= known and len(set(case_order.RANKED)) == len(case_order.RANKED)


# Processes


def script(folder: Path, name: str, text: str, **more) -> Task:
    (folder / f"{name}.py").write_text(text)
    return Task(name=name, words=(name,), **more)


@pytest.fixture
def environment(tmp_path):
    return os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}


def test_a_hang_a_crash_and_a_missing_module_end_only_themselves(tmp_path, environment):
    file = tmp_path / "rows.csv"
    tasks = [
        script(tmp_path, "hangs", "import time; time.sleep(60)", progress=file, stall=0.4),
        script(tmp_path, "aborts", "import os; os.abort()"),
        script(tmp_path, "fails", "raise SystemExit(3)"),
        script(tmp_path, "works", "open('works.txt', 'w').close() if False else None"),
        Task(name="absent", words=("no_such_module_here",)),
    ]
    began, seen = time.perf_counter(), []
    ends = run_all(tasks, 30, workers=3, environment=environment, ended=lambda end: seen.append(end.task.name))
    reasons = {end.task.name: (end.status, end.reason) for end in ends}
    assert reasons["works"] == (0, "") and reasons["fails"] == (3, "exit status 3")
    assert reasons["aborts"][1] == "ended by signal SIGABRT" and reasons["absent"][0] == 1
    assert reasons["hangs"] == (None, "stopped after 0 s without a result")
    assert sorted(seen) == sorted(task.name for task in tasks) and time.perf_counter() - began < 20


def test_the_time_limit_stops_a_process_with_its_children(tmp_path, environment):
    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    text = f"{child} open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); p.wait()"
    tasks = [script(tmp_path, "parent", text), script(tmp_path, "later", "")]
    ends = run_all(tasks, 1.5, workers=1, environment=environment)
    assert [(end.task.name, end.status) for end in ends] == [("later", None), ("parent", None)]
    assert ends[0].reason.startswith("not started within")
    pid = int((tmp_path / "pid").read_text())
    status = Path(f"/proc/{pid}/status")
    deadline = time.perf_counter() + 10  # a kill takes effect when the process is scheduled
    while is_running(status) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not is_running(status), "the child was not stopped"


def is_running(status: Path) -> bool:
    try:
        return "State:\tZ" not in status.read_text()
    except OSError:
        return False


def test_switches_are_cleared(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SIMCAST_KERNELS", "reference")
    assert not {"TRITON_INTERPRET", "SIMCAST_KERNELS"} & set(child_processes.child_environment())


# Tests


def test_results_are_written_as_tests_end(tmp_path):
    """The process is killed in the middle of a test; what had ended is kept."""
    (tmp_path / "test_adaln_norm.py").write_text(
        "import os, signal, pytest, torch\n"
        "@pytest.mark.kernel\n@pytest.mark.gpu\ndef test_small(): pass\n"
        "@pytest.mark.gpu\ndef test_passes(): pass\n"
        "@pytest.mark.gpu\ndef test_fails(): assert 0\n"
        "@pytest.mark.gpu\ndef test_memory(): raise torch.cuda.OutOfMemoryError('CUDA out of memory')\n"
        "@pytest.mark.gpu\ndef test_skips(): pytest.skip()\n"
        "@pytest.mark.gpu\ndef test_dies(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "@pytest.mark.gpu\ndef test_never(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu: a\n  kernel: b\n")
    lines = tmp_path / "lines" / "a.jsonl"
    words = ("pytest", "-p", "benchmarks.gpu.result_lines", "-p", "no:cacheprovider", "--part", "real", "-q")
    end = run_one(Task(name="t", words=(*words, "--result-lines", str(lines), str(tmp_path))), 60)
    assert end.reason == "ended by signal SIGKILL"
    with lines.open("a") as file:
        file.write('{"test": "cut o')
    found = [(result.test.split("::")[1], result.outcome) for result in read_results([lines, tmp_path / "none"])]
    assert found == [
        ("test_passes", "passed"), ("test_fails", "failed"), ("test_memory", "memory"), ("test_skips", "skipped"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("outcomes", "excluded"),
    [
        ({"adaln_norm": "passed", "weighted_mse_operator": "passed"}, set()),
        ({"adaln_norm": "passed", "weighted_mse": "failed"}, {"weighted_mse"}),
        ({"adaln_norm": "passed"}, {"weighted_mse"}),
        ({"adaln_norm": "passed", "weighted_mse": "skipped"}, {"weighted_mse"}),
        ({"adaln_norm": "memory", "weighted_mse": "passed"}, {"adaln_norm"}),
        ({"adaln_norm": "passed", "weighted_mse": "passed", "dispatch": "failed"}, {"adaln_norm", "weighted_mse"}),
        ({}, {"adaln_norm", "weighted_mse"}),
    ],
)
def test_ops_are_timed_whose_tests_passed(outcomes, excluded):
    lines = [Result(test=f"tests/kernels/test_{k}.py::test_a", outcome=v, seconds=1) for k, v in outcomes.items()]
    found = verdicts(lines, ["adaln_norm", "weighted_mse"])
    assert {op for op, reason in found.items() if reason} == excluded


def test_memory_beside_a_passed_test_is_no_failure():
    lines = [Result(test=f"test_adaln_norm.py::test_{o}", outcome=o, seconds=1) for o in ("passed", "memory")]
    assert verdicts(lines, ["adaln_norm"]) == {"adaln_norm": ""}


def test_every_test_file_has_a_process_and_shards_cover_all(tmp_path):
    for part, shards in (("real", 1), ("small", run_gpu.SMALL_SHARDS["cuboid_attention"])):
        tasks = run_gpu.test_tasks(tmp_path, part, {})
        files = {word for task in tasks for word in task.words if word.startswith("tests/kernels")}
        assert files == {f"tests/kernels/{path.name}" for path in Path("tests/kernels").glob("test_*.py")}
        assert sum("cuboid_attention" in task.name for task in tasks) == shards
    items = [type("Item", (), {"get_closest_marker": lambda self, name: None})() for _ in range(7)]
    parts = []
    for shard in ("1/3", "2/3", "3/3"):
        config = type("Config", (), {"getoption": lambda self, name, s=shard: {"--part": "all", "--shard": s}[name]})()
        chosen = list(items)
        result_lines.pytest_collection_modifyitems(config, chosen)  # pyright: ignore[reportArgumentType]
        parts += chosen
    assert len(parts) == 7 and set(map(id, parts)) == set(map(id, items))


# The whole run


class FakeProcesses:
    """Replaces the child processes by the files that they write; hangs and crashes where told."""

    def __init__(self, faults=()):
        self.faults, self.began, self.words = dict(faults), [], []

    def run_all(self, tasks, seconds, *, workers, ended, environment=None):
        for task in tasks:
            ended(self.run_one(task, seconds))
        return []

    def run_one(self, task, seconds):
        self.began.append(task.name)
        self.words.append(task.words)
        options = dict(zip(task.words, task.words[1:], strict=False))
        status, reason = 0, ""
        if "--result-lines" in options:
            path = Path(options["--result-lines"])
            path.parent.mkdir(parents=True, exist_ok=True)
            files = [word for word in task.words if word.startswith("tests/kernels")]
            outcome = self.faults.get(task.name, "passed")
            path.write_text("".join(
                json.dumps({"test": f"{file}::test_a", "outcome": outcome, "seconds": 1}) + "\n" for file in files
            ))  # fmt: skip
        elif "--group" in options and "--check-only" not in task.words:
            status, reason = self.time(task.name, options)
        elif "launch_sweep" in task.words[0]:
            row = {"op": "adaln_norm", "kernel": "forward_kernel", "case": "pixel-size", "direction": "forward"}
            rows = [
                row | {"variant": v, "num_warps": w, "num_stages": 1, "p50": p, "unit": "us", "status": TIMED}
                for v, w, p in (("dispatched", 8, 9.0), ("swept", 4, 7.0))
            ]
            write_rows(
                [*rows, row | {"variant": "swept", "status": "OutOfResources: shared memory"}], Path(options["--csv"])
            )
        elif "profile_step" in task.words[0] and "--check-only" not in task.words:
            status = 1
            write_rows(
                [{"network": task.name, "batch": 8, "status": "not profiled, no pydantic"}], Path(options["--csv"])
            )
        return Ended(task=task, status=status, reason=reason, seconds=1.0)

    def time(self, op, options):
        path = Path(options["--csv"])
        rows = [dict(row) for row in read_rows(path)] if path.is_file() else []
        done = {(row["case"], row["provider"]) for row in rows}
        cases = (case_order.timed_cases if options["--group"] == "first" else case_order.best_cases)(op)
        names = ("triton", "pytorch") if options["--group"] == "first" else ("compiled", "flex")
        for case in cases:
            for provider in names:
                if (case.name, provider) in done:
                    continue
                row = {"op": op, "case": case.name, "provider": provider, "mode": "forward", "p50": 5.0}
                row |= {"fraction_of_copy": 0.5, "fraction_of_limit": 0.5, "limit": "memory", "p20": 5, "p80": 5}
                row |= {"gb_per_s": 1.0, "status": TIMED}
                fault = self.faults.get((op, case.name, provider))
                rows.append(row | ({"status": fault} if fault else {}))
                if fault in (STARTED, "device lost"):
                    write_rows(rows, path)
                if fault == STARTED:
                    return None, "stopped after 45 s without a result"
                if fault == "device lost":
                    return DEVICE_LOST, f"exit status {DEVICE_LOST}"
        write_rows(rows, path)
        return 0, ""


def whole_run(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run_gpu, "machine", lambda device: ABOUT)
    monkeypatch.setattr(run_gpu, "gpu_state", lambda: {"clocks.sm": "1980 MHz", "driver_version": "580.1"})
    monkeypatch.setattr(run_gpu, "counted", lambda **_: COUNTS)
    monkeypatch.setattr(run_gpu, "run_one", processes.run_one)
    monkeypatch.setattr(run_gpu, "run_all", processes.run_all)
    monkeypatch.setenv("RESULTS", str(tmp_path))
    status = run_gpu.main()
    name = "gpu-abc1234-NVIDIA-H200"
    return status, read_rows(tmp_path / f"{name}.csv"), (tmp_path / name / "summary.md").read_text()


COUNTS = duration.Counts(
    kernels=1, variants=1, real_tests=1, small_tests=1, baselines=1,
    first=dict.fromkeys(op_names(), 20.0), rest=dict.fromkeys(op_names(), 20.0),
)  # fmt: skip
EXPECTED = sum(
    2 * len(case_order.timed_cases(op)) + 2 * len(case_order.best_cases(op)) for op in op_names()
)  # fmt: skip


def test_a_run_times_every_case_in_order(tmp_path, monkeypatch, capsys):
    processes = FakeProcesses()
    status, rows, summary = whole_run(tmp_path, monkeypatch, processes)
    assert status == 0 and len(rows) == EXPECTED and {row["status"] for row in rows} == {TIMED}
    assert [row["case"] for row in rows[:4]] == ["sevir-axial-t"] * 4
    began = processes.began
    assert began[0] == "compile" and began[1].startswith("tests cuboid_attention real")
    timing = began.index("cuboid_attention")
    assert not any(name.startswith(("tests", "warm")) for name in began[timing:])
    ops = case_order.ops_by_worth()
    assert began[timing : timing + 2 * len(ops)] == [*ops, *ops]
    assert began[timing + 2 * len(ops) :] == ["sweep", "simvp", "earthformer"]
    for words in ("NVIDIA H200", "abc1234", "1980 MHz", "580.1", "pixel-size | 9.0 | 7.0 | 4 | 1", "no pydantic"):
        assert words in summary
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{EXPECTED} rows in")


def test_every_process_is_started_with_valid_arguments(tmp_path, monkeypatch):
    processes = FakeProcesses()
    whole_run(tmp_path, monkeypatch, processes)
    parse, parsed = argparse.ArgumentParser.parse_args, []

    class ParsedError(Exception):
        pass

    def only_parse(parser, arguments):
        parsed.append(parse(parser, arguments))
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    modules = [words for words in processes.words if words[0] != "pytest"]
    for module, *arguments in modules:
        imported = importlib.import_module(module)
        with pytest.raises(ParsedError):
            harness.main(imported.BENCHMARK, arguments) if hasattr(imported, "BENCHMARK") else imported.main(arguments)
    assert len(parsed) == len(modules) >= 4 * len(op_names())


def test_a_failing_baseline_a_hang_and_a_lost_device_lose_nothing_else(tmp_path, monkeypatch):
    faults = {
        ("cuboid_attention", "sevir-axial-t", "flex"): "BackendCompilerFailed: no",
        ("cuboid_attention", "sevir-axial-h", "triton"): STARTED,
        ("adaln_norm", "decoder", "pytorch"): "device lost",
        ("weighted_mse", "sevir-student", "compiled"): STARTED,
    }
    status, rows, summary = whole_run(tmp_path, monkeypatch, FakeProcesses(faults))
    assert status == 1 and len(rows) == EXPECTED
    bad = {(row["op"], row["case"], row["provider"]): row["status"] for row in rows if row["status"] != TIMED}
    assert set(bad) == set(faults), "nothing else is lost"
    assert bad["cuboid_attention", "sevir-axial-h", "triton"] == "stopped after 45 s without a result"
    for (op, case, provider), reason in bad.items():
        assert f"{op} {case}, {provider} forward: {reason}" in summary


def test_failed_tests_exclude_only_their_op(tmp_path, monkeypatch):
    processes = FakeProcesses({"tests weighted_mse small 1/1": "failed"})
    status, rows, summary = whole_run(tmp_path, monkeypatch, processes)
    assert status == 1 and {row["op"] for row in rows} == set(op_names()) - {"weighted_mse"}
    assert "weighted_mse: failed: tests/kernels/test_weighted_mse.py::test_a" in summary


def test_an_op_without_time_is_reported_and_the_next_are_timed(tmp_path, monkeypatch):
    processes = FakeProcesses()
    original = processes.time
    monkeypatch.setattr(
        processes, "time", lambda op, o: (1, "exit status 1") if op == "adaln_norm" else original(op, o)
    )
    _, rows, summary = whole_run(tmp_path, monkeypatch, processes)
    assert {row["op"] for row in rows} == set(op_names()) - {"adaln_norm"}
    assert "adaln_norm pixel-size, " in summary and "exit status 1" in summary
    assert processes.began.count("adaln_norm") == 2, "a process that does not start is not started again"


def test_a_stage_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    def fails(run):
        raise OSError("no space left on device")

    monkeypatch.setattr(run_gpu, "compile_kernels", fails)
    status, rows, summary = whole_run(tmp_path, monkeypatch, FakeProcesses())
    assert status == 0 and len(rows) == EXPECTED and "OSError: no space left on device" in summary


def test_no_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_gpu.main() == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_summary_of_nothing_is_valid():
    text = markdown(Report(ABOUT))
    assert text.count("No results.") == 5 and "Everything was measured." in text


# Duration


def test_the_present_cases_take_less_than_eight_minutes():
    counts = duration.counted(real_tests=run_gpu.REAL_TESTS, small_tests=run_gpu.SMALL_TESTS)
    predicted = duration.predicted_seconds(counts, cores=16)
    assert counts.kernels > 100 and counts.baselines >= len(op_names())
    assert predicted.total < duration.TOTAL_SECONDS, predicted
    assert predicted.total > predicted.first > 60
    assert run_gpu.TOTAL_SECONDS < duration.TOTAL_SECONDS
    slower = duration.predicted_seconds(counts, cores=2)
    assert slower.compile > predicted.compile and slower.tests > predicted.tests and slower.first == predicted.first


def test_each_count_makes_a_run_longer():
    base = duration.predicted_seconds(COUNTS, cores=4).total
    for change in ({"kernels": 100}, {"variants": 100}, {"small_tests": 900}, {"networks": 3}, {"first": {"a": 900.0}}):
        more = duration.predicted_seconds(duration.Counts(**{**vars(COUNTS), **change}), cores=4).total
        assert more > base, change
