"""Learned positions, added to the tokens."""

import torch
from torch import Tensor, nn

from .patterns import Triple


class Positions(nn.Module):
    """Add a learned vector per place: ``[B, T, H, W, D] -> [B, T, H, W, D]``.

    ``t+h+w`` has a table per axis, ``t+hw`` one of time and one of space.
    """

    def __init__(self, kind: str, *, tokens: Triple, width: int):
        super().__init__()
        t, h, w = tokens
        separate = kind == "t+h+w"
        self.grid = (h, w)
        self.time = _table(t, width)
        self.row = _table(h, width) if separate else None
        self.column = _table(w, width) if separate else None
        self.space = None if separate else _table(h * w, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with its positions added."""
        x = x + self.time[:, None, None]
        if self.space is not None:
            return x + self.space.unflatten(0, self.grid)
        assert self.row is not None and self.column is not None
        return x + self.row[:, None] + self.column


def _table(places: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(places, width), std=0.02))
