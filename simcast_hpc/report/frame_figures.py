"""Radar frames in figures, in the stepped colours of their data set."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from .colours import MISSING_FACE, MISSING_HATCH, Steps


def show_frame(axes: Axes, frame: np.ndarray, steps: Steps) -> None:
    """Show one frame ``[H, W]``, codes or [0, 1], in stepped colours; missing pixels are grey and hatched."""
    axes.set_facecolor(MISSING_FACE)
    axes.patch.set(hatch="////", edgecolor=MISSING_HATCH, linewidth=0)
    colours = ListedColormap(list(steps.colours)).with_extremes(bad=(0, 0, 0, 0))
    axes.imshow(
        steps.index(frame),
        cmap=colours,
        vmin=-0.5,
        vmax=len(steps.colours) - 0.5,
        interpolation="nearest",
        origin="upper",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#555555", linewidth=0.6)
