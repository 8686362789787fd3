"""Convert a network so that each rank computes its rows of a sample; parameters and their names do not change.

Convolutions exchange a halo of rows, group norms sum their statistics over the ranks, and dropout uses the rows of the
mask of the whole field. Everything else in the converted networks acts on single pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simcast_hpc.config import ConfigError
from simcast_hpc.distributed.row_shards import RowShards

from .base_forecast import network_of
from .earthformer import Earthformer
from .simvp import InceptionBlock, InceptionBranch, SimVP


def row_multiple(model: nn.Module) -> int:
    """Return the number of which the rows of each rank must be a multiple.

    Raises:
        ConfigError: the network does not support spatial sharding.
    """
    network = network_of(model)
    if isinstance(network, SimVP):
        return network.downsampling
    if isinstance(network, Earthformer):
        from .earthformer.row_conversion import earthformer_row_multiple  # imports this module

        return earthformer_row_multiple(network)
    raise ConfigError(
        f"parallel.spatial above 1 is not supported by {type(network).__name__}; choose model.kind=simvp or "
        "earthformer, or parallel.spatial=1"
    )


def shard_rows(model: nn.Module, shards: RowShards) -> None:
    """Convert a forecasting model in place: its network then maps the rows of this rank to the same rows.

    Raises:
        ConfigError: the network does not support spatial sharding.
    """
    if shards.size == 1:
        return
    row_multiple(model)
    network = network_of(model)
    if isinstance(network, Earthformer):
        from .earthformer.row_conversion import shard_earthformer

        return shard_earthformer(network, shards)
    for block in [module for module in network.modules() if isinstance(module, InceptionBlock)]:
        _share_halo(block, shards)
    shard_layers(network, shards)


def shard_layers(module: nn.Module, shards: RowShards) -> None:
    """Replace the convolutions, group norms and dropout layers below ``module`` that use other rows, in place.

    Their input is ``[N, C, H, W]``; for dropout in another layout see :class:`RowShardedDropout`. Layers that are
    converted already are kept.

    Raises:
        ValueError: a convolution cannot be converted, see :class:`RowShardedConv2d`.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, (RowShardedConv2d, RowShardedGroupNorm, RowShardedDropout)):
            continue
        if isinstance(child, nn.Conv2d) and (child.kernel_size[0] > 1 or child.stride[0] > 1):
            setattr(module, name, RowShardedConv2d(child, shards))
        elif type(child) is nn.GroupNorm:
            setattr(module, name, RowShardedGroupNorm(child, shards))
        elif type(child) is nn.Dropout:
            setattr(module, name, RowShardedDropout(child, shards))
        else:
            shard_layers(child, shards)


