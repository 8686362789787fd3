"""Reference implementation of ``weighted_mse`` in PyTorch: the definition for the kernel, and the CPU path."""

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
    """Return the weighted MSE, computed and differentiated by PyTorch operations.

    Arguments as :func:`simcast_kernels.weighted_mse.weighted_mse`. A float64 ``prediction`` is also accepted; the
    result is then float64, the exact value in tests. Targets are always converted to float32 first.
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
    """Return the loss and, with ``with_gradient``, its gradient with respect to ``prediction``, without autograd."""
    weight, difference = _weight_and_difference(prediction, target, thresholds, weights, inclusive, code_scale, mask)
    weighted = weight * difference
    loss = (weighted * difference).sum() / prediction.numel()
    return loss, weighted.mul_(2.0 / prediction.numel()).to(prediction.dtype) if with_gradient else None


def comparison_values(thresholds: Sequence[float], target: torch.dtype, *, inclusive: bool, code_scale: float):
    """Return the thresholds in the units of a target of this dtype; PyTorch and Triton round them to float32.

    Encoded values are integers, so ``code > 73.5`` equals ``code > 73`` and ``code >= 73.5`` equals ``code >= 74``;
    integers are exact in float32. Float targets are compared with ``float32(threshold / code_scale)``, the value to
    which an encoded value equal to the threshold is converted.
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
        # Divide by a tensor: for a Python number PyTorch on CUDA multiplies by the reciprocal, rounding differently.
        target = target.to(torch.float32) / torch.full((), code_scale, device=target.device)
    difference = prediction.to(dtype) - target
    if mask is not None:
        difference = difference.masked_fill(~mask, 0.0)
    return weight, difference
