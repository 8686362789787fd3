"""Colours: the steps of radar pictures, and the line of every forecast. Told apart by shape as well as by hue."""

from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from simcast_hpc.data.spec import MISSING_CODE

MISSING_FACE, MISSING_HATCH = "#c9c9c9", "#8a8a8a"

# The steps in which SEVIR's VIL is usually shown contain its six evaluation thresholds.
_VIL_LEVELS = (16.0, 31.0, 59.0, 74.0, 100.0, 133.0, 160.0, 181.0, 219.0)
_VIL_COLOURS = (
    "#101010",
    "#4b4b4b",
    "#1d5a2b",
    "#2c8d3b",
    "#62bf55",
    "#d4da3d",
    "#f1b82d",
    "#ec7c23",
    "#d62420",
    "#b45fe0",
)
_RAIN = LinearSegmentedColormap.from_list("rain", ["#a8d5f0", "#3f8fd2", "#1d3f8f", "#f2b52e", "#c4241c"])
_NO_RAIN = "#f6f6f3"


@dataclass(frozen=True)
class Steps:
    """A stepped colour scale: ``colours[i]`` where i of the ``levels`` (codes, ascending) are reached.

    ``labels`` name the levels in the unit of the page.
    """

    levels: tuple[float, ...]
    colours: tuple[str | tuple[float, ...], ...]
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
        unit: ``code`` gives VIL's steps where the thresholds are among them; all else is stepped at the thresholds.
    """
    if unit == "code" and set(thresholds) <= set(_VIL_LEVELS):
        return Steps(_VIL_LEVELS, _VIL_COLOURS, tuple(f"{level:g}" for level in _VIL_LEVELS))
    places = np.linspace(0, 1, len(thresholds)) if len(thresholds) > 1 else [0.5]
    return Steps(tuple(thresholds), (_NO_RAIN, *(_RAIN(place) for place in places)), tuple(labels))


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
}
_OTHERS = tuple(
    LineStyle(colour, marker, dashes)
    for dashes in ("-", "--", ":")
    for colour, marker in (("#5b3a8c", "X"), ("#56b4e9", "<"), ("#b8860b", ">"), ("#111111", "*"))
)


def line_styles(names: tuple[str, ...]) -> dict[str, LineStyle]:
    """Return a style for every name: a known name has the same one on every page."""
    unknown = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _OTHERS[unknown.index(name) % len(_OTHERS)] for name in names}
