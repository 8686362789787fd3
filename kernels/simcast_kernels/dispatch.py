"""Which body a call takes: the PyTorch twin or the Triton kernel.

``SIMCAST_KERNELS`` is read at every call, so a test or a debugging session may change it in mid-program:

============ ======================= =======================================================
value        tensors on CUDA         tensors elsewhere
============ ======================= =======================================================
unset, empty kernel                  twin
reference    twin                    twin
triton       kernel                  kernel where ``TRITON_INTERPRET=1``, else an error
============ ======================= =======================================================

Within :func:`twins_inlined` there is no choice: a call is the operations of its twin, and no custom operator.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Body = Literal["reference", "triton"]
VARIABLE = "SIMCAST_KERNELS"
BODIES: tuple[Body, ...] = ("reference", "triton")
# A plain name of the module: `torch.compile` reads and guards it, which it cannot do with a context variable.
_inlined = False


def body_for(op: str, device: torch.device) -> Body:
    """Return the body that a call of ``op`` with tensors on ``device`` takes.

    Call it inside the custom operator, not around it: there it is no part of what ``torch.compile`` traces.

    Args:
        op: the op's name, for the error.
        device: where the op's tensors are.

    Raises:
        ValueError: ``SIMCAST_KERNELS`` holds an unknown name.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no Triton kernel can run.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", *BODIES):
        raise ValueError(f"{VARIABLE}={wanted!r} is unknown; set it to {' or '.join(BODIES)}, or unset it")
    if wanted == "reference" or (not wanted and device.type != "cuda"):
        return "reference"
    if device.type != "cuda" and not interpreter_is_on():
        raise RuntimeError(
            f"{VARIABLE}=triton, but {op} got tensors on {device}: a kernel needs a CUDA device, or TRITON_INTERPRET=1 "
            f"set before the program starts (slow, for tests); unset {VARIABLE} to take the reference"
        )
    return "triton"


def interpreter_is_on() -> bool:
    """Return whether this process runs Triton kernels in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def twins_inlined() -> Iterator[None]:
    """Within, the ops of a forward are PyTorch's own operations, those of their twins.

    A program that is captured so runs where this package is not installed. Not for training: the twins' operations
    keep for the backward what the custom operators compute again. It holds for the whole process, all threads.
    """
    global _inlined
    before, _inlined = _inlined, True
    try:
        yield
    finally:
        _inlined = before


def are_twins_inlined() -> bool:
    """Return whether this is within :func:`twins_inlined`."""
    return _inlined
