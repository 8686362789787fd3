"""Whole models and their blocks on our kernels: in the interpreter, in the process of kernel tests, or on a GPU."""

import pytest

pytest.importorskip("simcast_hpc")

import torch

from simcast_kernels.dispatch import VARIABLE, interpreter_is_on


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """On a CUDA machine every test of kernels is a GPU test."""
    if torch.cuda.is_available() and not interpreter_is_on():
        for item in items:
            if item.get_closest_marker("kernel"):
                item.add_marker("gpu")


@pytest.fixture
def kernel_device(monkeypatch) -> str:
    """The device on which kernels run here; ops take their kernels."""
    if not interpreter_is_on() and not torch.cuda.is_available():
        pytest.skip("no CUDA device; on a CPU, start a process of kernel tests alone with TRITON_INTERPRET=1")
    monkeypatch.setenv(VARIABLE, "triton")
    return "cpu" if interpreter_is_on() else "cuda"
