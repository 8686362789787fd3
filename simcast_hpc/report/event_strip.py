"""Figure of a radar event as a strip of frames, in the colors of the report."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from simcast_hpc.data.dataset_spec import DatasetSpec

from .colors import MISSING_FACE, MISSING_HATCH, Steps, steps_for
from .lead_time_curves import new_figure, plain

_MOST_FRAMES = 8


def draw_event(spec: DatasetSpec, name: str, codes: np.ndarray) -> Figure:
    """Return a figure of at most eight evenly spaced frames of an event, with a color bar.

    Missing pixels are gray and hatched.

    Args:
        spec: the data set; its thresholds are the color levels.
        name: name of the event in the title.
        codes: uint8 pixel values ``[T, H, W]``.
    """
    steps = steps_for(spec.threshold_codes(), labels=spec.threshold_labels(), unit=spec.thresholds.unit)
    chosen = np.unique(np.linspace(0, len(codes) - 1, min(len(codes), _MOST_FRAMES)).round().astype(int))
    figure = new_figure(1.4 * len(chosen) + 0.6, 1.8)
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, frame in zip(panels, chosen, strict=True):
        _show_frame(axes, codes[frame], steps)
        axes.set_title(f"{frame * spec.step_minutes:g} min", fontsize=8)
    count = len(steps.colors)
    scale = ScalarMappable(norm=BoundaryNorm(np.arange(count + 1), count), cmap=ListedColormap(list(steps.colors)))
    bar = figure.colorbar(scale, ax=list(panels), location="right", ticks=list(range(1, count)), pad=0.01, aspect=12)
    bar.set_ticklabels([plain(label) for label in steps.labels])
    bar.ax.tick_params(labelsize=7)
    bar.set_label("encoded value" if spec.thresholds.unit == "code" else plain(spec.thresholds.unit), fontsize=7)
    figure.suptitle(f"{spec.title}: {name}", fontsize=9)
    return figure


def _show_frame(axes: Axes, frame: np.ndarray, steps: Steps) -> None:
    """Draw one frame ``[H, W]``, uint8 or in [0, 1], in stepped colors; missing pixels are gray and hatched."""
    axes.set_facecolor(MISSING_FACE)
    axes.patch.set(hatch="////", edgecolor=MISSING_HATCH, linewidth=0)
    colors = ListedColormap(list(steps.colors)).with_extremes(bad=(0, 0, 0, 0))
    axes.imshow(
        steps.index(frame),
        cmap=colors,
        vmin=-0.5,
        vmax=len(steps.colors) - 0.5,
        interpolation="nearest",
        origin="upper",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#555555", linewidth=0.6)
