"""Validate the arguments of ``weighted_mse``; each error names the argument."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_OP = "weighted_mse"


def check(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    *,
    thresholds: Sequence[float],
    weights: Sequence[float],
    code_scale: float,
) -> None:
    """Validate a call; see :func:`simcast_kernels.weighted_mse.weighted_mse`.

    Raises:
        TypeError: an unsupported dtype.
        ValueError: any other invalid argument.
    """
    _check_tensors(prediction, target, mask)
    _check_weights(thresholds, weights, code_scale)


def _check_tensors(prediction: Tensor, target: Tensor, mask: Tensor | None) -> None:
    if prediction.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"{_OP}: prediction is {prediction.dtype}; it must be float32 or bfloat16")
    if target.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"{_OP}: target is {target.dtype}; it must be uint8 or float32")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"{_OP}: mask is {mask.dtype}; it must be bool, True for valid pixels")
    if prediction.numel() == 0:
        raise ValueError(f"{_OP}: prediction has shape {tuple(prediction.shape)}; it must have at least one element")
    if target.requires_grad:
        raise ValueError(f"{_OP}: target requires a gradient, which is not supported; pass target.detach()")
    for name, other in (("target", target), ("mask", mask)):
        if other is None:
            continue
        if other.shape != prediction.shape:
            shape = tuple(prediction.shape)
            raise ValueError(f"{_OP}: {name} has shape {tuple(other.shape)}; it must have the prediction's, {shape}")
        if other.device != prediction.device:
            raise ValueError(f"{_OP}: {name} is on {other.device}; it must be on {prediction.device} as the prediction")


def _check_weights(thresholds: Sequence[float], weights: Sequence[float], code_scale: float) -> None:
    if not (math.isfinite(code_scale) and code_scale > 0):
        raise ValueError(f"{_OP}: code_scale is {code_scale}; it must be the encoded value that means 1, such as 255")
    if len(weights) != len(thresholds) + 1:
        raise ValueError(
            f"{_OP}: {len(weights)} weights for {len(thresholds)} thresholds; there must be {len(thresholds) + 1}"
        )
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{_OP}: weights contain {weight}; a weight must be finite and at least 0")
    for threshold in thresholds:
        if not 0 <= threshold <= code_scale:
            raise ValueError(f"{_OP}: thresholds contain {threshold}; they must be encoded values in [0, {code_scale}]")
    for lower, upper in itertools.pairwise(thresholds):
        if not lower < upper:
            raise ValueError(f"{_OP}: thresholds contain {lower} before {upper}; they must ascend")
    if code_scale >= 2 and thresholds and 0 < thresholds[-1] < 1:
        raise ValueError(
            f"{_OP}: all thresholds are below 1 (the highest is {thresholds[-1]}); they must be encoded values, "
            f"not fractions: multiply them by code_scale = {code_scale}"
        )
