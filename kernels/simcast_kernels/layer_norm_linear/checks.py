"""Validate the arguments of ``layer_norm_linear``; each error names the argument."""

import torch
from torch import Tensor

from .reference import Inputs

_OP = "layer_norm_linear"
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def check(inputs: Inputs) -> None:
    """Validate a call; see :func:`simcast_kernels.layer_norm_linear.layer_norm_linear`.

    Raises:
        TypeError: an unsupported dtype.
        ValueError: any other invalid argument.
    """
    x, norm_weight, norm_bias, weights, biases = inputs
    if not weights:
        raise ValueError(f"{_OP}: weights is empty; it must contain at least one [F, D]")
    for name, tensor in (("x", x), ("norm_weight", norm_weight), ("weights", weights[0])):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{_OP}: {name} is {tensor.dtype}; it must be float32, bfloat16 or float64")
    if x.ndim == 0 or 0 in x.shape:
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}; it must be [..., D] with no empty axis")
    width = x.shape[-1]
    _check_tensor("norm_weight", norm_weight, (width,), norm_weight.dtype, x)
    _check_tensor("norm_bias", norm_bias, (width,), norm_weight.dtype, x)
    for i, weight in enumerate(weights):
        features = weight.shape[0] if weight.ndim == 2 else 0
        if not features:
            raise ValueError(f"{_OP}: weights[{i}] has shape {tuple(weight.shape)}; it must be [F, {width}]")
        _check_tensor(f"weights[{i}]", weight, (features, width), weights[0].dtype, x)
    if biases and len(biases) != len(weights):
        raise ValueError(f"{_OP}: {len(biases)} biases for {len(weights)} weights; there must be none or one for each")
    for i, (bias, weight) in enumerate(zip(biases, weights, strict=False)):
        _check_tensor(f"biases[{i}]", bias, (weight.shape[0],), weights[0].dtype, x)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{_OP}: {name} has shape {tuple(tensor.shape)}; it must be {list(shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{_OP}: {name} is {tensor.dtype}; it must be {dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{_OP}: {name} is on {tensor.device}; it must be on {x.device} as x")
