"""Color scales of radar fields, line styles of forecasts, and fonts. Lines also differ in marker and dash pattern."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps, get_data_path
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex
from PIL import ImageFont

from simcast_hpc.data.dataset_spec import MISSING_CODE

MISSING_FACE, MISSING_HATCH = "#c9c9c9", "#8a8a8a"

# The usual color levels of SEVIR VIL contain its six evaluation thresholds.
_VIL_LEVELS = (16.0, 31.0, 59.0, 74.0, 100.0, 133.0, 160.0, 181.0, 219.0)
# Lightness increases (VIL, on black) or decreases (rain and reflectivity, on white) at every step, so that the order
# of the steps is visible with color blindness and in grayscale; covered by a test.
_VIL = colormaps["inferno"]
_REFLECTIVITY = colormaps["viridis_r"]
_RAIN = LinearSegmentedColormap.from_list("rain", ["#b9dcf2", "#62aadb", "#2f72b8", "#5b3796", "#6b1458", "#240617"])
_PROBABILITY = LinearSegmentedColormap.from_list("probability", ["#d9e6ef", "#8fb7d3", "#4a7fb0", "#2c4f86", "#17203f"])
_NO_VIL, _NO_RAIN = "#050508", "#f6f6f3"
# Levels of maps begin well below the usual verification thresholds, so that light rain is visible.
_MAP_LEVELS = {
    "mm/h": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
    "dBZ": (5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0),
    "mm": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
    "kg/m^2": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0),
}
_PROBABILITY_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Steps:
    """A stepped color scale.

    Attributes:
        levels: ascending, in encoded values.
        colors: ``colors[i]`` is used where i levels are reached.
        labels: the levels in the displayed unit.
    """

    levels: tuple[float, ...]
    colors: tuple[str, ...]
    labels: tuple[str, ...]

    def index(self, frame: np.ndarray) -> np.ma.MaskedArray:
        """Return the step of every pixel of ``[H, W]``, masked where missing (255, or NaN in a float frame).

        Float frames are in [0, 1] and compared as in scores, ``x >= float32(level / 255)``, so that a forecast of
        exactly 219 has the color of 219.
        """
        if frame.dtype == np.uint8:
            return np.ma.masked_array(np.searchsorted(self.levels, frame, side="right"), frame == MISSING_CODE)
        levels = np.asarray([level / 255 for level in self.levels], dtype=np.float32)
        missing = np.isnan(frame)
        return np.ma.masked_array(
            np.searchsorted(levels, np.where(missing, 0, frame).astype(np.float32), side="right"), missing
        )


def steps_for(thresholds: tuple[float, ...], *, labels: tuple[str, ...], unit: str) -> Steps:
    """Return the color scale of a data set.

    Args:
        thresholds: evaluation thresholds in encoded values, ascending.
        labels: the same thresholds in ``unit``.
        unit: with ``code`` the levels are those of VIL if they contain the thresholds; otherwise the levels are the
            thresholds, with a separate color map for reflectivity (``dBZ``).
    """
    if unit == "code" and set(thresholds) <= set(_VIL_LEVELS):
        colors = (_NO_VIL, *_spread_over(_VIL, len(_VIL_LEVELS), first=0.16, last=0.99))
        return Steps(_VIL_LEVELS, colors, tuple(f"{level:g}" for level in _VIL_LEVELS))
    scale, first = (_REFLECTIVITY, 0.08) if unit == "dBZ" else (_RAIN, 0.0)
    return Steps(
        tuple(thresholds), (_NO_RAIN, *_spread_over(scale, len(thresholds), first=first, last=1.0)), tuple(labels)
    )


def map_steps(unit: str, *, lowest_threshold: float) -> Steps:
    """Return the color scale of a map in physical units, in the colors of the report.

    Args:
        unit: ``mm/h``, ``dBZ``, ``kg/m^2``, or ``mm`` of an accumulation.
        lowest_threshold: lowest verification threshold in ``unit``; the scale begins below it.
    """
    levels = _MAP_LEVELS[unit]
    if levels[0] >= lowest_threshold:
        below = lowest_threshold - 5 if unit == "dBZ" else lowest_threshold / 2
        levels = (below, *(level for level in levels if level > below))
    labels = tuple(f"{level:g}" for level in levels)
    if unit == "kg/m^2":
        return Steps(levels, (_NO_VIL, *_spread_over(_VIL, len(levels), first=0.16, last=0.99)), labels)
    scale, first = (_REFLECTIVITY, 0.04) if unit == "dBZ" else (_RAIN, 0.0)
    return Steps(levels, (_NO_RAIN, *_spread_over(scale, len(levels), first=first, last=1.0)), labels)


def probability_steps() -> Steps:
    """Return the color scale of probability fields in [0, 1]."""
    colors = _spread_over(_PROBABILITY, len(_PROBABILITY_LEVELS), first=0.0, last=1.0)
    labels = tuple(f"{100 * level:g} %" for level in _PROBABILITY_LEVELS)
    return Steps(tuple(255 * level for level in _PROBABILITY_LEVELS), (_NO_RAIN, *colors), labels)


def _spread_over(scale: Colormap, count: int, *, first: float, last: float) -> tuple[str, ...]:
    places = np.linspace(first, last, count) if count > 1 else [(first + last) / 2]
    return tuple(to_hex(scale(place)) for place in places)


@dataclass(frozen=True)
class LineStyle:
    """Line style of the curves of one forecast."""

    color: str
    marker: str
    dashes: str


_KNOWN = {
    "persistence": LineStyle("#5f6368", "s", "--"),
    "extrapolation": LineStyle("#8c5a2b", "^", ":"),
    "teacher": LineStyle("#009e73", "v", "-."),
    "student": LineStyle("#0072b2", "o", "-"),
    "direct": LineStyle("#d55e00", "D", "-"),
    "direct-unweighted": LineStyle("#cc79a7", "P", "--"),
    "autoencoder": LineStyle("#946b00", ">", "-"),
    "diffusion": LineStyle("#5b3a8c", "X", "-"),
}
_OTHERS = tuple(
    LineStyle(color, marker, dashes)
    for dashes in ("-", "--", ":")
    for color, marker in (("#a01858", "<"), ("#2f8fbf", "p"), ("#6b7a1e", "h"), ("#111111", "*"))
)


def line_styles(names: tuple[str, ...]) -> dict[str, LineStyle]:
    """Return a style for every name; known names have the same style in every report."""
    unknown = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _OTHERS[unknown.index(name) % len(_OTHERS)] for name in names}


@cache
def font(pixels: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans from matplotlib at this size; the default font of Pillow lacks some characters."""
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", pixels)
