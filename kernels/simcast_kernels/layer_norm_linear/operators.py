"""Custom operators of ``layer_norm_linear``: implementation, fake tensors, gradients, FLOP counts."""

import os
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from simcast_kernels.direct_call import custom_operator
from simcast_kernels.dispatch import VARIABLE, select_implementation, warn_of_fallback, without_autocast

from . import reference
from .reference import Inputs

_OP = "layer_norm_linear"


def project(inputs: Inputs, eps: float) -> list[Tensor]:
    """Return the results of validated inputs, differentiable."""
    if torch.compiler.is_exporting():
        return reference.forward(inputs, float(eps))
    return forward_operator(*inputs, float(eps))


@custom_operator("simcast_kernels::layer_norm_linear")
def forward_operator(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
) -> list[Tensor]:
    """Return the result of every layer."""
    inputs = Inputs(x, norm_weight, norm_bias, list(weights), list(biases))
    with without_autocast(x.device.type):
        return [out.contiguous() for out in _implementation(inputs).forward(inputs, eps)]


@forward_operator.register_fake
def _(x, norm_weight, norm_bias, weights, biases, eps):
    return [weight.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]


@custom_operator("simcast_kernels::layer_norm_linear_backward")
def backward_operator(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    grads: Sequence[Tensor],
    eps: float,
    with_layers: bool,
) -> list[Tensor]:
    """Return the gradients of x and of the norm and, with ``with_layers``, of weights and biases."""
    inputs = Inputs(x, norm_weight, norm_bias, list(weights), list(biases))
    with without_autocast(x.device.type):
        result = _implementation(inputs).backward(inputs, list(grads), eps, with_layers=with_layers)
    return [grad.contiguous() for grad in (*result[:3], *result.weights, *result.biases)]


@backward_operator.register_fake
def _(x, norm_weight, norm_bias, weights, biases, grads, eps, with_layers):
    like = (x, norm_weight, norm_bias, *((*weights, *biases) if with_layers else ()))
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in like]


def _save_inputs(ctx, inputs, output) -> None:
    x, norm_weight, norm_bias, weights, biases, ctx.eps = inputs
    ctx.layers = len(weights)
    ctx.with_layers = any(tensor.requires_grad for tensor in (*weights, *biases))
    ctx.save_for_backward(x, norm_weight, norm_bias, *weights, *biases)


def _gradients(ctx, grads):
    x, norm_weight, norm_bias, *rest = ctx.saved_tensors
    weights, biases = rest[: ctx.layers], rest[ctx.layers :]
    shapes = [(*x.shape[:-1], weight.shape[0]) for weight in weights]
    grads = [w.new_zeros(s) if g is None else g for g, w, s in zip(grads, weights, shapes, strict=True)]
    inputs = (x, norm_weight, norm_bias, weights, biases)
    d_x, d_norm_weight, d_norm_bias, *d_rest = backward_operator(*inputs, grads, ctx.eps, ctx.with_layers)
    if not ctx.with_layers:
        return d_x, d_norm_weight, d_norm_bias, [None] * ctx.layers, [None] * len(biases), None
    return d_x, d_norm_weight, d_norm_bias, d_rest[: ctx.layers], d_rest[ctx.layers :], None


forward_operator.register_autograd(_gradients, setup_context=_save_inputs)


@register_flop_formula(torch.ops.simcast_kernels.layer_norm_linear)
def _flops(x, norm_weight, norm_bias, weights, *rest, out_shape=None, **_) -> int:
    """Return the FLOPs of the matmuls, a multiply-add as two, for PyTorch's FLOP counter."""
    return sum(2 * prod(x[:-1]) * prod(weight) for weight in weights)


@register_flop_formula(torch.ops.simcast_kernels.layer_norm_linear_backward)
def _backward_flops(x, norm_weight, norm_bias, weights, *rest, out_shape=None, **_) -> int:
    with_layers = rest[-1]
    return (1 + with_layers) * _flops(x, norm_weight, norm_bias, weights)


def _implementation(inputs: Inputs):
    double = torch.float64 in (inputs.x.dtype, inputs.norm_weight.dtype, inputs.weights[0].dtype)
    if double or select_implementation(_OP, inputs.x.device) == "reference":
        return reference
    from . import kernel  # imports Triton

    if not (os.environ.get(VARIABLE) or kernel.dispatched(inputs)):
        return reference
    if reason := kernel.unsupported(inputs):
        warn_of_fallback(_OP, reason)
        return reference
    return kernel
