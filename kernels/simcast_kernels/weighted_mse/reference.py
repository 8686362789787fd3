"""Weighted mean squared error in plain PyTorch: the definition that the kernel must match, and the CPU path."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_mse_reference(
    prediction: Tensor,
    target: Tensor,
    *,
    thresholds: Sequence[float],
    weights: Sequence[float],
    inclusive: bool = False,
    code_scale: float = 255.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the weighted MSE as PyTorch's own operations compute it, differentiable by PyTorch's own autograd.

    Arguments as :func:`simcast_kernels.weighted_mse.weighted_mse`; besides, a float64 ``prediction`` is computed and
    returned in float64 (against which both bodies are judged). Targets become float32 first in every case.
    """
    weight, difference = _weight_and_difference(prediction, target, thresholds, weights, inclusive, code_scale, mask)
    return (weight * difference * difference).sum() / prediction.numel()


def loss_and_gradient(
    prediction: Tensor,
    target: Tensor,
    *,
    thresholds: Sequence[float],
    weights: Sequence[float],
    inclusive: bool,
    code_scale: float,
    mask: Tensor | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss and, if wanted, its gradient by ``prediction`` in the prediction's dtype, without autograd."""
    weight, difference = _weight_and_difference(prediction, target, thresholds, weights, inclusive, code_scale, mask)
    weighted = weight * difference
    loss = (weighted * difference).sum() / prediction.numel()
    return loss, weighted.mul_(2.0 / prediction.numel()).to(prediction.dtype) if with_gradient else None


def comparison_values(thresholds: Sequence[float], target: torch.dtype, *, inclusive: bool, code_scale: float):
    """Return what a target of this dtype is compared with, in float32 (PyTorch and Triton round a number to that).

    A code is an integer, so ``code > 73.5`` is ``code > 73``, and ``code >= 73.5`` is ``code >= 74``: whole numbers
    are exact in float32, which a threshold beside a whole number need not be. Float targets are compared with
    ``float32(threshold / code_scale)``, the very number that a code on the threshold becomes.
    """
    if target == torch.uint8:
        return tuple(float(math.ceil(t) if inclusive else math.floor(t)) for t in thresholds)
    return tuple(t / code_scale for t in thresholds)


def _weight_and_difference(prediction, target, thresholds, weights, inclusive, code_scale, mask):
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    weight = torch.full(target.shape, weights[0], dtype=dtype, device=target.device)
    values = comparison_values(thresholds, target.dtype, inclusive=inclusive, code_scale=code_scale)
    for value, step in zip(values, weights[1:], strict=True):
        above = target >= value if inclusive else target > value
        weight = weight.masked_fill_(above, step)
    if target.dtype == torch.uint8:
        # Divided by a tensor: by a Python number PyTorch multiplies with the reciprocal on CUDA, which moves codes.
        target = target.to(torch.float32) / torch.full((), code_scale, device=target.device)
    difference = prediction.to(dtype) - target
    if mask is not None:
        difference = difference.masked_fill(~mask, 0.0)
    return weight, difference
