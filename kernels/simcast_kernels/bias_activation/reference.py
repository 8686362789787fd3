"""Reference implementation of ``bias_activation`` in PyTorch: the definition for the kernel."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from simcast_kernels.philox import philox

from .checks import DROPOUT_STEPS, drop_below

OCTET = 8
"""Adjacent columns that share the counters of Philox: two of 16 bits per word."""
ROUNDS = 7
"""Rounds of Philox, the smallest number that passed all tests of its authors (Salmon et al. 2011, table 2)."""


def bias_activation_reference(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "gelu",
    slope: float = 0.01,
    dropout: float = 0.0,
    seed: int = 0,
    residual: Tensor | None = None,
) -> Tensor:
    """Return ``residual + dropout(activation(x + bias))``, computed and differentiated by PyTorch operations.

    Arguments as :func:`simcast_kernels.bias_activation.bias_activation`; computed in float32, float64 input in float64.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    active = _activate(_with_bias(x.to(wide), bias), activation, slope)
    if drop_below(dropout):
        active = active * _factors(x, dropout, seed)
    return (active if residual is None else residual.to(wide) + active).to(x.dtype)


def forward(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """Return the result in a new contiguous tensor."""
    result = bias_activation_reference(
        x, bias, activation=activation, slope=slope, dropout=dropout, seed=seed, residual=residual
    )
    return torch.empty_like(x, memory_format=torch.contiguous_format).copy_(result)


def backward(
    grad: Tensor, x: Tensor | None, bias: Tensor | None, activation: str, slope: float, dropout: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the bias, the latter at least in float32; x is not read without activation."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    inner = grad.to(wide)
    if drop_below(dropout):
        inner = inner * _factors(grad, dropout, seed)
    if x is not None and activation != "none":
        inner = _derivative(inner, _with_bias(x.to(wide), bias), activation, slope)
    grad_x = torch.empty_like(grad, memory_format=torch.contiguous_format).copy_(inner)
    return grad_x, inner.reshape(-1, inner.shape[-1]).sum(0)


def keep_mask(shape: torch.Size, *, dropout: float, seed: int, device: torch.device) -> Tensor:
    """Return True for each element of ``[..., C]`` that dropout keeps.

    Element (row, column) uses the counters (column // 8, row, 0, 0) and the key ``seed``: bits 0 to 15 of word
    ``column % 8 // 2`` for even columns and bits 16 to 31 for odd ones. It is dropped if they are below
    ``round(2^16 dropout)``.
    """
    columns, rows = shape[-1], prod(shape[:-1])
    octets = torch.arange(-(-columns // OCTET), device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    counters = octets[None], torch.arange(rows, device=device)[:, None], zero, zero
    words = philox(seed, counters, rounds=ROUNDS)
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1)
    return (halves.flatten(1)[:, :columns] >= drop_below(dropout)).view(shape)


def _factors(x: Tensor, dropout: float, seed: int) -> Tensor:
    """Return 0 or the factor of kept elements for each element of x, in its dtype, at least float32."""
    mask = keep_mask(x.shape, dropout=dropout, seed=seed, device=x.device)
    kept = DROPOUT_STEPS / (DROPOUT_STEPS - drop_below(dropout))
    return mask.to(torch.promote_types(x.dtype, torch.float32)) * kept


def _with_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)


def _activate(z: Tensor, activation: str, slope: float) -> Tensor:
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(z, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation == "none":
        return z
    return F.silu(z) if activation == "silu" else F.leaky_relu(z, slope)


def _derivative(grad: Tensor, z: Tensor, activation: str, slope: float) -> Tensor:
    """Return the gradient of ``z`` for the gradient of ``_activate(z)``; operators of a backward pass cannot record."""
    if activation in ("gelu", "gelu_tanh"):
        return torch.ops.aten.gelu_backward(grad, z, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, z)
    return torch.ops.aten.leaky_relu_backward(grad, z, slope, False)
