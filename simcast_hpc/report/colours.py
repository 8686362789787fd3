"""Colours: the steps of radar pictures, and the line of every forecast. Told apart by shape as well as by hue."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps, get_data_path
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex
from PIL import ImageFont

from simcast_hpc.data.dataset_spec import MISSING_CODE

MISSING_FACE, MISSING_HATCH = "#c9c9c9", "#8a8a8a"

# The steps in which SEVIR's VIL is usually shown contain its six evaluation thresholds.
_VIL_LEVELS = (16.0, 31.0, 59.0, 74.0, 100.0, 133.0, 160.0, 181.0, 219.0)
# Lightness rises (VIL, on black) or falls (rain and reflectivity, on white) at every step, so that the order of the
# steps survives red-green and blue-yellow blindness and a grey print; a test measures it.
_VIL = colormaps["inferno"]
_REFLECTIVITY = colormaps["viridis_r"]
_RAIN = LinearSegmentedColormap.from_list("rain", ["#b9dcf2", "#62aadb", "#2f72b8", "#5b3796", "#6b1458", "#240617"])
_PROBABILITY = LinearSegmentedColormap.from_list("probability", ["#d9e6ef", "#8fb7d3", "#4a7fb0", "#2c4f86", "#17203f"])
_NO_LIQUID, _NOTHING = "#050508", "#f6f6f3"
_PROBABILITY_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Steps:
    """A stepped colour scale: ``colours[i]`` where i of the ``levels`` (codes, ascending) are reached.

    ``labels`` name the levels in the unit of the page.
    """

    levels: tuple[float, ...]
    colours: tuple[str, ...]
    labels: tuple[str, ...]

    def index(self, frame: np.ndarray) -> np.ma.MaskedArray:
        """Return the step of every pixel of ``[H, W]``, masked where missing (code 255, or NaN in a float frame).

        Float frames are in [0, 1] and are compared as scores compare them, ``x >= float32(level / 255)``, so that
        a forecast of just 219 has the colour of 219.
        """
        if frame.dtype == np.uint8:
            return np.ma.masked_array(np.searchsorted(self.levels, frame, side="right"), frame == MISSING_CODE)
        levels = np.asarray([level / 255 for level in self.levels], dtype=np.float32)
        missing = np.isnan(frame)
        return np.ma.masked_array(
            np.searchsorted(levels, np.where(missing, 0, frame).astype(np.float32), side="right"), missing
        )


def steps_for(thresholds: tuple[float, ...], *, labels: tuple[str, ...], unit: str) -> Steps:
    """Return the colour scale of a data set.

    Args:
        thresholds: evaluation thresholds as codes, ascending.
        labels: the same thresholds in ``unit``.
        unit: ``code`` gives VIL's steps where the thresholds are among them; all else is stepped at the thresholds,
            reflectivity (``dBZ``) in colours of its own.
    """
    if unit == "code" and set(thresholds) <= set(_VIL_LEVELS):
        colours = (_NO_LIQUID, *_spread_over(_VIL, len(_VIL_LEVELS), first=0.16, last=0.99))
        return Steps(_VIL_LEVELS, colours, tuple(f"{level:g}" for level in _VIL_LEVELS))
    scale, first = (_REFLECTIVITY, 0.08) if unit == "dBZ" else (_RAIN, 0.0)
    return Steps(
        tuple(thresholds), (_NOTHING, *_spread_over(scale, len(thresholds), first=first, last=1.0)), tuple(labels)
    )


def probability_steps() -> Steps:
    """Return the colour scale of probabilities, held as fields in [0, 1]; its levels are codes as everywhere."""
    colours = _spread_over(_PROBABILITY, len(_PROBABILITY_LEVELS), first=0.0, last=1.0)
    labels = tuple(f"{100 * level:g} %" for level in _PROBABILITY_LEVELS)
    return Steps(tuple(255 * level for level in _PROBABILITY_LEVELS), (_NOTHING, *colours), labels)


def _spread_over(scale: Colormap, count: int, *, first: float, last: float) -> tuple[str, ...]:
    places = np.linspace(first, last, count) if count > 1 else [(first + last) / 2]
    return tuple(to_hex(scale(place)) for place in places)


@dataclass(frozen=True)
class LineStyle:
    """How one forecast's curve is drawn."""

    colour: str
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
    LineStyle(colour, marker, dashes)
    for dashes in ("-", "--", ":")
    for colour, marker in (("#a01858", "<"), ("#2f8fbf", "p"), ("#6b7a1e", "h"), ("#111111", "*"))
)


def line_styles(names: tuple[str, ...]) -> dict[str, LineStyle]:
    """Return a style for every name: a known name has the same one on every page."""
    unknown = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _OTHERS[unknown.index(name) % len(_OTHERS)] for name in names}


@cache
def font(pixels: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's DejaVu Sans of this height."""
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", pixels)
