"""Group norm and SiLU as one step of autograd, which keeps one tensor for backward where the two keep two."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def normed_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Return ``silu(norm(x))`` of ``[N, C, H, W]``, to the bit what the two give, gradients too.

    Backward computes the norm's output again from ``x``, which its own backward needs anyway; forward, SiLU overwrites
    that output. Under autocast, which chooses a dtype for each, they stay two.
    """
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # the meta device knows no autocast
        return F.silu(norm(x))
    return _NormedSiLU.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)  # pyright: ignore[reportReturnType]


class _NormedSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x = _dense(x)
        normed, mean, rstd = _norm(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(normed, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, mean, rstd = ctx.saved_tensors
        normed, *_ = _norm(x, weight, bias, ctx.groups, ctx.eps)
        torch.ops.aten.silu_backward.grad_input(grads[0], normed, grad_input=normed)  # in its place: it is ours alone
        d_normed = _dense(normed, like=x)
        batch, channels, *grid = x.shape
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_group_norm_backward(
            d_normed, x, mean, rstd, weight, batch, channels, grid[0] * grid[1], ctx.groups, wanted
        )
        return *found, None, None


def _norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    return torch.native_group_norm(x, weight, bias, batch, channels, height * width, groups, eps)


def _dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Return ``x`` as the norm wants it: on a CPU in the order of memory of ``like``, or its own; else rows last."""
    layout = torch.contiguous_format
    of = x if like is None else like
    if of.device.type == "cpu" and of.is_contiguous(memory_format=torch.channels_last) and not of.is_contiguous():
        layout = torch.channels_last
    return x.contiguous(memory_format=layout)
