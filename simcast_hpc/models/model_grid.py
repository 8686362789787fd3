"""The pixel grid that a model is built for, and whether the model divides it evenly."""

import math
from itertools import product

from simcast_hpc.config import ConvStem, EarthformerConfig, ModelConfig, SimVPConfig, StackConvStem

from .earthformer.stems import axis_scales, stem_scales

Grid = tuple[int, int]
_LARGEST_SCALE = 8


def grid_of(config: ModelConfig) -> Grid | None:
    """Return the only grid (H, W) that the model accepts; None if it accepts several or the field is not set."""
    return config.grid if isinstance(config, EarthformerConfig) else None


def with_grid(config: ModelConfig, grid: Grid) -> ModelConfig:
    """Return ``config`` with the grid of the data filled in, if the model is built for one grid.

    Raises:
        ValueError: ``config`` sets another grid, or the merges of the model do not divide this one. An incomplete patch
            would be padded by the stem and stretched by the head, which shifts the field; only published weights may
            do so.
    """
    if isinstance(config, SimVPConfig):
        return config
    if config.grid not in (None, grid):
        raise ValueError(
            f"model.grid={list(config.grid or ())} differs from the frames of the data, which are {_format(grid)}; "
            "remove model.grid to use the grid of the data"
        )
    _check_complete_patches(config, grid)
    return config.model_copy(update={"grid": grid})


def _check_complete_patches(config: EarthformerConfig, grid: Grid) -> None:
    level_factor = config.downsampling ** (config.levels - 1)
    rows, columns = (math.prod(scales) * level_factor for scales in _scales_by_axis(config))
    if grid[0] % rows == 0 and grid[1] % columns == 0:
        return
    factor = rows if rows == columns else f"{rows} x {columns}"
    field, value = _stem_field(config)
    raise ValueError(
        f"{field}={value} and {config.levels - 1} merge(s) by model.downsampling={config.downsampling} reduce the grid "
        f"by {factor}, which does not divide {_format(grid)}; "
        f"{_suggestion(config, math.gcd(*grid), level_factor, field)}"
    )


def _suggestion(config: EarthformerConfig, divisor: int, level_factor: int, field: str) -> str:
    """Return the valid scales of the stem that are nearest to the configured ones, as part of a message."""
    scales_of_rows, _ = _scales_by_axis(config)
    configured, stages = math.prod(scales_of_rows), len(scales_of_rows)
    choices = [
        scales
        for scales in product(range(_LARGEST_SCALE, 0, -1), repeat=stages)
        if list(scales) == sorted(scales, reverse=True) and divisor % (math.prod(scales) * level_factor) == 0
    ]
    if not choices or not stages:
        return "use fewer levels (shorter model.encoder_depth and model.decoder_depth)"
    nearest = min(
        choices, key=lambda scales: (abs(math.log(math.prod(scales) / configured)), max(scales) - min(scales))
    )
    return f"try {field}={list(nearest) if isinstance(config.stem, StackConvStem) else nearest[0]}"


def _scales_by_axis(config: EarthformerConfig) -> tuple[list[int], list[int]]:
    """Return the factors of the stem's merges along H, and along W."""
    scales = [axis_scales(scale) for scale in stem_scales(config)]
    return [rows for rows, _ in scales], [columns for _, columns in scales]


def _stem_field(config: EarthformerConfig) -> tuple[str, object]:
    if isinstance(config.stem, StackConvStem):
        return "model.stem.scales", list(config.stem.scales)
    if isinstance(config.stem, ConvStem):
        scale = config.stem.scale
        return "model.stem.scale", scale if isinstance(scale, int) else list(scale)
    return "model.stem", "none"


def _format(grid: Grid) -> str:
    return f"{grid[0]} x {grid[1]} pixels"
