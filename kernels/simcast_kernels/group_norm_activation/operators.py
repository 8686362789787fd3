"""Custom operators of ``group_norm_activation``: implementation, fake tensors, gradient."""

import torch
from torch import Tensor

from simcast_kernels.direct_call import custom_operator
from simcast_kernels.dispatch import select_implementation, without_autocast

from . import reference

_OP = "group_norm_activation"


def normalize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    total: Tensor | None,
    groups: int,
    activation: str,
    slope: float,
    eps: float,
) -> Tensor:
    """Return the result of validated inputs, differentiable."""
    if torch.compiler.is_exporting():
        return reference.group_norm_activation_reference(
            x, weight, bias, groups=groups, activation=activation, slope=slope, eps=eps, total=total
        )
    return forward_operator(x, weight, bias, total, groups, activation, slope, eps)[0]


@custom_operator("simcast_kernels::group_norm_activation")
def forward_operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    total: Tensor | None,
    groups: int,
    activation: str,
    slope: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, and mean and reciprocal standard deviation of each group, ``[N, groups]``."""
    with without_autocast(x.device.type):
        return _implementation(x, weight).forward(x, weight, bias, total, groups, activation, slope, eps)


@forward_operator.register_fake
def _(x, weight, bias, total, groups, activation, slope, eps):
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty((x.shape[0], groups), dtype=wide) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.channels_last), mean, rstd


@custom_operator("simcast_kernels::group_norm_activation_backward")
def backward_operator(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    activation: str,
    slope: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    with without_autocast(x.device.type):
        return _implementation(x, weight).backward(grad, x, weight, bias, mean, rstd, groups, activation, slope, eps)


@backward_operator.register_fake
def _(grad, x, weight, bias, mean, rstd, groups, activation, slope, eps):
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        torch.empty_like(bias, memory_format=torch.contiguous_format),
    )


def _save(ctx, inputs, output) -> None:
    x, weight, bias, _, ctx.groups, ctx.activation, ctx.slope, ctx.eps = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _gradients(ctx, grad, *_):
    needs = ctx.needs_input_grad
    own = (None, None, None)
    if any(needs[:3]):
        own = backward_operator(grad, *ctx.saved_tensors, ctx.groups, ctx.activation, ctx.slope, ctx.eps)
    return *own, grad if needs[3] else None, None, None, None, None


forward_operator.register_autograd(_gradients, setup_context=_save)


def _implementation(x: Tensor, weight: Tensor):
    if torch.float64 in (x.dtype, weight.dtype) or select_implementation(_OP, x.device) == "reference":
        return reference
    from . import kernel  # imports Triton

    return kernel
