"""The levels of the hierarchy: their grids and patterns."""

from simcast_hpc.config import EarthformerConfig

from .merge import Grid, merged
from .stems import stem_grids


def level_grids(config: EarthformerConfig) -> list[Grid]:
    """Return the grid (H, W) of tokens of every level, finest first."""
    grids = [stem_grids(config)[-1]]
    for _ in range(1, config.levels):
        grids.append(merged(grids[-1], config.downsampling))
    return grids


def pattern_at(pattern: str | tuple[str, ...], level: int) -> str:
    """Return the name of a pattern at ``level``."""
    return pattern if isinstance(pattern, str) else pattern[level]
