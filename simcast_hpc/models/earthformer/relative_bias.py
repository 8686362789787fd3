"""The learned bias of a pair of tokens, by head and by how far apart they stand along each axis."""

import torch
from torch import Tensor, nn

from .patterns import Triple


class RelativeBias(nn.Module):
    """A table over offsets (t, h, w), read for every pair of tokens of a cuboid: ``-> [heads, Lq, Lk]``.

    The read is a product with one-hot rows along each axis in turn: exact, and its gradient a matrix product, so
    the same to the bit at every run, where the gradient of an indexed read adds with atomics.

    Args:
        heads: attention heads.
        extents: the largest cuboid (T, H, W) that the table serves; it has ``(2T-1)(2H-1)(2W-1)`` rows.
        queries: the cuboid of queries, within ``extents``.
        keys: the cuboid of keys, within ``extents``.

    Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), Eq. 4, with a third axis.
    """

    def __init__(self, heads: int, *, extents: Triple, queries: Triple, keys: Triple):
        super().__init__()
        self.extents, self.queries, self.keys = extents, queries, keys
        rows = [2 * extent - 1 for extent in extents]
        self.table = nn.Parameter(torch.empty(rows[0] * rows[1] * rows[2], heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self) -> Tensor:
        """Return the bias ``[heads, Lq, Lk]`` in the dtype of the table; tokens are counted w fastest."""
        table = self.table.unflatten(0, [2 * extent - 1 for extent in self.extents])
        t, h, w = (self._offsets(axis) for axis in range(3))
        bias = torch.einsum("abcn,xXc->nabxX", table, w)
        bias = torch.einsum("nabxX,yYb->nayYxX", bias, h)
        bias = torch.einsum("nayYxX,tTa->ntyxTYX", bias, t)
        return bias.flatten(4, 6).flatten(1, 3)

    def index(self) -> Tensor:
        """Return the table's row for every pair of tokens of the largest cuboid, ``[L, L]`` int64."""
        axes = [torch.arange(extent, device=self.table.device) for extent in self.extents]
        places = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")])
        offsets = places[:, :, None] - places[:, None, :]
        _, h, w = self.extents
        rows = torch.tensor([(2 * h - 1) * (2 * w - 1), 2 * w - 1, 1], device=self.table.device)
        starts = torch.tensor(self.extents, device=self.table.device) - 1
        return ((offsets + starts[:, None, None]) * rows[:, None, None]).sum(0)

    def _offsets(self, axis: int) -> Tensor:
        """Return one-hot ``[queries, keys, 2 * extent - 1]`` along one axis, in the dtype of the table."""
        extent, device = self.extents[axis], self.table.device
        query = torch.arange(self.queries[axis], device=device)[:, None, None]
        key = torch.arange(self.keys[axis], device=device)[None, :, None]
        return (torch.arange(2 * extent - 1, device=device) == query - key + extent - 1).to(self.table.dtype)
