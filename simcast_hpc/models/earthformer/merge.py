"""Coarser grids: patches merged into one token."""

import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]


def merged(grid: Grid, scale: int) -> Grid:
    """Return the grid after a merge of ``scale`` x ``scale`` patches; an incomplete patch counts."""
    return -(-grid[0] // scale), -(-grid[1] // scale)


class PatchMerge(nn.Module):
    """Join patches of ``scale`` x ``scale`` tokens: ``[..., H, W, D] -> [..., ceil(H/s), ceil(W/s), E]``.

    A grid that is no multiple is padded at its end, with zeros, or for ``nearest`` stretched to the next multiple.
    """

    def __init__(self, width_in: int, width_out: int, *, scale: int, padding: str):
        super().__init__()
        self.scale, self.padding = scale, padding
        self.norm = nn.LayerNorm(scale**2 * width_in)
        self.reduce = nn.Linear(scale**2 * width_in, width_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged tokens."""
        leading = x.shape[:-3]
        x = self._padded(x.flatten(0, -4))
        patches = x.unflatten(2, (-1, self.scale)).unflatten(1, (-1, self.scale)).transpose(2, 3).flatten(3)
        return self.reduce(self.norm(patches)).unflatten(0, leading)

    def _padded(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        grid = merged((height, width), self.scale)
        wanted = (grid[0] * self.scale, grid[1] * self.scale)
        if wanted == (height, width):
            return x
        if self.padding == "nearest":
            return F.interpolate(x.permute(0, 3, 1, 2), size=wanted).permute(0, 2, 3, 1)
        return F.pad(x, (0, 0, 0, wanted[1] - width, 0, wanted[0] - height))
