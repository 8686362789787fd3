"""Radar frames side by side: what went in, what was observed, and every forecast of it."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from .colours import MISSING_FACE, MISSING_HATCH, Steps, steps_for
from .figures import new_figure, plain
from .results import ExampleFrames, ScoreFile

_MOST_COLUMNS = 6
_CELL_INCHES = 1.2
_LABEL_INCHES = 1.4
_TITLES_INCHES = 0.5
_BAR_INCHES = 0.8
_GAP_INCHES = 0.03


def draw_frames(scores: ScoreFile, example: ExampleFrames) -> Figure:
    """Draw one row for the inputs, one for the observation and one for each entry that has a forecast.

    At most six frames a row, evenly spaced and with the last one among them. Colours are stepped at the thresholds;
    missing pixels are grey and hatched.
    """
    steps = steps_for(example.thresholds, labels=_labels(scores, example), unit=scores.unit)
    into = [int(k) for k in _chosen(len(example.inputs))]
    out = [int(k) for k in _chosen(len(example.observed))]
    times_in = [f"{(k - len(example.inputs) + 1) * scores.step_minutes:+g} min" for k in into]
    times_out = [f"{(k + 1) * scores.step_minutes:+g} min" for k in out]
    rows = [("inputs", example.inputs[into], times_in), ("observed", example.observed[out], times_out)]
    rows += [(name, example.forecasts[name][out], []) for name in scores.names if name in example.forecasts]

    columns = max(len(into), len(out))
    height_inches = _CELL_INCHES * len(rows) + _TITLES_INCHES + _BAR_INCHES
    figure = new_figure(_LABEL_INCHES + _CELL_INCHES * columns, height_inches, gap_inches=_GAP_INCHES)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, frames, times) in zip(panels, rows, strict=True):
        for axes in row[len(frames) :]:
            axes.set_axis_off()
        for k, (axes, frame) in enumerate(zip(row, frames, strict=False)):
            show_frame(axes, frame, steps)
            if times:
                axes.set_title(times[k].replace("+0 min", "0 min").replace("-", "−"), fontsize=9, pad=3)
        row[0].set_ylabel(plain(name), rotation=0, ha="right", va="center", fontsize=10, labelpad=6)
    _colour_bar(figure, panels, steps, quantity=scores.quantity, unit=scores.unit)
    return figure


def _labels(scores: ScoreFile, example: ExampleFrames) -> tuple[str, ...]:
    """Return the thresholds in the page's unit; the codes themselves where a file names another number of them."""
    labels = scores.protocols[scores.pooled_protocol].labels
    return labels if len(labels) == len(example.thresholds) else tuple(f"{code:g}" for code in example.thresholds)


def _chosen(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_COLUMNS)).round().astype(int))


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


def _colour_bar(figure: Figure, panels: np.ndarray, steps: Steps, *, quantity: str, unit: str) -> None:
    count = len(steps.colours)
    colours = ListedColormap(list(steps.colours))
    scale = ScalarMappable(norm=BoundaryNorm(np.arange(count + 1), count), cmap=colours)
    bar = figure.colorbar(
        scale, ax=panels, location="bottom", shrink=0.75, aspect=45, pad=0.02, ticks=list(range(1, count))
    )
    bar.set_ticklabels([plain(label) for label in steps.labels])
    bar.ax.tick_params(labelsize=9)
    bar.set_label(plain(f"{quantity}, {unit}"), fontsize=9)
