"""The levels of the hierarchy: their grids and patterns."""

from simcast_hpc.config import EarthformerConfig

from .merge import Grid, merged
from .patterns import cross_attention_pattern, self_attention_pattern
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


def check_patterns(config: EarthformerConfig, *, frames_in: int) -> None:
    """Refuse the name of a pattern that is none.

    Raises:
        ValueError: names the field, and the pattern most like it.
    """
    for level, grid in enumerate(level_grids(config)):
        for field, find in (
            ("encoder_pattern", self_attention_pattern),
            ("decoder_pattern", self_attention_pattern),
            ("cross_pattern", cross_attention_pattern),
        ):
            try:
                find(pattern_at(getattr(config, field), level), (frames_in, *grid))
            except ValueError as error:
                raise ValueError(f"model.{field}: {error}") from None
