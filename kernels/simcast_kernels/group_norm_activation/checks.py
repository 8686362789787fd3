"""Validate the arguments of ``group_norm_activation``; each error names the argument."""

import torch
from torch import Tensor

_OP = "group_norm_activation"
ACTIVATIONS = ("leaky_relu", "silu")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def check(x: Tensor, weight: Tensor, bias: Tensor, groups: int, activation: str, total: Tensor | None) -> None:
    """Validate a call; see :func:`simcast_kernels.group_norm_activation.group_norm_activation`.

    Raises:
        TypeError: an unsupported dtype.
        ValueError: any other invalid argument.
    """
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{_OP}: {name} is {tensor.dtype}; it must be float32, bfloat16 or float64")
    if x.ndim != 4 or x.numel() == 0:
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}; it must be [N, C, H, W] with no empty axis")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"{_OP}: groups={groups} does not divide the {channels} channels of x")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{_OP}: activation={activation!r} is invalid; choose {' or '.join(ACTIVATIONS)}")
    if bias.dtype != weight.dtype:
        raise TypeError(f"{_OP}: bias is {bias.dtype} and weight is {weight.dtype}; they must agree")
    if total is not None and total.dtype != x.dtype:
        raise TypeError(f"{_OP}: total is {total.dtype} and x is {x.dtype}; they must agree")
    tensors: list[tuple[str, Tensor, tuple[int, ...]]] = [("weight", weight, (channels,)), ("bias", bias, (channels,))]
    if total is not None:
        tensors.append(("total", total, tuple(x.shape)))
    for name, tensor, shape in tensors:
        if tuple(tensor.shape) != shape or tensor.device != x.device:
            raise ValueError(
                f"{_OP}: {name} is {tuple(tensor.shape)} on {tensor.device}; for x of {tuple(x.shape)} it must be "
                f"{shape} on {x.device}"
            )
