"""Positions of the random crops of training samples: within the radar coverage and, if configured, where it rains."""

from typing import TYPE_CHECKING

import numpy as np

from simcast_hpc.config import ConfigError, CropConfig, DataConfig

from .encoding import MISSING_CODE
from .importance_sampling import probabilities, rate_table
from .sample_order import random_fraction, random_integer

if TYPE_CHECKING:
    from .dataset_spec import DatasetSpec

_POSITIONS = 16  # positions of a sample among which one with enough covered pixels is chosen
_SCORED_SIDE = 64  # pixels per side of a crop on which coverage and rain are measured


def training_grid(config: DataConfig, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the grid (H, W) of training samples of data with ``grid``: that of a crop with its margin.

    Raises:
        ConfigError: the crop is larger than the grid.
    """
    crop = config.cropping
    if crop is None:
        return grid
    if crop.side > min(grid):
        with_margin = f" with margins of {crop.margin}" if crop.margin else ""
        raise ConfigError(
            f"data.crop={crop.size}{with_margin} is larger than the data's grid of {grid[0]} x {grid[1]} pixels"
        )
    return (crop.side, crop.side)


def uniform_corner(position: int, grid: tuple[int, int], *, side: int, seed: int, number: int = 0) -> tuple[int, int]:
    """Return the upper left pixel of a uniformly random ``side`` x ``side`` crop; ``number`` counts further ones."""
    suffix = f"-{number}" if number else ""
    top, left = (
        random_integer(position, seed=seed, purpose=f"crop-{axis}{suffix}", choices=size - side + 1)
        for axis, size in zip(("top", "left"), grid, strict=True)
    )
    return top, left


class CropPositions:
    """Chooses the crop of each training sample: a function of seed, position and the window's pixels only."""

    def __init__(self, config: DataConfig, spec: "DatasetSpec", *, seed: int):
        """Keep the rules of ``data.crop`` and ``data.sampling``; ``spec`` describes the encoding of the windows."""
        assert config.cropping is not None, "data.crop is set"
        self.crop: CropConfig = config.cropping
        self.sampling, self.seed = config.sampling, seed
        self._rates = rate_table(spec)

    @property
    def reads_pixels(self) -> bool:
        """Whether the crop depends on the pixels of the window."""
        return self._candidates > 1 or self.crop.minimum_coverage > 0

    def corner(self, codes: np.ndarray, position: int) -> tuple[int, int]:
        """Return the upper left pixel of the crop of window ``codes``, uint8 ``[T, H, W]``.

        Without further rules it is uniform. Otherwise one of 16 uniform positions: the first whose inner region has
        at least ``minimum_coverage`` valid pixels, or under importance sampling one of the first ``crop_candidates``
        of these, with the probability that a window of its mean rain rate has. If no position has enough coverage,
        that with the largest is used.
        """
        grid = (codes.shape[1], codes.shape[2])
        candidates = self._candidates
        if not self.reads_pixels:
            return uniform_corner(position, grid, side=self.crop.side, seed=self.seed)
        count = max(_POSITIONS, candidates)
        corners = [
            uniform_corner(position, grid, side=self.crop.side, seed=self.seed, number=number)
            for number in range(count)
        ]
        coverage, rate = self._score(codes, corners)
        eligible = np.flatnonzero(coverage >= self.crop.minimum_coverage)[:candidates]
        if not len(eligible):
            return corners[int(coverage.argmax())]
        if self.sampling is None:
            return corners[int(eligible[0])]
        shares = np.cumsum(probabilities(rate[eligible], self.sampling))
        point = random_fraction(position, seed=self.seed, purpose="crop-choice") * shares[-1]
        chosen = min(int(np.searchsorted(shares, point, side="right")), len(eligible) - 1)
        return corners[int(eligible[chosen])]

    @property
    def _candidates(self) -> int:
        return 1 if self.sampling is None else self.sampling.crop_candidates

    def _score(self, codes: np.ndarray, corners: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the share of valid pixels and the mean rate of the inner region of each crop, float64 ``[K]``.

        Every n-th row and column is used, at least 64 per crop.
        """
        every = max(1, self.crop.size // _SCORED_SIDE)
        sampled = np.ascontiguousarray(codes[:, ::every, ::every])
        valid = (sampled != MISSING_CODE).sum(axis=0)
        rain = self._rates[sampled].sum(axis=0, dtype=np.float64)
        coverage, rate = np.zeros(len(corners)), np.zeros(len(corners))
        for number, corner in enumerate(corners):
            inner = tuple(
                slice(-(-(first + self.crop.margin) // every), -(-(first + self.crop.margin + self.crop.size) // every))
                for first in corner
            )
            pixels = int(valid[inner].sum())
            coverage[number] = pixels / (valid[inner].size * len(codes))
            rate[number] = rain[inner].sum() / max(pixels, 1)
        return coverage, rate
