"""Attention patterns: a name to the cuboids of consecutive attentions in a block, and the grids of the levels.

Source: Gao et al. (arXiv 2207.05833), section 3.1 and table 2, with sizes and shifts of the official implementation. A
token attends to the tokens of its cuboid. Along each axis a cuboid is local (``l``, adjacent tokens) or dilated (``d``,
every n-th token); a shift moves the grid of cuboids.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from simcast_hpc.config import EarthformerConfig

from .stems import Grid, merged_grid, stem_grids

Triple = tuple[int, int, int]
Strategy = tuple[str, str, str]

LOCAL: Strategy = ("l", "l", "l")
DILATED: Strategy = ("d", "d", "d")


@dataclass(frozen=True)
class Cuboid:
    """Cuboid of one attention: size and shift in tokens, and strategy, each over (T, H, W)."""

    size: Triple
    strategy: Strategy = LOCAL
    shift: Triple = (0, 0, 0)

    def clipped(self, tokens: Triple) -> Triple:
        """Return the size clipped to a grid of ``tokens`` (T, H, W)."""
        t, h, w = (min(extent, size) for extent, size in zip(tokens, self.size, strict=True))
        return t, h, w

    def split_shifted_axes(self, tokens: Triple) -> "Cuboid":
        """Return the cuboid with each shifted axis of H or W that it covers completely split in two.

        In cross-attention the official implementation also rolls such an axis, and the two parts that the roll joins do
        not attend to each other. They are cuboids of a smaller size: half the axis, or the larger half with a shift.
        In self-attention such an axis is not shifted.
        """
        size, shift = list(self.size), list(self.shift)
        for axis in (1, 2):
            if self.strategy[axis] == "l" and shift[axis] and size[axis] == tokens[axis]:
                size[axis] -= shift[axis]
                shift[axis] %= size[axis]
        return Cuboid((size[0], size[1], size[2]), self.strategy, (shift[0], shift[1], shift[2]))


def self_attention_pattern(name: str, tokens: Triple) -> tuple[Cuboid, ...]:
    """Return the cuboids of ``name`` on a grid of ``tokens`` (T, H, W).

    Valid names: ``full``, ``axial``, ``divided_st``, ``video_swin_PxM``, ``spatial_lg_M`` and ``axial_space_dilate_K``,
    with numbers for P, M and K; and the names of the official implementation without numbers: ``video_swin`` for
    ``video_swin_2x4``, and ``spatial_lg_v1`` for ``spatial_lg_4``.

    Raises:
        ValueError: the name is unknown or its number is invalid for the grid.
    """
    return _find(name, _SELF, tokens)


def cross_attention_pattern(name: str, tokens: Triple) -> tuple[Cuboid, ...]:
    """Return the cuboids of ``name`` on a memory of ``tokens`` (T, H, W); each covers the complete time axis.

    Valid names: ``cross_KxK``, ``cross_KxK_lg`` and ``cross_KxK_heter``, with a number for K.

    Raises:
        ValueError: the name is unknown.
    """
    return _find(name, _CROSS, tokens)


def _full(tokens: Triple) -> tuple[Cuboid, ...]:
    return (Cuboid(tokens),)


def _axial(tokens: Triple) -> tuple[Cuboid, ...]:
    t, h, w = tokens
    return Cuboid((t, 1, 1)), Cuboid((1, h, 1)), Cuboid((1, 1, w))


def _divided(tokens: Triple) -> tuple[Cuboid, ...]:
    t, h, w = tokens
    return Cuboid((t, 1, 1)), Cuboid((1, h, w))


def _video_swin(tokens: Triple, p: int, m: int) -> tuple[Cuboid, ...]:
    t, h, w = tokens
    p, m = min(p, t), min(m, h, w)
    size = (p, m, m)
    return Cuboid(size), Cuboid(size, shift=(p // 2, m // 2, m // 2))


def _spatial_local_global(tokens: Triple, m: int) -> tuple[Cuboid, ...]:
    t, h, w = tokens
    if h <= m and w <= m:
        return _divided(tokens)
    return Cuboid((t, 1, 1)), Cuboid((1, m, m)), Cuboid((1, m, m), DILATED)


def _axial_space_dilate(tokens: Triple, k: int) -> tuple[Cuboid, ...]:
    t, h, w = tokens
    k = min(k, h, w)
    row, column = (1, h // k, 1), (1, 1, w // k)
    return Cuboid((t, 1, 1)), Cuboid(row, DILATED), Cuboid(row), Cuboid(column, DILATED), Cuboid(column)


def _cross(tokens: Triple, k: int, *, dilated: bool = False, shifted: bool = False) -> tuple[Cuboid, ...]:
    t, h, w = tokens
    k = min(k, h, w)
    size = (t, k, k)
    cuboids = [Cuboid(size)]
    if dilated:
        cuboids.append(Cuboid(size, DILATED))
    if shifted:
        cuboids.append(Cuboid(size, shift=(0, k // 2, k // 2)))
    return tuple(cuboids)


_SELF: dict[str, Callable[..., tuple[Cuboid, ...]]] = {
    "full": _full,
    "axial": _axial,
    "divided_st": _divided,
    "video_swin": functools.partial(_video_swin, p=2, m=4),
    "video_swin_PxM": _video_swin,
    "spatial_lg_v1": functools.partial(_spatial_local_global, m=4),
    "spatial_lg_M": _spatial_local_global,
    "axial_space_dilate_K": _axial_space_dilate,
}
_CROSS: dict[str, Callable[..., tuple[Cuboid, ...]]] = {
    "cross_KxK": lambda tokens, k, _: _cross(tokens, k),
    "cross_KxK_lg": lambda tokens, k, _: _cross(tokens, k, dilated=True),
    "cross_KxK_heter": lambda tokens, k, _: _cross(tokens, k, dilated=True, shifted=True),
}


def _find(name: str, known: dict[str, Callable[..., tuple[Cuboid, ...]]], tokens: Triple) -> tuple[Cuboid, ...]:
    for template, build in known.items():
        match = re.fullmatch(re.sub("[KMP]", "([1-9][0-9]*)", template), name)
        if match:
            numbers = [int(number) for number in match.groups()]
            if template.startswith("cross") and numbers[0] != numbers[1]:
                break
            return build(tokens, *numbers)
    raise ValueError(
        f"unknown attention pattern {name!r}{_hint(name, known)}; choose {', '.join(known)}, with numbers for the "
        "capital letters"
    )


def _hint(name: str, known: Iterable[str]) -> str:
    """Return a hint with the pattern most similar to ``name``, ignoring numbers; empty if none is similar."""
    templates = {re.sub("[KMP]", "", template): template for template in known}
    closest = difflib.get_close_matches(re.sub("[0-9]+", "", name), templates, n=1)
    return f"; did you mean {templates[closest[0]]!r}?" if closest else ""


def level_grids(config: EarthformerConfig) -> list[Grid]:
    """Return the grid (H, W) of tokens at each level, finest first."""
    grids = [stem_grids(config)[-1]]
    for _ in range(1, config.levels):
        grids.append(merged_grid(grids[-1], config.downsampling))
    return grids


def pattern_at(pattern: str | tuple[str, ...], level: int) -> str:
    """Return the name of the pattern at ``level``."""
    return pattern if isinstance(pattern, str) else pattern[level]


def check_patterns(config: EarthformerConfig, *, frames_in: int) -> None:
    """Check the names of all attention patterns.

    Raises:
        ValueError: a name is unknown; the message contains the field and the most similar name.
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
