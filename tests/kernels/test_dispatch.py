"""Selection of the implementation, the public names of the package, export, and the registry of test cases."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import simcast_kernels as sk
from benchmarks.cases import op_cases, op_names
from benchmarks.cases.weighted_mse_cases import CASES
from simcast_kernels.dispatch import VARIABLE, select_implementation
from simcast_kernels.weighted_mse import weighted_mse

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
def test_implementation_follows_variable_and_device(value, interpret, cpu, gpu, monkeypatch):
    for name, content in ((VARIABLE, value), ("TRITON_INTERPRET", interpret)):
        monkeypatch.delenv(name, raising=False)
        if content is not None:
            monkeypatch.setenv(name, content)
    assert (select_implementation("op", CPU), select_implementation("op", GPU)) == (cpu, gpu)


def test_rejects_unknown_implementation(monkeypatch):
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ValueError, match="SIMCAST_KERNELS='cuda' is invalid; set it to reference or triton"):
        weighted_mse(torch.zeros(3), torch.zeros(3), thresholds=(), weights=(1.0,))


def test_rejects_kernel_on_cpu_without_interpreter(monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"the tensors of weighted_mse are on cpu.*TRITON_INTERPRET=1"):
        weighted_mse(torch.zeros(3), torch.zeros(3), thresholds=(), weights=(1.0,))


@pytest.mark.kernel
def test_each_call_reads_the_variable(kernel_device, monkeypatch):
    from simcast_kernels.weighted_mse import kernel

    calls, run = [], kernel.loss_and_gradient
    monkeypatch.setattr(kernel, "loss_and_gradient", lambda *a, **k: calls.append(1) or run(*a, **k))
    counts = []
    for implementation in ("reference", "triton", "reference"):
        monkeypatch.setenv(VARIABLE, implementation)
        weighted_mse(
            torch.zeros(3, device=kernel_device), torch.ones(3, device=kernel_device), thresholds=(), weights=[1]
        )
        counts.append(len(calls))
    assert counts == [0, 1, 1]


class ThreeOps(nn.Module):
    """Call every op that networks export."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.randn(2, 3, 4, 4, 24)
        self.shift, self.scale, self.gate, self.branch = (torch.randn(2, *more, 8) for more in ((), (), (), (5,)))
        self.weights = [torch.randn(4, 8), torch.randn(6, 8)]

    def forward(self, x):
        options = {"heads": 2, "cuboid": (3, 2, 2), "strategy": ("l", "d", "l"), "shift": (0, 0, 1)}
        return (
            sk.cuboid_attention(self.qkv + x.sum(), **options),
            *sk.layer_norm_linear(x, self.shift[0], self.scale[0], weights=self.weights),
            *sk.adaln_norm(x, self.shift, self.scale, branch=self.branch, gate=self.gate),
            *sk.adaln_norm(x, self.shift, self.scale),
        )


def test_export_traces_the_reference_operations():
    module, x = ThreeOps(), torch.randn(2, 5, 8)
    with torch.profiler.profile() as profile:
        results = module(x)
    assert len({event.name for event in profile.events() if "simcast_kernels::" in event.name}) == 3
    program = torch.export.export(module, (x,))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets and not [name for name in targets if "simcast_kernels" in name]
    assert all(torch.equal(one, other) for one, other in zip(program.module()(x), results, strict=True))


IMPORTS = """
import sys, simcast_kernels as sk
assert "torch" not in sys.modules and sk.__version__
from simcast_kernels.weighted_mse import weighted_mse
from simcast_kernels.weighted_mse.reference import weighted_mse_reference
assert sk.weighted_mse is weighted_mse and set(sk.__all__) <= set(dir(sk))
assert "triton.language" not in sys.modules
assert all(callable(getattr(sk, name)) for name in sk.__all__ if name != "__version__")
"""


def test_public_names_are_lazy_functions():
    done = subprocess.run([sys.executable, "-c", IMPORTS], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sk.nothing


def test_cases_are_found_by_op():
    assert "weighted_mse" in op_names()
    for op in op_names():
        names = [case.name for case in op_cases(op).CASES]
        assert len(set(names)) == len(names)
    with pytest.raises(KeyError, match=r"unknown op 'nothing'; choose one of .*weighted_mse"):
        op_cases("nothing")


def test_bytes_of_a_case_equal_those_of_its_tensors():
    for case in (c for c in CASES if c.numel <= 120_000):
        prediction, target, mask = case.tensors("cpu", seed=0)
        read = sum(t.numel() * t.element_size() for t in (prediction, target, mask) if t is not None)
        assert case.bytes_moved("inference") == read
        assert case.bytes_moved("forward") == read + prediction.nbytes
        assert case.bytes_moved("backward") == 2 * prediction.nbytes
