"""Devices of tests that run models on the kernels: the interpreter, or a GPU."""

import pytest

pytest.importorskip("simcast_hpc")

import torch

from simcast_kernels.dispatch import VARIABLE, interpreter_is_on


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark every kernel test as a GPU test on a CUDA machine."""
    if torch.cuda.is_available() and not interpreter_is_on():
        for item in items:
            if item.get_closest_marker("kernel"):
                item.add_marker("gpu")


@pytest.fixture
def kernel_device(monkeypatch) -> str:
    """The device on which kernels run here; every op runs its kernel."""
    if not interpreter_is_on() and not torch.cuda.is_available():
        pytest.skip("no CUDA device; on a CPU, set TRITON_INTERPRET=1 before starting a process of kernel tests")
    monkeypatch.setenv(VARIABLE, "triton")
    return "cpu" if interpreter_is_on() else "cuda"
