"""Devices of kernel tests: a CUDA device, or a CPU in a process started with ``TRITON_INTERPRET=1``.

The variable must be set before the process starts; set here it would affect all other tests and child processes.
``SIMCAST_KERNELS`` is set for one test at a time.
"""

import pytest
import torch

from simcast_kernels.dispatch import VARIABLE, interpreter_is_on


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark every kernel test as a GPU test on a CUDA machine, so that ``-m gpu`` runs them all."""
    if torch.cuda.is_available() and not interpreter_is_on():
        for item in items:
            if item.get_closest_marker("kernel"):
                item.add_marker("gpu")


@pytest.fixture
def kernel_device(monkeypatch) -> str:
    """The device on which kernels run here; every op of the test runs its kernel."""
    monkeypatch.setenv(VARIABLE, "triton")
    if interpreter_is_on():
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("no CUDA device; on a CPU, set TRITON_INTERPRET=1 before starting a process of kernel tests")


@pytest.fixture
def cuda(monkeypatch) -> str:
    """The CUDA device; every op of the test runs its kernel."""
    if not torch.cuda.is_available() or interpreter_is_on():
        pytest.skip("needs a CUDA device and no TRITON_INTERPRET")
    monkeypatch.setenv(VARIABLE, "triton")
    return "cuda"


@pytest.fixture
def reference_device(monkeypatch) -> str:
    """The CPU; every op of the test runs its reference."""
    monkeypatch.setenv(VARIABLE, "reference")
    return "cpu"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill uninitialized PyTorch memory with NaN (255 for bytes), so that tests detect unwritten outputs."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    yield
    torch.use_deterministic_algorithms(before)
