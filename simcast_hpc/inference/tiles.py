"""A domain cut into overlapping tiles of the size that a model was trained on, and their forecasts blended.

Weights fall from 1 to 0 as a cosine over each overlap and add up to 1 at every pixel, so that a seam can be no larger
than what two neighbouring tiles say differently there. What is blended must be linear in the amount of water or echo.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from simcast_hpc.config import ConfigError
from simcast_hpc.data.dataset_spec import MISSING_CODE

Shape = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """How a domain (H, W) is covered by tiles, neighbours sharing at least ``overlap`` pixels.

    A domain smaller than a tile is padded with missing pixels below and to the right.
    """

    domain: Shape
    tile: Shape
    overlap: int

    def __post_init__(self) -> None:
        """Refuse an overlap that leaves no way forward.

        Raises:
            ConfigError: ``overlap`` is negative, or above half of a tile.
        """
        if not 0 <= self.overlap <= min(self.tile) // 2:
            raise ConfigError(
                f"--overlap {self.overlap} with tiles of {self.tile[0]} x {self.tile[1]} pixels; "
                f"0 to {min(self.tile) // 2} is possible"
            )

    @property
    def padded(self) -> Shape:
        """The domain, at least as large as a tile."""
        return max(self.domain[0], self.tile[0]), max(self.domain[1], self.tile[1])

    @cached_property
    def rows(self) -> "list[Strip]":
        """The strips of tiles from north to south."""
        return _strips(self.padded[0], self.tile[0], self.overlap)

    @cached_property
    def columns(self) -> "list[Strip]":
        """The strips of tiles from west to east."""
        return _strips(self.padded[1], self.tile[1], self.overlap)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def tiles(self) -> "Iterator[tuple[Strip, Strip]]":
        """Yield row and column of every tile."""
        return product(self.rows, self.columns)


@dataclass(frozen=True, eq=False)
class Strip:
    """Where a row or column of tiles begins, and the weight of each of its pixels, float32 ``[tile]``."""

    start: int
    weight: np.ndarray

    @property
    def pixels(self) -> slice:
        """Its pixels in the domain."""
        return slice(self.start, self.start + len(self.weight))


def _strips(length: int, tile: int, overlap: int) -> list[Strip]:
    count = 1 if length == tile else math.ceil((length - overlap) / (tile - overlap))
    starts = [round(k * (length - tile) / max(count - 1, 1)) for k in range(count)]
    weights = np.ones((count, tile))
    for k in range(1, count):
        shared = starts[k - 1] + tile - starts[k]
        rise = np.sin(np.pi / 2 * (np.arange(shared) + 0.5) / max(shared, 1)) ** 2
        weights[k, :shared] *= rise
        weights[k - 1, tile - shared :] *= 1.0 - rise
    # Where an overlap is above half a tile, three tiles meet; dividing by the sum keeps it at 1.
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    return [
        Strip(start, (weight / total[start : start + tile]).astype(np.float32))
        for start, weight in zip(starts, weights, strict=True)
    ]


def forecast_in_tiles(
    forecast: Callable[[np.ndarray, Sequence[Shape]], np.ndarray],
    codes: np.ndarray,
    tiling: Tiling,
    *,
    out: np.ndarray,
    batch: int,
) -> None:
    """Forecast tile by tile and add the blended result into ``out``.

    Memory beside ``out`` is that of ``batch`` tiles, however many there are. Tiles in which every pixel is missing in
    some frame are left out: nothing is forecast there.

    Args:
        forecast: from codes ``[B, T, h, w]``, and the upper left pixels of the tiles in the domain, to linear fields
            ``[B, ..., h, w]``, float32.
        codes: uint8 ``[T, H, W]``, the whole domain.
        tiling: of that domain.
        out: float32 ``[..., H, W]``, zeros.
        batch: tiles that are forecast together.
    """
    height, width = tiling.domain
    below, right = tiling.padded[0] - height, tiling.padded[1] - width
    if below or right:
        codes = np.pad(codes, ((0, 0), (0, below), (0, right)), constant_values=MISSING_CODE)
    seen = np.ones(tiling.padded, dtype=bool)
    for frame in codes:  # one by one: all at once would be a second copy of the domain
        seen &= frame != MISSING_CODE
    wanted = [(row, column) for row, column in tiling.tiles() if seen[row.pixels, column.pixels].any()]
    for begin in range(0, len(wanted), batch):
        chosen = wanted[begin : begin + batch]
        cut = np.stack([codes[:, row.pixels, column.pixels] for row, column in chosen])
        corners = [(row.start, column.start) for row, column in chosen]
        for (row, column), field in zip(chosen, forecast(cut, corners), strict=True):
            inside = np.s_[..., : height - row.start, : width - column.start]
            weighted = field * (row.weight[:, None] * column.weight[None, :])
            out[..., row.pixels, column.pixels] += weighted[inside]
