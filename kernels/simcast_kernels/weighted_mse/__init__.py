"""``weighted_mse``: the step-weighted squared error that teacher and student are trained with.

Source: SimCast, Eq. 1 and 2 (a weight of ``w_max`` on pixels whose target lies above a threshold); with several
thresholds and ``inclusive`` the balanced weights of HKO-7 (Shi et al., 2017, section 3.3).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simcast_kernels.dispatch import body_for

from . import reference

__all__ = ["weighted_mse"]

_OP = "weighted_mse"


def weighted_mse(
    prediction: Tensor,
    target: Tensor,
    *,
    thresholds: Sequence[float],
    weights: Sequence[float],
    inclusive: bool = False,
    code_scale: float = 255.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return ``sum over valid pixels of w(y) (f - y)^2 / prediction.numel()``, a float32 scalar.

    The denominator counts masked pixels too: so the loss of a batch does not depend on how its samples fall into
    micro batches. Computed in float32; loss and gradient cost one pass over memory. The result is the same to the bit
    at every call with the same input on the same device.

    Autocast does not touch the op: it takes an fp32 prediction as fp32, and casting it would round the head's output.

    Args:
        prediction: the forecast f in units of ``code / code_scale``, float32 or bfloat16, of any shape. The gradient
            has its dtype.
        target: the observation y of the same shape: uint8 codes, which become floats by the correctly rounded
            ``code / code_scale``, or float32 in the prediction's units. It may not require a gradient.
        thresholds: ascending, in codes (219 for SEVIR), whatever the target's dtype; empty for a plain MSE.
        weights: one more than thresholds; a pixel's weight is ``weights[k]``, k the number of thresholds below y.
        inclusive: whether a target on a threshold lies above it. False is ``code > threshold``, or ``y >
            float32(threshold / code_scale)``, as in SimCast; True is ``>=``, as in HKO-7's balanced weights.
        code_scale: the code that stands for 1.
        mask: bool of the same shape, True where a pixel counts; elsewhere loss and gradient are exactly 0, whatever
            prediction and target hold there, NaN included.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that differ, an empty prediction, or a table of weights that makes no sense.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    _check_tensors(prediction, target, mask)
    _check_table(thresholds, weights, code_scale)
    with_gradient = torch.is_grad_enabled() and prediction.requires_grad
    loss, _ = torch.ops.simcast_kernels.weighted_mse(
        prediction, target, mask, list(thresholds), list(weights), inclusive, code_scale, with_gradient
    )
    return loss


@torch.library.custom_op("simcast_kernels::weighted_mse", mutates_args=())
def _forward(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    thresholds: Sequence[float],
    weights: Sequence[float],
    inclusive: bool,
    code_scale: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    body = reference
    if body_for(_OP, prediction.device) == "triton":
        from . import kernel as body  # late: the twin needs no Triton
    loss, gradient = body.loss_and_gradient(
        prediction,
        target,
        thresholds=thresholds,
        weights=weights,
        inclusive=inclusive,
        code_scale=code_scale,
        mask=mask,
        with_gradient=with_gradient,
    )
    return loss, prediction.new_empty(0) if gradient is None else gradient.contiguous()


@_forward.register_fake
def _(prediction, target, mask, thresholds, weights, inclusive, code_scale, with_gradient):
    loss = prediction.new_empty((), dtype=torch.float32)
    shape = prediction.shape if with_gradient else (0,)
    return loss, torch.empty(shape, dtype=prediction.dtype, device=prediction.device)


@torch.library.custom_op("simcast_kernels::weighted_mse_backward", mutates_args=())
def _backward(gradient: Tensor, grad_output: Tensor) -> Tensor:
    if body_for(_OP, gradient.device) == "triton":
        from . import kernel

        return kernel.scale(gradient, grad_output)
    return (gradient.to(torch.float32) * grad_output).to(gradient.dtype).contiguous()


@_backward.register_fake
def _(gradient, grad_output):
    return torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)


def _save_gradient(ctx, inputs, output) -> None:
    ctx.with_gradient = inputs[-1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _scale_gradient(ctx, grad_output, _):
    if not ctx.with_gradient:
        raise RuntimeError("simcast_kernels::weighted_mse was called with with_gradient=False, so it has no gradient")
    (gradient,) = ctx.saved_tensors
    scaled = torch.ops.simcast_kernels.weighted_mse_backward(gradient, grad_output)
    return scaled, *(None,) * 7


_forward.register_autograd(_scale_gradient, setup_context=_save_gradient)


def _check_tensors(prediction: Tensor, target: Tensor, mask: Tensor | None) -> None:
    if prediction.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"{_OP}: prediction is {prediction.dtype}; it must be float32 or bfloat16")
    if target.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"{_OP}: target is {target.dtype}; it must be uint8 codes or float32 (16 bits round codes)")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"{_OP}: mask is {mask.dtype}; it must be bool, True where a pixel counts")
    if prediction.numel() == 0:
        raise ValueError(f"{_OP}: prediction has shape {tuple(prediction.shape)}; a mean needs at least one element")
    if target.requires_grad:
        raise ValueError(f"{_OP}: target requires a gradient, which this op does not give; pass target.detach()")
    for name, other in (("target", target), ("mask", mask)):
        if other is None:
            continue
        if other.shape != prediction.shape:
            shape = tuple(prediction.shape)
            raise ValueError(f"{_OP}: {name} has shape {tuple(other.shape)}; it must be the prediction's, {shape}")
        if other.device != prediction.device:
            raise ValueError(f"{_OP}: {name} is on {other.device}; it must be on {prediction.device} as the prediction")


def _check_table(thresholds: Sequence[float], weights: Sequence[float], code_scale: float) -> None:
    if not (math.isfinite(code_scale) and code_scale > 0):
        raise ValueError(f"{_OP}: code_scale is {code_scale}; it must be the code that stands for 1, such as 255")
    if len(weights) != len(thresholds) + 1:
        raise ValueError(
            f"{_OP}: {len(weights)} weights for {len(thresholds)} thresholds; there must be {len(thresholds) + 1}"
        )
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{_OP}: weights hold {weight}; a weight must be finite and at least 0")
    for threshold in thresholds:
        if not 0 <= threshold <= code_scale:
            raise ValueError(f"{_OP}: thresholds hold {threshold}; they are in codes, within [0, {code_scale}]")
    for lower, upper in itertools.pairwise(thresholds):
        if not lower < upper:
            raise ValueError(f"{_OP}: thresholds hold {lower} before {upper}; they must ascend")
    if code_scale >= 2 and thresholds and 0 < thresholds[-1] < 1:
        raise ValueError(
            f"{_OP}: every threshold lies below code 1 (the highest is {thresholds[-1]}); thresholds are in codes, "
            f"not in [0, 1]: multiply them by code_scale = {code_scale}"
        )
