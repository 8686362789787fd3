"""The custom operators: which body runs, what the compiler may know of the results, gradients, operations counted."""

import os
import warnings
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from simcast_kernels.dispatch import VARIABLE, are_twins_inlined, body_for

from . import reference
from .reference import Inputs

_told: set[str] = set()


def project(inputs: Inputs, eps: float) -> list[Tensor]:
    """Return the results of checked inputs, differentiable, through the custom operator."""
    if are_twins_inlined():
        return reference.forward(inputs, float(eps))
    return torch.ops.simcast_kernels.layer_norm_linear(*inputs, float(eps))


@torch.library.custom_op("simcast_kernels::layer_norm_linear", mutates_args=())
def _forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
) -> list[Tensor]:
    inputs = Inputs(x, norm_weight, norm_bias, list(weights), list(biases))
    with torch.autocast(x.device.type, enabled=False):
        return [out.contiguous() for out in _body(inputs).forward(inputs, eps)]


@_forward.register_fake
def _(x, norm_weight, norm_bias, weights, biases, eps):
    return [weight.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]


@torch.library.custom_op("simcast_kernels::layer_norm_linear_backward", mutates_args=())
def _backward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    grads: Sequence[Tensor],
    eps: float,
    with_layers: bool,
) -> list[Tensor]:
    inputs = Inputs(x, norm_weight, norm_bias, list(weights), list(biases))
    with torch.autocast(x.device.type, enabled=False):
        found = _body(inputs).backward(inputs, list(grads), eps, with_layers=with_layers)
    return [grad.contiguous() for grad in (*found[:3], *found.weights, *found.biases)]


@_backward.register_fake
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
    operator = torch.ops.simcast_kernels.layer_norm_linear_backward
    inputs = (x, norm_weight, norm_bias, weights, biases)
    d_x, d_norm_weight, d_norm_bias, *d_rest = operator(*inputs, grads, ctx.eps, ctx.with_layers)
    if not ctx.with_layers:
        return d_x, d_norm_weight, d_norm_bias, [None] * ctx.layers, [None] * len(biases), None
    return d_x, d_norm_weight, d_norm_bias, d_rest[: ctx.layers], d_rest[ctx.layers :], None


_forward.register_autograd(_gradients, setup_context=_save_inputs)


@register_flop_formula(torch.ops.simcast_kernels.layer_norm_linear)
def _flops(x, norm_weight, norm_bias, weights, *rest, out_shape=None, **_) -> int:
    """Return the operations of the products, a multiplication and its addition as two, for PyTorch's counter."""
    return sum(2 * prod(x[:-1]) * prod(weight) for weight in weights)


@register_flop_formula(torch.ops.simcast_kernels.layer_norm_linear_backward)
def _backward_flops(x, norm_weight, norm_bias, weights, *rest, out_shape=None, **_) -> int:
    with_layers = rest[-1]
    return (1 + with_layers) * _flops(x, norm_weight, norm_bias, weights)


def _body(inputs: Inputs):
    if body_for("layer_norm_linear", inputs.x.device) == "reference":
        return reference
    from . import kernel  # late: the twin needs no Triton

    if not (os.environ.get(VARIABLE) or kernel.dispatched(inputs)):
        return reference
    refused = kernel.refusal(inputs)
    if refused:
        if refused not in _told:
            _told.add(refused)
            warnings.warn(f"layer_norm_linear takes its slower PyTorch twin: {refused}", stacklevel=2)
        return reference
    return kernel
