"""Kernels compiled ahead of a run are found in the cache by a call of the op; the sweep and the profiled step."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cases import op_cases, op_names
from benchmarks.cases.weighted_mse_cases import CASES
from benchmarks.compile_kernels import TARGETS
from benchmarks.gpu import launch_sweep, precompile, profile_step
from benchmarks.gpu.precompile import Kernel, compile_kernel, compiled_before, kernels, sweep_kernels
from simcast_kernels.dispatch import Launch, interpreter_is_on
from simcast_kernels.weighted_mse import kernel as loss_kernel
from simcast_kernels.weighted_mse import weighted_mse

needs_compiler = pytest.mark.skipif(interpreter_is_on(), reason="TRITON_INTERPRET=1 turns kernels into Python")
SM_90 = TARGETS["sm_90"]


def test_every_launch_of_every_case_is_compiled_once():
    work = kernels(op_names())
    assert len(set(work)) == len(work)
    launches = [
        launch for op in op_names() for case in op_cases(op).CASES
        for group in op_cases(op).launches(case).values() for launch in group
    ]  # fmt: skip
    chosen = {precompile.signature(op_cases(k.op).launches(_case(k))[k.direction][k.number]) for k in work}
    assert chosen == {precompile.signature(launch) for launch in launches} and len(chosen) == len(work)
    assert (work[0].op, work[0].case) == ("cuboid_attention", "sevir-axial-t")
    assert {k.op for k in sweep_kernels(op_names())} == set(op_names())


def _case(kernel: Kernel):
    return next(case for case in op_cases(kernel.op).CASES if case.name == kernel.case)


def test_signature_depends_on_alignment_and_specialized_integers():
    aligned = torch.empty(64, dtype=torch.bfloat16, device="meta")

    def signature(*arguments, **options):
        launch = Launch(kernel=loss_kernel._loss_kernel, grid=(1,), arguments=arguments, options=options)
        return precompile.signature(launch)

    assert signature(aligned) == signature(aligned[8:]) != signature(aligned[4:])
    assert signature(32) == signature(48) != signature(33)
    assert (
        len({signature(1), signature(33), signature(2**40 + 1), signature(1.0), signature(None), signature(True)}) == 6
    )
    assert signature(aligned, num_warps=4) != signature(aligned, num_warps=8)


@needs_compiler
def test_a_call_in_another_process_finds_the_compiled_kernels(tmp_path, monkeypatch):
    """The key of the cache is that of the launches that the op makes on real tensors, not only of the case's."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    code = (
        "from benchmarks.compile_kernels import TARGETS\n"
        "from benchmarks.gpu.precompile import Kernel, compile_kernel\n"
        "for direction in ('forward', 'backward'):\n"
        "    row = compile_kernel(Kernel('weighted_mse', 'quickstart', direction, 0), TARGETS['sm_90'])\n"
        "    assert not row['failure'] and not row['cached'], row\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SIMCAST_KERNELS", "triton")
    monkeypatch.setattr("simcast_kernels.dispatch.interpreter_is_on", lambda: True)
    hits = {}

    def run(launch: Launch) -> None:
        hits[launch.kernel.__name__] = compiled_before(launch, SM_90)

    monkeypatch.setattr(Launch, "run", run)
    case = next(c for c in CASES if c.name == "quickstart")
    tensors = case.tensors("cpu", seed=0)
    tensors[0].requires_grad_(True)
    loss = weighted_mse(tensors[0], tensors[1], mask=tensors[2], **case.table)
    torch.autograd.grad(loss, tensors[0])
    assert len(hits) == 2 and all(hits.values()), hits


@needs_compiler
def test_a_kernel_that_does_not_compile_is_a_row(monkeypatch):
    def fails(launch, target):
        raise RuntimeError("ptxas\nfailed")

    monkeypatch.setattr(precompile, "compile_launch", fails)
    row = compile_kernel(Kernel("weighted_mse", "odd", "forward", 0), SM_90)
    assert row["failure"] == "RuntimeError: ptxas" and row["cached"] is False


def test_variants_have_every_number_of_warps_and_stages():
    swept = launch_sweep.swept_launches("cuboid_attention")
    names = {one.launch.kernel.__name__ for one in swept}
    assert {"forward_kernel", "backward_kernel", "rows_kernel", "columns_kernel", "bias_kernel"} <= names
    assert len(names) == len(swept) and swept[0].case.name == "sevir-axial-t"
    pairs = {(v.options["num_warps"], v.options["num_stages"]) for v in launch_sweep.variants(swept[0].launch)}
    assert len(pairs) == len(launch_sweep.WARPS) * len(launch_sweep.STAGES)
    assert all(v.arguments is swept[0].launch.arguments for v in launch_sweep.variants(swept[0].launch))


def test_the_sweep_runs_the_recorded_launches_and_reports_failing_variants(tmp_path):
    """In Triton's interpreter, in a process of its own, on the smallest case."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from benchmarks.cases import op_cases\n"
        "from benchmarks.gpu import launch_sweep\n"
        "from benchmarks.measurements import write_rows\n"
        "from simcast_kernels.dispatch import Launch\n"
        "launch_sweep.timed_cases = lambda op: [c for c in op_cases(op).CASES if c.name == 'odd']\n"
        "run = Launch.run\n"
        "def failing(launch):\n"
        "    if launch.options.get('num_warps') == 2: raise RuntimeError('no\\nresources')\n"
        "    run(launch)\n"
        "Launch.run = failing\n"
        "launch_sweep.WARPS, launch_sweep.STAGES = (1, 2), (1,)\n"
        "write_rows(list(launch_sweep.sweep('weighted_mse', 'cpu', seconds=0)), Path(sys.argv[1]))\n"
    )
    path = tmp_path / "sweep.csv"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["kernel"], row["variant"], row["num_warps"], row["status"]) for row in rows]
    for kernel in {row["kernel"] for row in rows}:
        own = [one[1:] for one in found if one[0] == kernel]
        assert own[0][0] == "dispatched" and own[0][2] == "timed"
        assert own[1:] == [("swept", "1", "timed"), ("swept", "2", "RuntimeError: no")]
    assert {row["direction"] for row in rows} == {"forward", "backward"}


def test_a_profiled_step_lists_its_longest_operators(tmp_path, monkeypatch):
    def step(network, device, *, batch, size):
        if batch > 2:
            raise torch.cuda.OutOfMemoryError("too large")
        x = torch.ones(batch, size)
        return lambda: x.cos().sin()

    monkeypatch.setattr(profile_step, "training_step", step)
    trace = tmp_path / "trace.json.gz"
    rows = profile_step.rows_of("simvp", "cpu", batch=8, size=16, trace=trace)
    assert rows[0]["kernel"] == "step" and rows[0]["batch"] == 2 and rows[0]["step_ms"] > 0
    assert {"aten::cos", "aten::sin"} <= {row["kernel"] for row in rows} and trace.stat().st_size > 0
    assert sum(row["share"] for row in rows[1:]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("error", [ImportError("No module named 'pydantic'"), RuntimeError("no"), MemoryError()])
def test_a_step_that_cannot_run_is_a_row_with_the_reason(error, tmp_path, monkeypatch):
    def step(*_, **__):
        raise error

    monkeypatch.setattr(profile_step, "training_step", step)
    path = Path(tmp_path, "p.csv")
    assert profile_step.main(["--network", "simvp", "--device", "cpu", "--csv", str(path)]) == 1
    with path.open() as file:
        (row,) = csv.DictReader(file)
    assert ("pydantic" if isinstance(error, ImportError) else type(error).__name__) in row["status"]
