"""Spatial sharding: the rows of a field over the ranks of a group, and their differentiable exchange.

The ranks of a group process one sample. Each has H / p consecutive rows; the loss of a group is the sum of the losses
of its ranks, so the gradient of an exchange is the exchange in the opposite direction, and that of a sum is the sum of
the gradients. All ranks of a group call the same methods in the same order.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simcast_hpc.config import ConfigError


class _Piece(NamedTuple):
    """Consecutive rows of another rank, numbered in the whole field."""

    rank: int
    first: int
    end: int


def rows_per_rank(height: int, size: int, multiple: int = 1) -> int:
    """Return the rows of each of ``size`` ranks in a field of ``height`` rows, a multiple of ``multiple``.

    Raises:
        ConfigError: the rows cannot be divided evenly; it names the next height that can.
    """
    unit = size * multiple
    if height < 1 or height % unit:
        fits = max(1, -(-height // unit)) * unit
        raise ConfigError(
            f"parallel.spatial={size} does not divide the {height} rows of a frame into multiples of {multiple}; the "
            f"next height that fits is {fits} (data.crop, or padded data), or choose another parallel.spatial"
        )
    return height // size


class RowShards:
    """The rows of this rank among ``size`` ranks that share each sample.

    Args:
        rank: in the spatial group.
        size: ranks per group (``parallel.spatial``); 1 is the identity and needs no group.
        group: torch process group of the ``size`` ranks.
        device: on which the ranks compute.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None, *, device: torch.device | str = "cpu"):
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} of {size} is invalid; valid are 0 .. {size - 1}")
        if size > 1 and group is None:
            raise ValueError(f"{size} ranks need a process group")
        self.rank, self.size, self.group, self.device = rank, size, group, torch.device(device)

    def rows(self, height: int, multiple: int = 1) -> range:
        """Return the rows of this rank in a field of ``height`` rows; each rank has a multiple of ``multiple``.

        Raises:
            ConfigError: the rows cannot be divided evenly; it names the next height that can.
        """
        share = rows_per_rank(height, self.size, multiple)
        return range(self.rank * share, (self.rank + 1) * share)

    def take(self, x: Tensor, dim: int = -2, *, multiple: int = 1) -> Tensor:
        """Return this rank's rows of a whole field, a view.

        Raises:
            ConfigError: see :meth:`rows`.
        """
        rows = self.rows(x.shape[dim], multiple)
        return x if self.size == 1 else x.narrow(dim, rows.start, len(rows))

    def halo(self, x: Tensor, before: int, after: int, dim: int = -2) -> Tensor:
        """Return the local rows with ``before`` rows above and ``after`` rows below, from the ranks that have them.

        Rows beyond the edges of the whole field are zero. A halo larger than the rows of a rank is exchanged with
        several ranks. Differentiable.

        Args:
            x: local rows, ``n`` along ``dim``; the same shape on each rank.
            before: rows above, at least 0.
            after: rows below, at least 0.
            dim: axis of the rows.

        Returns:
            ``before + n + after`` rows along ``dim``, in the memory format of ``x``.
        """
        if before < 0 or after < 0:
            raise ValueError(f"a halo of {before} rows above and {after} below is invalid; both must be at least 0")
        if before == 0 and after == 0:
            return x
        return _Halo.apply(x, self, before, after, dim % x.ndim)  # pyright: ignore[reportReturnType]

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over the ranks, equal on each. Differentiable."""
        return x if self.size == 1 else _Sum.apply(x, self)  # pyright: ignore[reportReturnType]

    def maximum(self, x: Tensor) -> Tensor:
        """Return the element-wise maximum of ``x`` over the ranks, without gradient (a softmax needs none)."""
        if self.size == 1:
            return x.detach()
        return self._all_reduced(x, maximum=True)

    def rows_to_columns(self, x: Tensor, row_dim: int, column_dim: int) -> Tensor:
        """Return all rows of this rank's columns: ``[.., n, .., W, ..] -> [.., H, .., W / p, ..]``. Differentiable.

        Raises:
            ValueError: the ranks do not divide the columns.
        """
        return self._transpose(x, split=column_dim, join=row_dim)

    def columns_to_rows(self, x: Tensor, row_dim: int, column_dim: int) -> Tensor:
        """Return all columns of this rank's rows: ``[.., H, .., W / p, ..] -> [.., n, .., W, ..]``. Differentiable.

        Raises:
            ValueError: the ranks do not divide the rows.
        """
        return self._transpose(x, split=row_dim, join=column_dim)

    def gather_rows(self, x: Tensor, dim: int = -2) -> Tensor:
        """Return the rows of all ranks, in order, along ``dim``. Differentiable."""
        return x if self.size == 1 else _Gather.apply(x, self, dim % x.ndim)  # pyright: ignore[reportReturnType]

    def _transpose(self, x: Tensor, *, split: int, join: int) -> Tensor:
        if self.size == 1:
            return x
        split, join = split % x.ndim, join % x.ndim
        if x.shape[split] % self.size:
            fits = -(-x.shape[split] // self.size) * self.size
            raise ValueError(
                f"{self.size} ranks do not divide axis {split} of shape {tuple(x.shape)}; the next size that fits is "
                f"{fits}"
            )
        return _Transpose.apply(x, self, split, join)  # pyright: ignore[reportReturnType]

    # Not differentiable: the bodies of the functions below.

    def _needed(self, rank: int, rows: int, before: int, after: int) -> list[_Piece]:
        """Return what ``rank`` needs from other ranks for its halo, in the order of their rows."""
        first, end = max(rank * rows - before, 0), min((rank + 1) * rows + after, self.size * rows)
        pieces = (
            _Piece(other, max(first, other * rows), min(end, (other + 1) * rows))
            for other in range(self.size)
            if other != rank
        )
        return [piece for piece in pieces if piece.first < piece.end]

    def _exchange(self, sends: list[tuple[int, Tensor]], receives: list[tuple[int, Tensor]]) -> None:
        """Send and receive contiguous tensors, at most one for each pair of ranks and direction."""
        # In the order of the ranks: NCCL matches messages by their order, not by a tag.
        entries = [(rank, torch.distributed.irecv, buffer) for rank, buffer in receives]
        entries += [(rank, torch.distributed.isend, buffer) for rank, buffer in sends]
        operations = [
            torch.distributed.P2POp(operation, buffer, group=self.group, group_peer=rank)
            for rank, operation, buffer in sorted(entries, key=lambda entry: entry[0])
        ]
        if operations:
            for request in torch.distributed.batch_isend_irecv(operations):
                request.wait()

    def _all_to_all(self, chunks: Tensor) -> Tensor:
        """Return chunk ``rank`` of each rank, ``[p, ...]``, from contiguous ``[p, ...]``."""
        received = torch.empty_like(chunks)
        torch.distributed.all_to_all_single(received, chunks, group=self.group)
        return received

    def _all_reduced(self, x: Tensor, *, maximum: bool = False) -> Tensor:
        """Return the sum or the maximum over the ranks in new memory."""
        result = x.detach().clone(memory_format=torch.contiguous_format)
        operation = torch.distributed.ReduceOp.MAX if maximum else torch.distributed.ReduceOp.SUM
        torch.distributed.all_reduce(result, op=operation, group=self.group)
        return result

    def _all_gathered(self, own: Tensor) -> Tensor:
        """Return the contiguous tensor of each rank, ``[p, ...]``."""
        gathered = own.new_empty((self.size, *own.shape))
        torch.distributed.all_gather(list(gathered.unbind(0)), own, group=self.group)
        return gathered

    def _swap_axes(self, x: Tensor, split: int, join: int) -> Tensor:
        chunks = torch.stack(x.chunk(self.size, dim=split))
        return torch.cat(self._all_to_all(chunks).unbind(0), dim=join)


class _Halo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: RowShards, before: int, after: int, dim: int) -> Tensor:
        ctx.shards, ctx.before, ctx.after, ctx.dim = shards, before, after, dim
        rows, rank = x.shape[dim], shards.rank
        ctx.rows = rows
        receives = shards._needed(rank, rows, before, after)
        sends = _pieces_to_send(shards, rows, before, after)
        # 1. Exchange of contiguous copies
        source = [(piece.rank, x.narrow(dim, piece.first, piece.end - piece.first).contiguous()) for piece in sends]
        target = [(piece.rank, _rows_like(x, dim, piece.end - piece.first)) for piece in receives]
        shards._exchange(source, target)
        # 2. Rows in order; zeros beyond the edges
        out = _padded_like(x, dim, before + rows + after)
        out.narrow(dim, before, rows).copy_(x)
        offset = rank * rows - before
        for piece, (_, buffer) in zip(receives, target, strict=True):
            out.narrow(dim, piece.first - offset, piece.end - piece.first).copy_(buffer)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,), shards, dim, rows = grads, ctx.shards, ctx.dim, ctx.rows
        receives = shards._needed(shards.rank, rows, ctx.before, ctx.after)
        sends = _pieces_to_send(shards, rows, ctx.before, ctx.after)
        offset = shards.rank * rows - ctx.before
        # 1. The gradient of received rows returns to their owners
        source = [
            (piece.rank, grad.narrow(dim, piece.first - offset, piece.end - piece.first).contiguous())
            for piece in receives
        ]
        target = [(piece.rank, _rows_like(grad, dim, piece.end - piece.first)) for piece in sends]
        shards._exchange(source, target)
        # 2. Sum in the order of the ranks
        total = grad.narrow(dim, ctx.before, rows).clone()
        for piece, (_, buffer) in zip(sends, target, strict=True):
            total.narrow(dim, piece.first, piece.end - piece.first).add_(buffer)
        return total, None, None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: RowShards) -> Tensor:
        ctx.shards = shards
        return shards._all_reduced(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.shards._all_reduced(grads[0]), None


class _Transpose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: RowShards, split: int, join: int) -> Tensor:
        ctx.shards, ctx.split, ctx.join = shards, split, join
        return shards._swap_axes(x, split, join)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.shards._swap_axes(grads[0], ctx.join, ctx.split), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: RowShards, dim: int) -> Tensor:
        ctx.shards, ctx.dim = shards, dim
        return torch.cat(shards._all_gathered(x.contiguous()).unbind(0), dim=dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        chunks = torch.stack(grads[0].chunk(ctx.shards.size, dim=ctx.dim))
        return ctx.shards._all_to_all(chunks).sum(dim=0), None, None


def _pieces_to_send(shards: RowShards, rows: int, before: int, after: int) -> list[_Piece]:
    """Return the rows that each other rank needs of this one, numbered in this rank's rows."""
    own = shards.rank * rows
    return [
        _Piece(other, piece.first - own, piece.end - own)
        for other in range(shards.size)
        if other != shards.rank
        for piece in shards._needed(other, rows, before, after)
        if piece.rank == shards.rank
    ]


def _rows_like(x: Tensor, dim: int, rows: int) -> Tensor:
    """Return an uninitialized contiguous tensor with ``rows`` rows."""
    return x.new_empty((*x.shape[:dim], rows, *x.shape[dim + 1 :]))


def _padded_like(x: Tensor, dim: int, rows: int) -> Tensor:
    """Return zeros with ``rows`` rows, channels-last if ``x`` is."""
    out = x.new_zeros((*x.shape[:dim], rows, *x.shape[dim + 1 :]))
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        out = out.contiguous(memory_format=torch.channels_last)
    return out
