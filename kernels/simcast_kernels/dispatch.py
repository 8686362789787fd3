"""Select the implementation of a call, the PyTorch reference or the Triton kernel, and launch kernels.

``SIMCAST_KERNELS`` is read at every call, so tests and debugging sessions can change it while the program runs:

============ ======================= =======================================================
value        tensors on CUDA         tensors on other devices
============ ======================= =======================================================
unset, empty kernel                  reference
reference    reference               reference
triton       kernel                  kernel if ``TRITON_INTERPRET=1``, otherwise an error
============ ======================= =======================================================

Under ``torch.export`` a call is traced as the PyTorch operations of its reference, not as a custom operator, so the
exported program runs where this package is not installed (``sampler_step`` and ``weighted_mse`` are not used in
exported networks and stay custom operators).
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Implementation = Literal["reference", "triton"]
VARIABLE = "SIMCAST_KERNELS"
IMPLEMENTATIONS: tuple[Implementation, ...] = ("reference", "triton")
_warned: set[str] = set()
_meta_is_cuda = False


def select_implementation(op: str, device: torch.device) -> Implementation:
    """Return the implementation for a call of ``op`` with tensors on ``device``.

    Call it inside the custom operator, which ``torch.compile`` does not trace.

    Args:
        op: name of the op, for the error message.
        device: device of the op's tensors.

    Raises:
        ValueError: ``SIMCAST_KERNELS`` has an unknown value.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no Triton kernel can run.
    """
    requested = os.environ.get(VARIABLE, "")
    if requested not in ("", *IMPLEMENTATIONS):
        raise ValueError(f"{VARIABLE}={requested!r} is invalid; set it to {' or '.join(IMPLEMENTATIONS)}, or unset it")
    if requested == "reference" or (not requested and device.type != "cuda"):
        return "reference"
    if device.type != "cuda" and not interpreter_is_on():
        raise RuntimeError(
            f"{VARIABLE}=triton, but the tensors of {op} are on {device}: a kernel requires a CUDA device, or "
            f"TRITON_INTERPRET=1 set before the program starts (slow, for tests); unset {VARIABLE} to use the reference"
        )
    return "triton"


def interpreter_is_on() -> bool:
    """Return whether this process runs Triton kernels in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextlib.contextmanager
def meta_as_cuda() -> Iterator[None]:
    """Let tensors on the meta device take the paths of CUDA tensors, to count what a GPU computes and stores."""
    global _meta_is_cuda
    before, _meta_is_cuda = _meta_is_cuda, True
    try:
        yield
    finally:
        _meta_is_cuda = before


def follows_cuda(tensor: torch.Tensor) -> bool:
    """Return whether a tensor takes the paths of CUDA: it is on CUDA, or on the meta device in :func:`meta_as_cuda`."""
    return tensor.device.type == "cuda" or (tensor.is_meta and _meta_is_cuda)


def runs_kernel(op: str, tensor: torch.Tensor) -> bool:
    """Return whether a call of ``op`` with a tensor runs a kernel; on the meta device only in :func:`meta_as_cuda`."""
    if tensor.is_meta:
        return follows_cuda(tensor) and select_implementation(op, torch.device("cuda")) == "triton"
    return select_implementation(op, tensor.device) == "triton"


def warn_of_fallback(op: str, reason: str) -> None:
    """Warn, once per op and reason, that a call on a GPU runs the slower PyTorch reference."""
    if (text := f"{op} runs its slower PyTorch reference: {reason}") not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=3)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context without autocast for the device; nothing is entered where autocast is off."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel launch as data: what a call runs is what the ahead-of-time compile table compiles.

    Attributes:
        kernel: the jitted function.
        grid: number of programs per grid axis.
        arguments: run-time arguments, passed by position. Tensors may be on ``meta``: such a launch can be compiled,
            not run.
        options: the kernel's ``constexpr`` values and the launch options (``num_warps``, ``num_stages``).
        dispatched: False for a candidate that the compile table includes but no call runs by default.
        rocm_options: options that replace those of ``options`` on ROCm.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    dispatched: bool = True
    rocm_options: Mapping[str, Any] = field(default_factory=dict)

    def options_for(self, backend: str) -> dict[str, Any]:
        """Return the options for a backend of Triton, ``cuda`` or ``hip`` (ROCm)."""
        return {**self.options, **(self.rocm_options if backend == "hip" else {})}

    def run(self) -> None:
        """Launch the kernel on the device of its first tensor argument, on the current stream of that device."""
        device = next(a.device for a in self.arguments if isinstance(a, torch.Tensor))
        # Triton launches on the current device, which can differ from that of the tensors in a multi-GPU process.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](*self.arguments, **self.options_for("hip" if torch.version.hip else "cuda"))
