"""Validate the arguments of ``bias_activation``; each error names the argument."""

import torch
from torch import Tensor

_OP = "bias_activation"
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "leaky_relu", "none")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DROPOUT_STEPS = 2**16  # a mask has 16 random bits per element
_ROWS = 2**31


def drop_below(dropout: float) -> int:
    """Return the number of the 2^16 random values of an element that drop it."""
    return round(dropout * DROPOUT_STEPS)


def check(x: Tensor, bias: Tensor | None, activation: str, dropout: float, seed: int, residual: Tensor | None) -> None:
    """Validate a call; see :func:`simcast_kernels.bias_activation.bias_activation`.

    Raises:
        TypeError: an unsupported dtype.
        ValueError: any other invalid argument.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"{_OP}: x is {x.dtype}; it must be float32, bfloat16, float16 or float64")
    if x.ndim == 0:
        raise ValueError(f"{_OP}: x has no axis; it must be [..., C]")
    if x.numel() >= _ROWS * max(1, x.shape[-1]):
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}; it must have fewer than 2**31 rows")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{_OP}: activation={activation!r} is invalid; choose one of {', '.join(ACTIVATIONS)}")
    if not 0 <= dropout < 1 or drop_below(dropout) == DROPOUT_STEPS:
        raise ValueError(f"{_OP}: dropout={dropout} must be at least 0 and, rounded to multiples of 2**-16, below 1")
    if not 0 <= seed < 2**63:
        raise ValueError(f"{_OP}: seed={seed} must be at least 0 and below 2**63")
    if bias is not None:
        if bias.dtype not in DTYPES:
            raise TypeError(f"{_OP}: bias is {bias.dtype}; it must be float32, bfloat16, float16 or float64")
        _check_place("bias", bias, x, x.shape[-1:])
    if residual is not None:
        if residual.dtype != x.dtype:
            raise TypeError(f"{_OP}: residual is {residual.dtype} and x is {x.dtype}; they must agree")
        _check_place("residual", residual, x, x.shape)


def _check_place(name: str, tensor: Tensor, x: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape or tensor.device != x.device:
        raise ValueError(
            f"{_OP}: {name} is {tuple(tensor.shape)} on {tensor.device}; for x of {tuple(x.shape)} it must be "
            f"{tuple(shape)} on {x.device}"
        )
