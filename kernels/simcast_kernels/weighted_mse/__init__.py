"""``weighted_mse``: weighted mean squared error, the training loss of the teacher and the student.

Source: SimCast, Eq. 1 and 2 (weight ``w_max`` on pixels whose target exceeds a threshold); with several thresholds and
``inclusive=True`` the balanced weights of HKO-7 (Shi et al., 2017, section 3.3).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check
from .operators import loss_operator

__all__ = ["weighted_mse"]


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

    The denominator includes masked pixels, so that the loss of a batch does not depend on how its samples are split
    into micro-batches. Computed in float32; loss and gradient take one pass over memory. The result is bitwise
    reproducible on one device. Autocast does not affect the op: it would round the model's fp32 output.

    Args:
        prediction: forecast f in units of ``code / code_scale``, float32 or bfloat16, any shape. The gradient has its
            dtype.
        target: observation y of the same shape: uint8 encoded values, converted to floats by the correctly rounded
            ``code / code_scale``, or float32 in the units of the prediction. It must not require a gradient.
        thresholds: ascending encoded values (219 for SEVIR), whatever the dtype of the target; empty for plain MSE.
        weights: one more than thresholds; the weight of a pixel is ``weights[k]``, k the number of thresholds below y.
        inclusive: whether a target equal to a threshold counts as above it. False compares ``code > threshold``, or
            ``y > float32(threshold / code_scale)``, as in SimCast; True compares with ``>=``, as in HKO-7.
        code_scale: the encoded value that means 1.
        mask: bool of the same shape, True for valid pixels; loss and gradient are exactly 0 elsewhere, also where
            prediction or target is NaN.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that differ, an empty prediction, or invalid thresholds or weights.
        RuntimeError: ``SIMCAST_KERNELS=triton`` where no kernel can run.
    """
    check(prediction, target, mask, thresholds=thresholds, weights=weights, code_scale=code_scale)
    with_gradient = torch.is_grad_enabled() and prediction.requires_grad
    loss, _ = loss_operator(
        prediction, target, mask, list(thresholds), list(weights), inclusive, code_scale, with_gradient
    )
    return loss
