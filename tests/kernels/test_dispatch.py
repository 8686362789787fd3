"""Which body a call takes, and what importing the package costs."""

import subprocess
import sys

import pytest
import torch

from simcast_kernels.adaln_norm import adaln_norm
from simcast_kernels.cuboid_attention import cuboid_attention
from simcast_kernels.dispatch import VARIABLE, body_for, twins_inlined
from simcast_kernels.layer_norm_linear import layer_norm_linear
from simcast_kernels.registry import op_cases, op_names
from simcast_kernels.weighted_mse import weighted_mse
from simcast_kernels.weighted_mse.cases import CASES

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("value", "interpret", "cpu", "gpu"),
    [
        (None, None, "reference", "triton"),
        ("", None, "reference", "triton"),
        (None, "1", "reference", "triton"),
        ("reference", "1", "reference", "reference"),
        ("triton", "1", "triton", "triton"),
    ],
)
def test_body_follows_the_variable_and_the_device(value, interpret, cpu, gpu, monkeypatch):
    for name, content in ((VARIABLE, value), ("TRITON_INTERPRET", interpret)):
        monkeypatch.delenv(name, raising=False)
        if content is not None:
            monkeypatch.setenv(name, content)
    assert (body_for("op", CPU), body_for("op", GPU)) == (cpu, gpu)


def test_unknown_body_is_rejected_by_name(monkeypatch):
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ValueError, match="SIMCAST_KERNELS='cuda' is unknown; set it to reference or triton"):
        weighted_mse(torch.zeros(3), torch.zeros(3), thresholds=(), weights=(1.0,))


def test_a_kernel_on_a_cpu_says_what_it_needs(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"weighted_mse got tensors on cpu.*TRITON_INTERPRET=1"):
        weighted_mse(torch.zeros(3), torch.zeros(3), thresholds=(), weights=(1.0,))


@pytest.mark.kernel
def test_each_call_reads_the_variable(kernel_device, monkeypatch):
    from simcast_kernels.weighted_mse import kernel

    calls, run = [], kernel.loss_and_gradient
    monkeypatch.setattr(kernel, "loss_and_gradient", lambda *a, **k: calls.append(1) or run(*a, **k))
    counts = []
    for body in ("reference", "triton", "reference"):
        monkeypatch.setenv(VARIABLE, body)
        weighted_mse(
            torch.zeros(3, device=kernel_device), torch.ones(3, device=kernel_device), thresholds=(), weights=[1]
        )
        counts.append(len(calls))
    assert counts == [0, 1, 1]


def test_inlined_twins_are_the_ops_without_a_custom_operator():
    torch.manual_seed(0)
    x, qkv = torch.randn(2, 5, 8), torch.randn(2, 3, 4, 4, 24)
    shift, scale, gate, branch = torch.randn(2, 8), torch.randn(2, 8), torch.randn(2, 8), torch.randn(2, 5, 8)
    weights = [torch.randn(4, 8), torch.randn(6, 8)]
    options = {"heads": 2, "cuboid": (3, 2, 2), "strategy": ("l", "d", "l"), "shift": (0, 0, 1)}

    def call():
        return [
            cuboid_attention(qkv, **options),
            *layer_norm_linear(x, shift[0], scale[0], weights=weights),
            *adaln_norm(x, shift, scale, branch=branch, gate=gate),
            *adaln_norm(x, shift, scale),
        ]

    with torch.profiler.profile() as apart:
        wanted = call()
    with twins_inlined(), torch.profiler.profile() as inlined:
        got = call()
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    ours = [{event.name for event in seen.events() if "simcast_kernels::" in event.name} for seen in (apart, inlined)]
    assert len(ours[0]) == 3 and ours[1] == set()


def test_importing_an_op_loads_no_triton():
    code = "import sys, simcast_kernels.weighted_mse as op; sys.exit('triton.language' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_registry_finds_ops_and_rejects_others():
    assert "weighted_mse" in op_names()
    for op in op_names():
        names = [case.name for case in op_cases(op).CASES]
        assert len(set(names)) == len(names)
    with pytest.raises(KeyError, match=r"no op 'nothing'; there are .*weighted_mse"):
        op_cases("nothing")


def test_bytes_of_a_case_are_those_of_its_tensors():
    for case in (c for c in CASES if c.numel <= 120_000):
        prediction, target, mask = case.tensors("cpu", seed=0)
        read = sum(t.numel() * t.element_size() for t in (prediction, target, mask) if t is not None)
        assert case.bytes_moved("inference") == read
        assert case.bytes_moved("forward") == read + prediction.nbytes
        assert case.bytes_moved("backward") == 2 * prediction.nbytes