class RowShardedConv2d(nn.Conv2d):
    """A convolution of the rows of this rank, with the parameters of ``convolution``.

    Args:
        convolution: zero-padded so that H / stride rows remain.
        shards: of the rows.
        given: rows of halo that the input has on both sides; None exchanges the rows that the kernel needs.
        appended: rows of halo to add to the output on both sides, for the layers that follow.

    Raises:
        ValueError: the convolution changes the number of rows, or pads them otherwise.
    """

    def __init__(self, convolution: nn.Conv2d, shards: RowShards, *, given: int | None = None, appended: int = 0):
        kernel, stride, dilation = convolution.kernel_size[0], convolution.stride[0], convolution.dilation[0]
        extent, padding = (kernel - 1) * dilation + 1, convolution.padding
        above, aside = (-1, -1) if isinstance(padding, str) else (int(padding[0]), int(padding[1]))
        if convolution.padding_mode != "zeros" or above < 0 or not extent - stride <= 2 * above < extent:
            raise ValueError(
                f"a convolution with kernel_size={kernel}, stride={stride}, dilation={dilation}, padding={padding!r} "
                f"and padding_mode={convolution.padding_mode!r} cannot be sharded by rows: it must return H / stride "
                "rows with zeros as padding"
            )
        sizes: dict[str, Any] = {
            name: getattr(convolution, name)
            for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
        }
        with torch.device("meta"):  # draws no random numbers
            super().__init__(**sizes, padding=(0, aside), bias=convolution.bias is not None)
        self.weight, self.bias = convolution.weight, convolution.bias
        self.train(convolution.training)
        self.shards, self.given, self.appended = shards, given, appended
        # Rows that the kernel reads above the first and below the last row of this rank
        self.before, self.after = above, max(extent - stride - above, 0)

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[N, D, n / stride, W']`` from ``[N, C, n, W]``, with the halos of ``given`` and ``appended``.

        Raises:
            ValueError: the stride does not divide the rows of this rank.
        """
        stride = self.stride[0]
        rows = input.shape[-2] - 2 * (self.given or 0)
        if rows % stride:
            raise ValueError(f"stride {stride} does not divide the {rows} rows of this rank")
        if self.given is None:
            input = self.shards.halo(input, self.before, self.after)
        else:
            input = input.narrow(-2, self.given - self.before, self.before + rows + self.after)
        output = super().forward(input)
        return self.shards.halo(output, self.appended, self.appended)


class RowShardedGroupNorm(nn.GroupNorm):
    """Group norm with the statistics of all rows, in fp32 (two passes), and the parameters of ``norm``."""

    def __init__(self, norm: nn.GroupNorm, shards: RowShards):
        with torch.device("meta"):
            super().__init__(norm.num_groups, norm.num_channels, eps=norm.eps, affine=norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.train(norm.training)
        self.shards = shards

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized ``[N, C, n, ...]``, in the dtype and memory format of the input."""
        return self._apply_norm(input, silu=False)

    def silu(self, input: Tensor) -> Tensor:
        """Return ``silu(self(input))``; only the input is saved for the backward pass."""
        return self._apply_norm(input, silu=True)

    def _apply_norm(self, input: Tensor, *, silu: bool) -> Tensor:
        return _GroupNorm.apply(  # pyright: ignore[reportReturnType]
            input, self.weight, self.bias, self.num_groups, self.eps, self.shards, silu
        )


class RowShardedDropout(nn.Dropout):
    """Dropout with this rank's rows of the mask of the whole field, equal to dropout on one rank.

    All ranks of a group must have the same state of torch's generator, as the training loop sets it.

    Args:
        dropout: its probability is used.
        shards: of the rows.
        dim: axis of the rows in the input.
    """

    def __init__(self, dropout: nn.Dropout, shards: RowShards, *, dim: int = -2):
        super().__init__(dropout.p)
        self.train(dropout.training)
        self.shards, self.dim = shards, dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dropped elements, in its shape."""
        if not self.training or self.p == 0.0:
            return input
        dim, shards = self.dim % input.ndim, self.shards
        rows = input.shape[dim]
        whole = input.new_ones((*input.shape[:dim], shards.size * rows, *input.shape[dim + 1 :]))
        # Of ones, so that the mask is the one that torch samples for the whole field on any device.
        mask = F.dropout(whole, self.p, training=True, inplace=True)
        return input * mask.narrow(dim, shards.rank * rows, rows)


class _GroupNorm(torch.autograd.Function):
    """Two-pass group norm over the rows of all ranks, and SiLU; saves the input and the statistics of the groups."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        groups: int,
        eps: float,
        shards: RowShards,
        silu: bool,
    ) -> Tensor:
        grouped = _grouped(x, groups)
        axes = tuple(range(2, grouped.ndim))
        count = shards.size * grouped[0, 0].numel()
        mean = shards.sum(grouped.sum(axes, keepdim=True)) / count
        normed = torch.empty_like(x, dtype=mean.dtype)  # no view: layers that follow write in place
        centered = torch.sub(grouped, mean, out=normed.unflatten(1, (groups, -1)))
        del grouped
        rstd = torch.rsqrt(shards.sum(centered.square().sum(axes, keepdim=True)) / count + eps)
        centered.mul_(rstd)
        if weight is not None and bias is not None:
            normed.mul_(_of_channels(weight, normed)).add_(_of_channels(bias, normed))
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.shards, ctx.count, ctx.silu = groups, shards, count, silu
        return (F.silu(normed, inplace=True) if silu else normed).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, mean, rstd = ctx.saved_tensors
        grad = grads[0].to(mean.dtype)
        normed = (_grouped(x, ctx.groups) - mean).mul_(rstd)
        if ctx.silu:
            active = normed.flatten(1, 2)
            if weight is not None:
                active = torch.addcmul(_of_channels(bias, active), active, _of_channels(weight, active))
            grad = torch.ops.aten.silu_backward(grad, active)
            del active
        # 1. Parameters: of this rank's rows; the sum over ranks is that of all gradients
        grad_weight = grad_bias = None
        if weight is not None:
            pixels = (0, *range(2, grad.ndim))
            grad_weight = (grad * normed.flatten(1, 2)).sum(pixels).to(weight.dtype)
            grad_bias = grad.sum(pixels).to(weight.dtype)
            grad = grad * _of_channels(weight, grad)
        # 2. Input: mean and variance depend on the rows of all ranks
        grad = grad.unflatten(1, (ctx.groups, -1))
        axes = tuple(range(2, grad.ndim))
        sums = torch.stack([grad.sum(axes, keepdim=True), (grad * normed).sum(axes, keepdim=True)])
        first, second = (ctx.shards.sum(sums) / ctx.count).unbind(0)
        grad_input = grad.sub(first).sub_(normed.mul_(second)).mul_(rstd).flatten(1, 2).to(x.dtype)
        return grad_input, grad_weight, grad_bias, None, None, None, None


def _share_halo(block: InceptionBlock, shards: RowShards) -> None:
    """Exchange one halo per inception block, of the largest kernel; each branch reads the rows that it needs."""
    branches = [branch for branch in block.branches if isinstance(branch, InceptionBranch)]
    radius = max(branch.conv.kernel_size[0] // 2 for branch in branches)
    block.reduce = RowShardedConv2d(block.reduce, shards, appended=radius)
    for branch in branches:
        branch.conv = RowShardedConv2d(branch.conv, shards, given=radius)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Return ``[N, G, C / G, n, ...]`` in fp32, or float64 for a model cast to float64."""
    return x.unflatten(1, (groups, -1)).to(torch.promote_types(x.dtype, torch.float32))


def _of_channels(parameter: Tensor, x: Tensor) -> Tensor:
    """Return a parameter per channel in the dtype of ``x [N, C, ...]``, to be broadcast with it."""
    return parameter.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
