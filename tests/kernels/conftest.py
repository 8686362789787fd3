"""Where kernel tests run: on a CUDA device, or on a CPU in a process started with ``TRITON_INTERPRET=1``.

That variable is set by whoever starts the process, never here: set here it would reach every other test of the
process and every child it starts. ``SIMCAST_KERNELS`` is set for one test at a time.
"""

import pytest
import torch

from simcast_kernels.dispatch import VARIABLE, interpreter_is_on


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """On a CUDA machine every kernel test is a GPU test, so that ``-m gpu`` there runs them all."""
    if torch.cuda.is_available() and not interpreter_is_on():
        for item in items:
            if item.get_closest_marker("kernel"):
                item.add_marker("gpu")


@pytest.fixture
def kernel_device(monkeypatch) -> str:
    """The device on which kernels run here; every op called in the test takes its kernel."""
    monkeypatch.setenv(VARIABLE, "triton")
    if interpreter_is_on():
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("no CUDA device; on a CPU, start a process of kernel tests alone with TRITON_INTERPRET=1")


@pytest.fixture
def cuda(monkeypatch) -> str:
    """The CUDA device; every op called in the test takes its kernel."""
    if not torch.cuda.is_available() or interpreter_is_on():
        pytest.skip("needs a CUDA device and no TRITON_INTERPRET")
    monkeypatch.setenv(VARIABLE, "triton")
    return "cuda"


@pytest.fixture
def reference_device(monkeypatch) -> str:
    """The CPU; every op called in the test takes its twin."""
    monkeypatch.setenv(VARIABLE, "reference")
    return "cpu"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill memory that PyTorch hands out uninitialised with NaN (255 for bytes), so an unwritten output is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    yield
    torch.use_deterministic_algorithms(before)
