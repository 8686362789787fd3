"""Launches of ``bias_activation``: one kernel forward, one backward, and a sum of partial sums in PyTorch.

With n elements of ``[R, C]``, the forward pass reads n (with a residual 2n) and writes n; the backward pass reads the
gradient, with an activation also x, and writes n. Each program covers a run of rows and at most ``COLUMNS`` columns; in
the backward pass it also writes one float32 sum per column. C is a constant of the compiled code.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from simcast_kernels.dispatch import Launch

from . import kernel_pointwise
from .checks import DROPOUT_STEPS, drop_below
from .reference import OCTET

COLUMNS = 128  # columns of a program: 256 bytes of bfloat16
ELEMENTS = 1024  # of a tile: eight of a thread
WARPS = 4
STEPS = 32  # tiles of a program at most
PROGRAMS = 2048  # fewer tiles per program if there would be fewer programs


@dataclass(frozen=True)
class Tiling:
    """Tile sizes for ``[R, C]``: ``block_rows`` by ``columns``, ``steps`` tiles per program."""

    rows: int
    channels: int

    @cached_property
    def columns(self) -> int:
        """Columns of a program: a power of two that divides C, unless that would be less than a 32-byte sector."""
        whole = max(OCTET, min(COLUMNS, 1 << (self.channels - 1).bit_length()))
        divisor = self.channels & -self.channels
        return divisor if 16 <= divisor < whole else whole

    @cached_property
    def block_rows(self) -> int:
        """Rows of a tile."""
        return ELEMENTS // self.columns

    @cached_property
    def column_blocks(self) -> int:
        """Programs along the columns."""
        return -(-self.channels // self.columns)

    @cached_property
    def steps(self) -> int:
        """Tiles of a program."""
        tiles = self.column_blocks * -(-self.rows // self.block_rows)
        return max(4, min(STEPS, 1 << (tiles // PROGRAMS).bit_length() >> 1))

    @cached_property
    def parts(self) -> int:
        """Programs along the rows."""
        return -(-self.rows // (self.block_rows * self.steps))

    def launch(
        self, kernel: object, arguments: tuple[object, ...], *, activation: str, slope: float, dropout: float, seed: int
    ) -> Launch:
        """Return a launch of a kernel with its tensors."""
        dropped = drop_below(dropout)
        return Launch(
            kernel=kernel,
            grid=(self.parts * self.column_blocks,),
            arguments=(*arguments, self.rows, seed, slope),
            options={
                "CHANNELS": self.channels,
                "ACTIVATION": activation,
                "DROP_BELOW": dropped,
                "FACTOR": DROPOUT_STEPS / (DROPOUT_STEPS - dropped),
                "COLUMN_BLOCKS": self.column_blocks,
                "STEPS": self.steps,
                "BLOCK_R": self.block_rows,
                "BLOCK_C": self.columns,
                "num_warps": WARPS,
            },
        )


def tiling_of(x: Tensor) -> Tiling:
    """Return the tile sizes for ``x [..., C]``, which is not empty."""
    return Tiling(x.numel() // x.shape[-1], x.shape[-1])


def forward_launch(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    activation: str,
    slope: float,
    dropout: float,
    seed: int,
    out: Tensor,
) -> Launch:
    """Return the launch that writes ``out``; all tensors are contiguous."""
    settings = {"activation": activation, "slope": slope, "dropout": dropout, "seed": seed}
    return tiling_of(x).launch(kernel_pointwise.forward_kernel, (x, bias, residual, out), **settings)


def backward_launch(
    grad: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    *,
    activation: str,
    slope: float,
    dropout: float,
    seed: int,
    grad_x: Tensor,
    bias_partials: Tensor,
) -> Launch:
    """Return the launch that writes ``grad_x`` and ``bias_partials [parts, C]``, float32."""
    settings = {"activation": activation, "slope": slope, "dropout": dropout, "seed": seed}
    tensors = (grad, x, bias, grad_x, bias_partials)
    return tiling_of(grad).launch(kernel_pointwise.backward_kernel, tensors, **settings)


def forward(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """Compute :func:`.reference.forward` in one launch."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    forward_launch(
        x.contiguous(),
        _dense(bias),
        _dense(residual),
        activation=activation,
        slope=slope,
        dropout=dropout,
        seed=seed,
        out=out,
    ).run()
    return out


def backward(
    grad: Tensor, x: Tensor | None, bias: Tensor | None, activation: str, slope: float, dropout: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Compute :func:`.reference.backward` in one launch and one sum over the parts."""
    grad_x = torch.empty_like(grad, memory_format=torch.contiguous_format)
    tiling = tiling_of(grad)
    partials = grad.new_empty((tiling.parts, tiling.channels), dtype=torch.float32)
    backward_launch(
        grad.contiguous(),
        _dense(x),
        _dense(bias),
        activation=activation,
        slope=slope,
        dropout=dropout,
        seed=seed,
        grad_x=grad_x,
        bias_partials=partials,
    ).run()
    return grad_x, partials.sum(dim=0)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
