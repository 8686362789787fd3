"""Cuboid attention on row shards: which tokens the ranks exchange so that each cuboid is complete on one rank.

Cuboids that end at the borders of the shards are local. Shifted cuboids cross the borders: a rank computes those that
begin in its rows, from a halo below, and returns the rows of the next rank. Cuboids longer than the rows of a rank,
such as the columns of axial attention, need whole columns: an all-to-all distributes columns, or frames, instead of
rows. All other cuboids, such as those dilated along both H and W, are computed by each rank from the gathered rows, at
the cost of one rank.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simcast_hpc.distributed.row_shards import RowShards
from simcast_kernels.cuboid_attention.geometry import make_grid

from .patterns import Cuboid, Triple

_ROWS = 2  # axis of H in [B, T, H, W, D]
_AXES = {"columns": 2, "frames": 0}  # axis of (T, H, W) that is distributed instead of the rows


class RowShardedAttention:
    """One cuboid attention on the rows of this rank.

    Args:
        shards: of the rows.
        cuboid: size, strategy and shift on the whole grid.
        tokens: the whole grid (T, H, W) of the queries; the ranks divide H.
        padding: ``model.padding``.
        has_memory: whether keys are those of a memory (cross-attention), whose frames are all needed.

    Attributes:
        kind: ``local``, ``shifted``, ``columns``, ``frames`` (what an all-to-all distributes) or ``gathered``.
    """

    def __init__(self, shards: RowShards, cuboid: Cuboid, tokens: Triple, *, padding: str, has_memory: bool):
        self.shards, self.cuboid, self.tokens = shards, cuboid, tokens
        self.grid = make_grid(tokens, cuboid=cuboid.size, strategy=cuboid.strategy, shift=cuboid.shift)
        self.rows = tokens[1] // shards.size
        axes = (1, 2) if has_memory else (0, 1, 2)  # the cuboids of a memory contain all of its frames
        is_padded = any(self.grid.padding[axis] for axis in axes)
        # Without padding `nearest` equals `ignore`; with it, a part of a grid would be resampled otherwise.
        self.padding = padding if is_padded else "ignore"
        self.kind = "gathered" if self.padding == "nearest" else self._kind(has_memory)

    def __call__(
        self,
        attend: Callable[..., Tensor],
        *fields: Tensor,
        global_query: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Return ``attend`` of this rank's rows of the whole grid, ``[B, T, n, W, D]``.

        Args:
            attend: ``cuboid_attention`` or ``cuboid_cross_attention``.
            fields: its positional arguments, ``[B, T, n, W, F]``.
            global_query: see ``attend``, ``[B, T, n, W, D]``.
            options: its other arguments except cuboid, strategy, shift, padding, offset and domain.
        """

        def attention(parts: Sequence[Tensor], *, first: int, axis: int = 1, shift: int | None = None) -> Tensor:
            *own, query = [*parts, None] if global_query is None else parts
            offset, shifts = [0, 0, 0], list(self.cuboid.shift)
            offset[axis] = first
            shifts[1] = shifts[1] if shift is None else shift
            return attend(
                *own,
                cuboid=self.cuboid.size,
                strategy=self.cuboid.strategy,
                shift=tuple(shifts),
                padding=self.padding,
                global_query=query,
                offset=tuple(offset),
                domain=self.tokens,
                **options,
            )

        parts = list(fields) if global_query is None else [*fields, global_query]
        if self.kind == "gathered":
            whole = attention([self.shards.gather_rows(part, _ROWS) for part in parts], first=0)
            return self.shards.take(whole, _ROWS)
        if self.kind == "local":
            return attention(parts, first=self.shards.rank * self.rows, shift=0)
        if self.kind == "shifted":
            return self._shifted(parts, attention)
        return self._transposed(parts, attention, axis=_AXES[self.kind])

    def _shifted(self, parts: list[Tensor], attention: Callable[..., Tensor]) -> Tensor:
        """Attend in cuboids that begin ``shift`` rows below the borders of the shards.

        The first and the last cuboid of the grid are shorter; the shift of the op treats them as on one rank.
        """
        shards, rows, shift, length = self.shards, self.rows, self.grid.shift[1], self.grid.cuboid[1]
        is_first, is_last = shards.rank == 0, shards.rank == shards.size - 1
        # The op shifts no axis that one cuboid covers: then the last rank computes two.
        above = length if rows == length else 0
        start, count = (above, rows + shift) if is_first else (0, above + rows) if is_last else (above + shift, rows)
        parts = [shards.halo(part, above, shift, dim=_ROWS).narrow(_ROWS, start, count) for part in parts]
        first = shards.rank * rows - above + start
        out = attention(parts, first=first, shift=shift if is_first or is_last else 0)
        # The last `shift` rows belong to the next rank; all ranks take part, also in the backward pass.
        tail = out.narrow(_ROWS, 0, shift) if is_last else out.narrow(_ROWS, out.shape[_ROWS] - shift, shift)
        received = shards.halo(tail, shift, 0, dim=_ROWS).narrow(_ROWS, 0, shift)
        if is_first:
            received = received + out.narrow(_ROWS, 0, shift)  # of zeros, beyond the edge
            return torch.cat([received, out.narrow(_ROWS, shift, rows - shift)], dim=_ROWS)
        return torch.cat([received, out.narrow(_ROWS, above + shift if is_last else 0, rows - shift)], dim=_ROWS)

    def _transposed(self, parts: list[Tensor], attention: Callable[..., Tensor], *, axis: int) -> Tensor:
        """Attend in all rows of this rank's part of another axis."""
        shards, length, unit, dim = self.shards, self.tokens[axis], self.grid.cuboid[axis], axis + 1
        share = _share(length, unit, shards.size)
        # A rank without own tokens attends in others, whose result is dropped: each rank uses all weights.
        count = min(max(length - shards.rank * share, unit), share)
        first = min(shards.rank * share, length - unit)
        parts = [
            shards.rows_to_columns(_padded(part, dim, shards.size * share), _ROWS, dim).narrow(dim, 0, count)
            for part in parts
        ]
        out = attention(parts, first=first, axis=axis)
        return shards.columns_to_rows(_padded(out, dim, share), _ROWS, dim).narrow(dim, 0, length)

    def _kind(self, has_memory: bool) -> str:
        length, shift, dilated = self.grid.cuboid[1], self.grid.shift[1], self.grid.dilated[1]
        if length == 1 or (self.rows % length == 0 and not dilated):
            return "shifted" if shift else "local"
        for kind, axis in _AXES.items():
            if not (kind == "frames" and has_memory) and self._divides(axis):
                return kind
        return "gathered"

    def _divides(self, axis: int) -> bool:
        """Return whether the ranks can divide an axis at the borders of cuboids, and each has one."""
        unit, length = self.grid.cuboid[axis], self.tokens[axis]
        contiguous = unit == 1 or (not self.grid.dilated[axis] and length % unit == 0)
        return contiguous and self.grid.shift[axis] == 0 and length // unit >= self.shards.size


def _share(length: int, unit: int, size: int) -> int:
    """Return the tokens of each rank, a multiple of ``unit``; the last ranks may have fewer."""
    return -(-length // (unit * size)) * unit


def _padded(x: Tensor, dim: int, length: int) -> Tensor:
    missing = length - x.shape[dim]
    return F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [0, missing]) if missing else x
