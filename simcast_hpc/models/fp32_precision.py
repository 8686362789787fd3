"""Precision of fp32 convolutions and matmuls: IEEE fp32, or TF32 where a training run asks for it.

On NVIDIA GPUs from Ampere on, PyTorch computes fp32 convolutions in TF32 by default: inputs are rounded to 10 bits of
mantissa, which changes a forecast by up to 0.35 encoded values. The setting belongs to the process. It is changed only
while a network of this project runs, and the caller's setting is restored, because ``simcast_hpc`` is also a library. A
CUDA graph keeps the precision with which it was captured. Triton kernels always compute fp32 in IEEE.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class _Setting(NamedTuple):
    """All settings of PyTorch; None where the caller mixed both interfaces and the older one cannot be read."""

    cudnn_allow_tf32: bool | None
    matmul_precision: str | None
    by_operation: tuple[str, ...]


# cuDNN's convolutions and recurrences, cuBLAS' matmuls, then those of oneDNN, which can use TF32 and bf16 on CPUs.
_IEEE = _Setting(False, "highest", ("ieee",) * 6)
_TF32 = _Setting(True, "high", ("tf32", "tf32", "tf32", "ieee", "ieee", "ieee"))

_lock = threading.Lock()
_requests: list[bool] = []
_of_caller = _IEEE


@contextmanager
def fp32_precision(*, tf32: bool = False) -> Iterator[None]:
    """Compute fp32 convolutions and matmuls in IEEE fp32, with ``tf32`` in TF32; also usable as a decorator.

    Blocks may be nested, and threads may overlap: TF32 is used only if every active block allows it, and the last block
    restores the setting of the caller.
    """
    global _of_caller
    with _lock:
        if not _requests:
            _of_caller = _current()
        _requests.append(tf32)
        _apply(_TF32 if all(_requests) else _IEEE)
    try:
        yield
    finally:
        with _lock:
            _requests.remove(tf32)
            _apply(_of_caller if not _requests else _TF32 if all(_requests) else _IEEE)


def _operations() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return (
        backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul,
        backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul,
    )  # fmt: skip


def _current() -> _Setting:
    allowed, matmul = None, None
    try:
        allowed = torch.backends.cudnn.allow_tf32
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller used the interface by operation, which the older one cannot express
        pass
    return _Setting(allowed, matmul, tuple(operation.fp32_precision for operation in _operations()))


def _apply(setting: _Setting) -> None:
    """Write both interfaces: each raises an error when it is read while the other one contradicts it."""
    if setting == _current():
        return
    if setting.cudnn_allow_tf32 is not None:
        torch.backends.cudnn.allow_tf32 = setting.cudnn_allow_tf32
    if setting.matmul_precision is not None:
        torch.set_float32_matmul_precision(setting.matmul_precision)
    for operation, precision in zip(_operations(), setting.by_operation, strict=True):
        if operation.fp32_precision != precision:
            operation.fp32_precision = precision
