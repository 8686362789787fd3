"""Validate the arguments of ``adaln_norm``; each error names the argument."""

import torch
from torch import Tensor

_OP = "adaln_norm"


def check(x: Tensor, shift: Tensor, scale: Tensor, branch: Tensor | None, gate: Tensor | None) -> None:
    """Validate a call; see :func:`simcast_kernels.adaln_norm.adaln_norm`.

    Raises:
        TypeError: an unsupported dtype.
        ValueError: any other invalid argument.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise TypeError(f"{_OP}: x is {x.dtype}; it must be float32, bfloat16 or float64")
    if x.ndim != 3 or x.numel() == 0:
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}; it must be [N, L, D] with no empty axis")
    if (branch is None) != (gate is None):
        raise ValueError(f"{_OP}: branch and gate must be given together; one of them is None")
    modulation = (x.shape[0], x.shape[2])
    tensors = [("shift", shift, modulation), ("scale", scale, modulation)]
    if branch is not None and gate is not None:
        tensors += [("branch", branch, tuple(x.shape)), ("gate", gate, modulation)]
    for name, tensor, shape in tensors:
        if tensor.dtype != x.dtype:
            raise TypeError(f"{_OP}: {name} is {tensor.dtype} and x is {x.dtype}; they must agree")
        if tuple(tensor.shape) != shape or tensor.device != x.device:
            raise ValueError(
                f"{_OP}: {name} is {tuple(tensor.shape)} on {tensor.device}; for x of {tuple(x.shape)} it must be "
                f"{shape} on {x.device}"
            )
