"""Launches of ``group_norm_activation``: three kernels forward, three backward.

Shapes: N samples of P = H W pixels of C channels, ``[N, P, C]`` in memory. With n = N P C elements, the forward pass
reads n for the statistics, then reads n (with a sum of branches 2n) and writes n; the backward pass reads 2n for the
sums, then reads 2n and writes n. Each program covers a part of a sample's grid and at most ``COLUMNS`` channels, and
writes two float32 sums per channel; a small kernel adds them per group. C is a constant of the compiled code.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from simcast_kernels.dispatch import Launch

from . import kernel_normalize, kernel_normalize_gradient

COLUMNS = 64  # channels of a program: 128 bytes of bfloat16
ELEMENTS = 1024  # of a tile
WARPS = 4
STEPS = 32  # tiles of a program at most
PROGRAMS = 4096  # fewer tiles per program if there would be fewer programs
REDUCED_ELEMENTS = 2048  # of a tile of partial sums


@dataclass(frozen=True)
class Tiling:
    """Tile sizes for ``[N, P, C]``: ``rows`` pixels by ``columns`` channels, ``steps`` of them per program."""

    samples: int
    pixels: int
    channels: int
    groups: int

    @cached_property
    def columns(self) -> int:
        """Channels of a program: a power of two that divides C, unless that would be less than a 32-byte sector."""
        whole = min(COLUMNS, _power_of_2(self.channels))
        divisor = self.channels & -self.channels
        return divisor if 16 <= divisor < whole else whole

    @cached_property
    def rows(self) -> int:
        """Pixels of a tile."""
        return max(1, ELEMENTS // self.columns)

    @cached_property
    def column_blocks(self) -> int:
        """Programs along the channels."""
        return _blocks(self.channels, self.columns)

    @cached_property
    def steps(self) -> int:
        """Tiles of a program."""
        tiles = self.samples * self.column_blocks * _blocks(self.pixels, self.rows)
        return max(4, min(STEPS, 1 << (tiles // PROGRAMS).bit_length() >> 1))

    @cached_property
    def parts(self) -> int:
        """Programs along the grid of a sample."""
        return _blocks(self.pixels, self.rows * self.steps)

    @cached_property
    def grid(self) -> tuple[int]:
        """Launch grid of the kernels that read the features."""
        return (self.samples * self.parts * self.column_blocks,)

    @cached_property
    def options(self) -> dict[str, int]:
        """Constants of the kernels that read the features."""
        return {
            "CHANNELS": self.channels,
            "COLUMN_BLOCKS": self.column_blocks,
            "STEPS": self.steps,
            "BLOCK_P": self.rows,
            "BLOCK_C": self.columns,
            "num_warps": WARPS,
        }

    @cached_property
    def reduction(self) -> dict[str, int]:
        """Constants of the kernels that add the sums of the parts, one program per sample and group."""
        members = _power_of_2(self.channels // self.groups)
        rows = max(1, min(_power_of_2(self.parts), REDUCED_ELEMENTS // members))
        return {
            "CHANNELS": self.channels,
            "GROUPS": self.groups,
            "BLOCK_R": rows,
            "BLOCK_K": members,
            "num_warps": max(1, min(4, rows * members // 256)),
        }


def tiling_of(x: Tensor, groups: int) -> Tiling:
    """Return the tile sizes for ``x [N, C, H, W]``."""
    samples, channels, height, width = x.shape
    return Tiling(samples, height * width, channels, groups)


def forward_launches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    total: Tensor | None,
    *,
    groups: int,
    activation: str,
    slope: float,
    eps: float,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> list[Launch]:
    """Return the launches that write ``out``, ``mean`` and ``rstd``; the statistics of parts are allocated here."""
    tiling = tiling_of(x, groups)
    sums = mean.new_empty((2, tiling.samples, tiling.parts, tiling.channels))
    means, squares = sums[0], sums[1]
    options, reduction = tiling.options, tiling.reduction
    statistics = Launch(
        kernel=kernel_normalize.statistics_kernel,
        grid=tiling.grid,
        arguments=(x, means, squares, tiling.pixels, tiling.parts),
        options=options,
    )
    combine = Launch(
        kernel=kernel_normalize.group_statistics_kernel,
        grid=(tiling.samples * groups,),
        arguments=(means, squares, mean, rstd, tiling.pixels, tiling.parts, eps),
        options={**reduction, "PART": tiling.rows * tiling.steps},
    )
    normalize = Launch(
        kernel=kernel_normalize.normalize_kernel,
        grid=tiling.grid,
        arguments=(x, weight, bias, total, mean, rstd, out, tiling.pixels, tiling.parts, slope),
        options={**options, "GROUPS": groups, "IS_SILU": activation == "silu"},
    )
    return [statistics, combine, normalize]


def backward_launches(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    groups: int,
    activation: str,
    slope: float,
    grad_x: Tensor,
    channel_sums: Tensor,
) -> list[Launch]:
    """Return the launches that write ``grad_x`` and ``channel_sums``.

    ``channel_sums [2, N, C]``, float32, are the sums over the grid for the gradients of bias and weight.
    """
    tiling = tiling_of(x, groups)
    sums = mean.new_empty((2, tiling.samples, tiling.parts, tiling.channels))
    group_sums = mean.new_empty((2, tiling.samples, groups))
    options = {**tiling.options, "GROUPS": groups, "IS_SILU": activation == "silu"}
    size = (tiling.pixels, tiling.parts)
    partial = Launch(
        kernel=kernel_normalize_gradient.gradient_sums_kernel,
        grid=tiling.grid,
        arguments=(grad, x, weight, bias, mean, rstd, sums[0], sums[1], *size, slope),
        options=options,
    )
    combine = Launch(
        kernel=kernel_normalize_gradient.group_gradients_kernel,
        grid=(tiling.samples * groups,),
        arguments=(*sums, weight, *channel_sums, *group_sums, *size),
        options=tiling.reduction,
    )
    gradient = Launch(
        kernel=kernel_normalize_gradient.input_gradient_kernel,
        grid=tiling.grid,
        arguments=(grad, x, weight, bias, mean, rstd, *group_sums, grad_x, *size, slope),
        options=options,
    )
    return [partial, combine, gradient]


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
    """Compute :func:`.reference.forward` in three launches."""
    out = torch.empty_like(x, memory_format=torch.channels_last)
    mean, rstd = (x.new_empty((x.shape[0], groups), dtype=torch.float32) for _ in range(2))
    launches = forward_launches(
        _dense(x),
        weight.contiguous(),
        bias.contiguous(),
        None if total is None else _dense(total),
        groups=groups,
        activation=activation,
        slope=slope,
        eps=eps,
        out=out,
        mean=mean,
        rstd=rstd,
    )
    for launch in launches:
        launch.run()
    return out, mean, rstd


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
    """Compute :func:`.reference.backward` in three launches and one sum over the samples."""
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    channel_sums = mean.new_empty((2, x.shape[0], x.shape[1]))
    launches = backward_launches(
        _dense(grad),
        _dense(x),
        weight.contiguous(),
        bias.contiguous(),
        mean,
        rstd,
        groups=groups,
        activation=activation,
        slope=slope,
        grad_x=grad_x,
        channel_sums=channel_sums,
    )
    for launch in launches:
        launch.run()
    # Separate sums: the results of an operator must not share memory.
    grad_bias, grad_weight = (part.sum(dim=0).to(weight.dtype) for part in channel_sums)
    return grad_x, grad_weight, grad_bias


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _blocks(size: int, block: int) -> int:
    """Return the number of blocks that cover ``size`` elements."""
    return -(-size // block)


def _power_of_2(size: int) -> int:
    """Return the smallest power of two that is not below ``size``."""
    return 1 << (size - 1).bit_length()
