"""Custom operators of ``bias_activation``: implementation, fake tensors, gradient."""

import torch
from torch import Tensor

from simcast_kernels.direct_call import custom_operator
from simcast_kernels.dispatch import select_implementation, without_autocast

from . import reference

_OP = "bias_activation"


def apply(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """Return the result of validated inputs, differentiable."""
    if torch.compiler.is_exporting():
        return reference.bias_activation_reference(
            x, bias, activation=activation, slope=slope, dropout=dropout, seed=seed, residual=residual
        )
    return forward_operator(x, bias, residual, activation, slope, dropout, seed)


@custom_operator("simcast_kernels::bias_activation")
def forward_operator(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """Return the result, contiguous."""
    with without_autocast(x.device.type):
        return _implementation(x, bias).forward(x, bias, residual, activation, slope, dropout, seed)


@forward_operator.register_fake
def _(x, bias, residual, activation, slope, dropout, seed):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@custom_operator("simcast_kernels::bias_activation_backward")
def backward_operator(
    grad: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    activation: str,
    slope: float,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, and of the bias in float32 (float64); x and bias are not needed without activation."""
    with without_autocast(grad.device.type):
        return _implementation(grad, bias).backward(grad, x, bias, activation, slope, dropout, seed)


@backward_operator.register_fake
def _(grad, x, bias, activation, slope, dropout, seed):
    wide = torch.promote_types(grad.dtype, torch.float32)
    return torch.empty_like(grad, memory_format=torch.contiguous_format), grad.new_empty(grad.shape[-1], dtype=wide)


def _save(ctx, inputs, output) -> None:
    x, bias, _, ctx.activation, ctx.slope, ctx.dropout, ctx.seed = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(*((x, bias) if ctx.activation != "none" else (None, None)))


def _gradients(ctx, grad):
    needs = ctx.needs_input_grad
    grad_x = grad_bias = None
    if any(needs[:2]):
        settings = (ctx.activation, ctx.slope, ctx.dropout, ctx.seed)
        grad_x, grad_bias = backward_operator(grad, *ctx.saved_tensors, *settings)
        grad_bias = grad_bias.to(ctx.bias_dtype) if needs[1] else None
    return grad_x if needs[0] else None, grad_bias, grad if needs[2] else None, None, None, None, None


forward_operator.register_autograd(_gradients, setup_context=_save)


def _implementation(x: Tensor, bias: Tensor | None):
    is_double = x.dtype == torch.float64 or (bias is not None and bias.dtype == torch.float64)
    if is_double or x.numel() == 0 or select_implementation(_OP, x.device) == "reference":
        return reference
    from . import kernel  # imports Triton

    return kernel
