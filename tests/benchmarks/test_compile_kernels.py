"""Every op compiles within budget for every target, without a GPU."""

import dataclasses

import pytest
import triton

from benchmarks import compile_baseline
from benchmarks.cases import op_cases, op_names
from benchmarks.compile_kernels import TARGETS, Job, Row, compile_job, jobs, main, marks, over_budget
from simcast_kernels.dispatch import interpreter_is_on

needs_compiler = pytest.mark.skipif(interpreter_is_on(), reason="TRITON_INTERPRET=1 turns kernels into Python")
ROW = Row(
    op="op",
    kernel="kernel",
    case="case",
    direction="forward",
    target="sm_90",
    options="",
    real=True,
    dispatched=True,
    registers=40,
    spill_bytes=0,
    shared_bytes=0,
    marks="",
    seconds=1.0,
    spills_expected="",
)
ONE_EACH = [
    job for job in jobs(op_names(), list(TARGETS), directions=("forward", "backward"), first_only=True)
    if job.direction in op_cases(job.op).launches(op_cases(job.op).CASES[0])
]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("job", ONE_EACH, ids="-".join)
def test_dispatched_kernel_is_within_budget(job, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows = compile_job(job)
    assert rows, "what a case message it launches"
    for row in rows:
        assert not over_budget(row)
        assert 0 < row.registers <= (512 if row.target == "gfx942" else 255)
    committed = {entry.key: entry for entry in compile_baseline.read()}
    compiled = [compile_baseline.entry_of(row, triton=triton.__version__) for row in rows]
    before = [committed[entry.key] for entry in compiled if entry.key in committed]
    assert len(before) == len(compiled), "a launch that benchmarks/compiled.csv lacks: compile_kernels --update"
    if {entry.triton for entry in before} != {triton.__version__}:
        pytest.skip(f"within budget; benchmarks/compiled.csv holds rows of triton {before[0].triton} to compare with")
    assert compile_baseline.compare(before, compiled).worse == []


def test_every_op_has_a_forward_that_is_compiled():
    assert {job.op for job in ONE_EACH if job.direction == "forward"} == set(op_names())


@needs_compiler
def test_weighted_mse_moves_memory_in_16_byte_accesses(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (row,) = compile_job(Job("weighted_mse", "sevir-student", "forward", "sm_90"))
    counts = dict(mark.split(":") for mark in row.marks.split())
    steps = dict(option.split("=") for option in row.options.split())["STEPS"]
    assert counts["ld16"] == counts["st16"] == steps, (
        "each step loads 4 fp32 predictions and stores 4 gradients at once"
    )
    assert int(counts["bar"]) <= 2, "the sum over the warps alone; more means exchanges through shared memory"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared_bytes": 232_449}, "232449 bytes of shared memory, sm_90 has 232448"),
        ({"shared_bytes": 65_537, "target": "gfx942"}, "gfx942 has 65536"),
        ({"shared_bytes": 232_449, "spills_expected": "a reason"}, "sm_90 has 232448"),
        ({"spill_bytes": 4}, "4 bytes spilled, sm_90 allows 0"),
        ({"spill_bytes": 4, "target": "sm_100"}, "sm_100 allows 0"),
        ({"spill_bytes": 68, "target": "sm_80"}, "sm_80 allows 64"),
    ],
)
def test_budget_rejects(change, message):
    assert message in over_budget(dataclasses.replace(ROW, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"shared_bytes": 232_448},
        {"spill_bytes": 64, "target": "sm_80"},
        {"spill_bytes": 5000, "target": "gfx942"},
        {"spill_bytes": 5000, "dispatched": False},
        {"spill_bytes": 5000, "spills_expected": "a flash backward would not"},
    ],
)
def test_budget_accepts(change):
    assert over_budget(dataclasses.replace(ROW, **change)) == ""


def test_row_over_budget_sets_the_exit_status(tmp_path, monkeypatch, capsys):
    rows = [ROW, dataclasses.replace(ROW, spill_bytes=12)]
    monkeypatch.setattr("benchmarks.compile_kernels.compile_all", lambda work, workers: rows)
    monkeypatch.setattr("benchmarks.compile_kernels.interpreter_is_on", lambda: False)
    monkeypatch.setattr("benchmarks.compile_kernels.against_committed", lambda rows, update: 0)
    assert main(["--csv", str(tmp_path / "out.csv")]) == 1
    assert "12 bytes spilled" in capsys.readouterr().out
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3
    del rows[1]
    assert main(["--csv", str(tmp_path / "out.csv")]) == 0


def test_marks_count_instructions_by_width():
    assembly = "@%p1 ld.global.v4.b32 { a, b, c, d }, [p]; ld.global.b32 { a }, [q]; st.global.v4.b32 [r], { a };"
    assert marks(assembly) == "ld16:1 ld:2 st16:1 st:1"
    copies = "cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2; cp.async.ca.shared.global [a], [b], 0x4;"
    assert marks(copies) == "cp16:1 cp:2"
    assert marks("global_load_dwordx4 v[0:3]\n v_mfma_f32_32x32x8_bf16 a\n s_barrier") == "mfma:1 ld16:1 ld:1 bar:1"


def test_every_case_direction_and_target_is_a_job():
    every = jobs(["weighted_mse"], ["sm_90", "gfx942"], directions=("forward", "backward"))
    assert len(every) == len(set(every)) >= 4 * 8


def test_interpreter_process_does_not_compile(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="unset it to compile"):
        compile_job(ONE_EACH[0])
