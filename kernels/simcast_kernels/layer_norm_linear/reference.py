"""Reference implementation of ``layer_norm_linear`` in PyTorch: the definition for the kernel, and the CPU path."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Inputs(NamedTuple):
    """The tensors of one call, named as the arguments of :func:`.layer_norm_linear`."""

    x: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    weights: list[Tensor]
    biases: list[Tensor]


class Gradients(NamedTuple):
    """The gradients of :class:`Inputs`, each in its dtype; ``weights`` and ``biases`` are empty if not requested."""

    x: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    weights: list[Tensor]
    biases: list[Tensor]


def layer_norm_linear_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] = (),
    eps: float = 1e-5,
) -> list[Tensor]:
    """Return the result of every layer, computed and differentiated by PyTorch operations.

    Arguments as :func:`simcast_kernels.layer_norm_linear.layer_norm_linear`.
    """
    return forward(Inputs(x, norm_weight, norm_bias, list(weights), list(biases)), eps)


def forward(inputs: Inputs, eps: float) -> list[Tensor]:
    """Return the result of every layer; differentiable."""
    x, norm_weight, norm_bias, weights, biases = inputs
    dtype = torch.promote_types(x.dtype, norm_weight.dtype)
    normed = F.layer_norm(x.to(dtype), x.shape[-1:], norm_weight.to(dtype), norm_bias.to(dtype), eps)
    normed = normed.to(weights[0].dtype)
    return [F.linear(normed, w, b) for w, b in zip(weights, biases or [None] * len(weights), strict=True)]


def backward(inputs: Inputs, grads: Sequence[Tensor], eps: float, *, with_layers: bool) -> Gradients:
    """Return the gradient of every input (of weights and biases only with ``with_layers``); recompute the norm."""
    x, norm_weight, norm_bias, weights, _ = inputs
    width = x.shape[-1]
    # At least float32: on a CPU PyTorch stores mean and deviation of bfloat16 rows in bfloat16.
    dtype = torch.promote_types(torch.promote_types(x.dtype, norm_weight.dtype), torch.float32)
    rows = x.reshape(-1, width).to(dtype)
    scale, shift = norm_weight.to(dtype), norm_bias.to(dtype)
    normed, mean, rstd = torch.native_layer_norm(rows, [width], scale, shift, eps)
    flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
    d_normed = flat[0] @ weights[0]
    for grad, weight in zip(flat[1:], weights[1:], strict=True):
        d_normed.addmm_(grad, weight)
    d_rows, d_scale, d_shift = torch.ops.aten.native_layer_norm_backward(
        d_normed.to(dtype), rows, [width], mean, rstd, scale, shift, [True, True, True]
    )
    return Gradients(
        d_rows.view(x.shape).to(x.dtype),
        d_scale.to(norm_weight.dtype),
        d_shift.to(norm_bias.dtype),
        *(layer_gradients(inputs, normed.to(weights[0].dtype), flat) if with_layers else ([], [])),
    )


def layer_gradients(inputs: Inputs, normed: Tensor, grads: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of weights and biases from ``normed [rows, D]`` and the gradients of the results.

    The kernel uses these PyTorch matmuls too: with this many rows they are compute-bound.
    """
    return [grad.mT @ normed for grad in grads], [grad.sum(0) for grad in grads[: len(inputs.biases)]]
