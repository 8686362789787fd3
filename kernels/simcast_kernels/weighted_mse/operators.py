"""Custom operators of ``weighted_mse``: implementation, fake tensors, gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simcast_kernels.direct_call import custom_operator
from simcast_kernels.dispatch import select_implementation

from . import reference

_OP = "weighted_mse"


@custom_operator("simcast_kernels::weighted_mse")
def loss_operator(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    thresholds: Sequence[float],
    weights: Sequence[float],
    inclusive: bool,
    code_scale: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient with respect to ``prediction`` (empty without ``with_gradient``)."""
    implementation = reference
    if select_implementation(_OP, prediction.device) == "triton":
        from . import kernel as implementation  # imports Triton
    loss, gradient = implementation.loss_and_gradient(
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


@loss_operator.register_fake
def _(prediction, target, mask, thresholds, weights, inclusive, code_scale, with_gradient):
    loss = prediction.new_empty((), dtype=torch.float32)
    shape = prediction.shape if with_gradient else (0,)
    return loss, torch.empty(shape, dtype=prediction.dtype, device=prediction.device)


@custom_operator("simcast_kernels::weighted_mse_backward")
def backward_operator(gradient: Tensor, grad_output: Tensor) -> Tensor:
    """Return ``gradient * grad_output``, ``grad_output`` being a scalar."""
    if select_implementation(_OP, gradient.device) == "triton":
        from . import kernel

        return kernel.scale(gradient, grad_output)
    return (gradient.to(torch.float32) * grad_output).to(gradient.dtype).contiguous()


@backward_operator.register_fake
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
    return backward_operator(gradient, grad_output), *(None,) * 7


loss_operator.register_autograd(_scale_gradient, setup_context=_save_gradient)
