"""Forecast a large domain in overlapping tiles of the size that a model was trained on, and blend the results.

Blending weights are a squared cosine over each overlap and sum to 1 at every pixel, so a seam is at most as large as
the difference between the forecasts of neighboring tiles. Blended fields must be linear in rain rate or reflectivity
factor.
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
    """Positions of the tiles that cover a domain (H, W); adjacent tiles overlap by at least ``overlap`` pixels.

    A domain smaller than a tile is padded with missing pixels below and to the right. The ``margin`` of a tile along
    another tile has the weight 0.
    """

    domain: Shape
    tile: Shape
    overlap: int
    margin: int = 0

    def __post_init__(self) -> None:
        """Check the overlap.

        Raises:
            ConfigError: ``overlap`` is negative, less than two margins, or more than half a tile.
        """
        if 4 * self.margin > min(self.tile):
            raise ConfigError(
                f"--tile {self.tile[0]} {self.tile[1]} is invalid for a model that was trained with data.crop.margin="
                f"{self.margin}, because the margins of neighboring tiles are discarded; choose at least "
                f"{4 * self.margin} pixels"
            )
        if 0 <= self.overlap < 2 * self.margin:
            raise ConfigError(
                f"--overlap {self.overlap} is invalid: the model was trained with data.crop.margin={self.margin}, and "
                f"the margins of neighboring tiles are discarded; choose {2 * self.margin} to {min(self.tile) // 2}"
            )
        if not 0 <= self.overlap <= min(self.tile) // 2:
            raise ConfigError(
                f"--overlap {self.overlap} is invalid for tiles of {self.tile[0]} x {self.tile[1]} pixels; choose 0 to "
                f"{min(self.tile) // 2}"
            )

    @property
    def padded(self) -> Shape:
        """Shape of the domain after padding, at least that of a tile."""
        return max(self.domain[0], self.tile[0]), max(self.domain[1], self.tile[1])

    @cached_property
    def rows(self) -> "list[Strip]":
        """The rows of tiles from north to south."""
        return _strips(self.padded[0], self.tile[0], self.overlap, self.margin)

    @cached_property
    def columns(self) -> "list[Strip]":
        """The columns of tiles from west to east."""
        return _strips(self.padded[1], self.tile[1], self.overlap, self.margin)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def tiles(self) -> "Iterator[tuple[Strip, Strip]]":
        """Yield the row and the column of every tile."""
        return product(self.rows, self.columns)


@dataclass(frozen=True, eq=False)
class Strip:
    """First pixel of a row or column of tiles, and the blending weight of each of its pixels, float32 ``[tile]``."""

    start: int
    weight: np.ndarray

    @property
    def pixels(self) -> slice:
        """The slice of its pixels in the domain."""
        return slice(self.start, self.start + len(self.weight))


def _strips(length: int, tile: int, overlap: int, margin: int) -> list[Strip]:
    count = 1 if length == tile else math.ceil((length - overlap) / (tile - overlap))
    starts = [round(k * (length - tile) / max(count - 1, 1)) for k in range(count)]
    weights = np.ones((count, tile))
    for k in range(1, count):
        shared = starts[k - 1] + tile - starts[k]
        blended = max(shared - 2 * margin, 0)
        rise = np.zeros(shared)
        rise[margin : margin + blended] = np.sin(np.pi / 2 * (np.arange(blended) + 0.5) / max(blended, 1)) ** 2
        rise[margin + blended :] = 1.0
        weights[k, :shared] *= rise
        weights[k - 1, tile - shared :] *= 1.0 - rise
    # Three tiles meet where an overlap is more than half a tile: normalize the sum to 1.
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
    """Forecast in batches of tiles and add the blended result to ``out``.

    Memory in addition to ``out`` is that of ``batch`` tiles, for any number of tiles. Tiles without a pixel that is
    valid in all frames are skipped.

    Args:
        forecast: function of encoded values ``[B, T, h, w]`` and of the upper left pixel of each tile in the domain;
            returns linear fields, float32 ``[B, ..., h, w]``.
        codes: encoded values of the domain, uint8 ``[T, H, W]``.
        tiling: tiles of that domain.
        out: float32 ``[..., H, W]``, initialized to zero.
        batch: tiles per call of ``forecast``.
    """
    height, width = tiling.domain
    below, right = tiling.padded[0] - height, tiling.padded[1] - width
    if below or right:
        codes = np.pad(codes, ((0, 0), (0, below), (0, right)), constant_values=MISSING_CODE)
    valid = np.ones(tiling.padded, dtype=bool)
    for frame in codes:  # a comparison of all frames at once would allocate a second copy of the domain
        valid &= frame != MISSING_CODE
    tiles = [(row, column) for row, column in tiling.tiles() if valid[row.pixels, column.pixels].any()]
    for begin in range(0, len(tiles), batch):
        part = tiles[begin : begin + batch]
        inputs = np.stack([codes[:, row.pixels, column.pixels] for row, column in part])
        corners = [(row.start, column.start) for row, column in part]
        for (row, column), field in zip(part, forecast(inputs, corners), strict=True):
            inside = np.s_[..., : height - row.start, : width - column.start]
            weighted = field * (row.weight[:, None] * column.weight[None, :])
            out[..., row.pixels, column.pixels] += weighted[inside]
