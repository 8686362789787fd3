"""Which grid of pixels a model is made for, and whether it divides it evenly."""

import math
from itertools import product

from simcast_hpc.config import ConvStem, EarthformerConfig, ModelConfig, SimVPConfig, StackConvStem

from .earthformer.stems import stem_scales

Grid = tuple[int, int]
_LARGEST_SCALE = 8


def grid_of(config: ModelConfig) -> Grid | None:
    """Return the one grid (H, W) that a model of ``config`` takes; None where it takes several, or it is left open."""
    return config.grid if isinstance(config, EarthformerConfig) else None


def fitted_to(config: ModelConfig, grid: Grid) -> ModelConfig:
    """Return ``config`` with the grid of its data, if the model is made for one grid.

    Raises:
        ValueError: another grid is stated, or its merges do not divide this one. An incomplete patch would be padded
            on the way in and stretched on the way out, which moves what it shows; published weights alone may do so.
    """
    if isinstance(config, SimVPConfig):
        return config
    if config.grid not in (None, grid):
        raise ValueError(
            f"model.grid={list(config.grid or ())} but the frames of the data are {_by(grid)}; "
            "leave model.grid out, then it is that of the data"
        )
    _reject_incomplete_patches(config, grid)
    return config.model_copy(update={"grid": grid})


def _reject_incomplete_patches(config: EarthformerConfig, grid: Grid) -> None:
    below = config.downsampling ** (config.levels - 1)
    factor = math.prod(stem_scales(config)) * below
    if grid[0] % factor == 0 and grid[1] % factor == 0:
        return
    field, value = _merges(config)
    raise ValueError(
        f"{field}={value} and {config.levels - 1} merge(s) by model.downsampling={config.downsampling} divide the grid "
        f"by {factor}, which {_by(grid)} pixels are no multiple of; {_remedy(config, math.gcd(*grid), below, field)}"
    )


def _remedy(config: EarthformerConfig, divisor: int, below: int, field: str) -> str:
    """Return the scales nearest to those asked for that do divide the grid, in words."""
    wanted, stages = math.prod(stem_scales(config)), len(stem_scales(config))
    choices = [
        scales
        for scales in product(range(_LARGEST_SCALE, 0, -1), repeat=stages)
        if list(scales) == sorted(scales, reverse=True) and divisor % (math.prod(scales) * below) == 0
    ]
    if not choices or not stages:
        return "take fewer levels (shorter model.encoder_depth and model.decoder_depth)"
    nearest = min(choices, key=lambda scales: (abs(math.log(math.prod(scales) / wanted)), max(scales) - min(scales)))
    return f"try {field}={list(nearest) if isinstance(config.stem, StackConvStem) else nearest[0]}"


def _merges(config: EarthformerConfig) -> tuple[str, object]:
    if isinstance(config.stem, StackConvStem):
        return "model.stem.scales", list(config.stem.scales)
    if isinstance(config.stem, ConvStem):
        return "model.stem.scale", config.stem.scale
    return "model.stem", "none"


def _by(grid: Grid) -> str:
    return f"{grid[0]} x {grid[1]}"
