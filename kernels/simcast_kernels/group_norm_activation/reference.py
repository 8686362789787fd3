"""Reference implementation of ``group_norm_activation`` in PyTorch: the definition for the kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_activation_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    activation: str,
    slope: float = 0.01,
    eps: float = 1e-5,
    total: Tensor | None = None,
) -> Tensor:
    """Return ``total + activation(group_norm(x))``, computed and differentiated by PyTorch operations.

    Arguments as :func:`simcast_kernels.group_norm_activation.group_norm_activation`; computed in float32, float64 input
    in float64.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = torch.group_norm(x.to(wide), groups, weight.to(wide), bias.to(wide), eps)
    active = F.silu(normed) if activation == "silu" else F.leaky_relu(normed, slope)
    return (active if total is None else total.to(wide) + active).to(x.dtype)


def forward(
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
    wide = torch.promote_types(x.dtype, torch.float32)
    normed, mean, rstd = _group_norm(x, weight, bias, groups, eps)
    active = F.silu(normed, inplace=True) if activation == "silu" else F.leaky_relu(normed, slope, inplace=True)
    if total is not None:
        active.add_(total.to(wide))
    return _channels_last(active, x), mean, rstd


def backward(
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
    """Return the gradients of x, weight and bias, each in the dtype of its input."""
    wide = mean.dtype
    normed, *_ = _group_norm(x, weight, bias, groups, eps)
    upstream = grad.to(wide).contiguous()
    if activation == "silu":
        inner = torch.ops.aten.silu_backward(upstream, normed)
    else:
        inner = torch.ops.aten.leaky_relu_backward(upstream, normed, slope, False)
    batch, channels, height, width = x.shape
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
        inner.contiguous(),
        x.to(wide).contiguous(),
        mean,
        rstd,
        weight.to(wide),
        batch,
        channels,
        height * width,
        groups,
        [True, True, True],
    )
    return _channels_last(grad_x, x), grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    batch, channels, height, width = x.shape
    return torch.native_group_norm(
        x.to(wide).contiguous(), weight.to(wide), bias.to(wide), batch, channels, height * width, groups, eps
    )


def _channels_last(result: Tensor, x: Tensor) -> Tensor:
    """Return ``result`` in the dtype of ``x`` with the strides of channels-last memory, also for axes of size 1."""
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(result)
