"""Figures of one operational forecast: lead times side by side (PNG) and animated (GIF)."""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from PIL import Image

from simcast_hpc.forecast.predictor import Forecast

from .colours import MISSING_FACE, MISSING_HATCH, Steps, probability_steps, steps_for
from .lead_time_curves import new_figure, plain

_MOST_PANELS = 6
_MOST_PIXELS = 800
_PANEL_INCHES = 2.2
_FRAME_MILLISECONDS = 400
_NAMES = {"mm/h": "rain rate", "dBZ": "reflectivity", "kg/m^2": "vertically integrated liquid"}


def draw_forecast(forecast: Forecast, path: Path) -> None:
    """Write a PNG of the last input and up to five lead times; for an ensemble also exceedance probabilities.

    Raises:
        OSError: the file cannot be written.
    """
    steps, leads = _steps(forecast), _lead_indices(len(forecast.shown))
    rows = 1 if forecast.probability is None else 2
    height = _PANEL_INCHES * rows * forecast.grid.height / forecast.grid.width
    figure = new_figure(_PANEL_INCHES * (len(leads) + 1), height + 1.4)
    panels = figure.subplots(rows, len(leads) + 1, squeeze=False)
    _show(panels[0, 0], forecast.observed, steps, title=f"observed {forecast.issue:%H:%M}")
    for axes, k in zip(panels[0, 1:], leads, strict=True):
        _show(axes, forecast.shown[k], steps, title=f"+{forecast.leads_minutes[k]:g} min")
    _bar(figure, panels[0], steps, plain(f"{_NAMES[forecast.unit]}, {forecast.unit}"))
    if forecast.probability is not None:
        _probabilities(figure, panels[1], forecast, leads)
    figure.suptitle(_title(forecast), fontsize=10)
    figure.savefig(path, format="png", metadata={"Software": None})


def animate_forecast(forecast: Forecast, path: Path) -> None:
    """Write a looping GIF of the last input and every lead time, with a pause at the last.

    Raises:
        OSError: the file cannot be written.
    """
    steps = _steps(forecast)
    pictures = [_picture(forecast, forecast.observed, steps, f"observed {forecast.issue:%H:%M} UTC")]
    for field, valid, lead in zip(forecast.shown, forecast.valid, forecast.leads_minutes, strict=True):
        pictures.append(_picture(forecast, field, steps, f"{valid:%H:%M} UTC, +{lead:g} min"))
    first, *others = pictures
    pauses = [_FRAME_MILLISECONDS] * (len(pictures) - 1) + [3 * _FRAME_MILLISECONDS]
    first.save(path, format="GIF", save_all=True, append_images=others, duration=pauses, loop=0)


def _picture(forecast: Forecast, field: np.ndarray, steps: Steps, title: str) -> Image.Image:
    figure = new_figure(4.6, 3.4 * forecast.grid.height / forecast.grid.width + 1.0)
    axes = figure.subplots()
    _show(axes, field, steps, title=title)
    _bar(figure, np.array([axes]), steps, plain(f"{_NAMES[forecast.unit]}, {forecast.unit}"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)


def _show(axes: Axes, field: np.ndarray, steps: Steps, *, title: str) -> None:
    field = _coarsen(field)
    missing = np.isnan(field)
    index = np.ma.masked_array(np.searchsorted(steps.levels, np.where(missing, -np.inf, field), side="right"), missing)
    colours = ListedColormap(list(steps.colours)).with_extremes(bad=(0, 0, 0, 0))
    _format_panel(axes, title)
    axes.imshow(index, cmap=colours, vmin=-0.5, vmax=len(steps.colours) - 0.5, interpolation="nearest")


def _probabilities(figure: Figure, panels: np.ndarray, forecast: Forecast, leads: list[int]) -> None:
    assert forecast.probability is not None
    middle, scale = len(forecast.thresholds) // 2, probability_steps()
    steps = Steps(tuple(level / 255 for level in scale.levels), scale.colours, scale.labels)
    panels[0].set_axis_off()
    for axes, k in zip(panels[1:], leads, strict=True):
        _show(axes, forecast.probability[middle, k], steps, title="")
    threshold = f"{forecast.thresholds[middle]:.3g} {forecast.unit}"
    _bar(figure, panels, steps, plain(f"probability of {threshold} or more"))


def _format_panel(axes: Axes, title: str) -> None:
    axes.set_facecolor(MISSING_FACE)
    axes.patch.set(hatch="////", edgecolor=MISSING_HATCH, linewidth=0)
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(title, fontsize=8, pad=3)


def _bar(figure: Figure, panels: np.ndarray, steps: Steps, label: str) -> None:
    count = len(steps.colours)
    scale = ScalarMappable(norm=BoundaryNorm(np.arange(count + 1), count), cmap=ListedColormap(list(steps.colours)))
    bar = figure.colorbar(
        scale, ax=list(panels), location="bottom", shrink=0.5, aspect=45, pad=0.03, ticks=list(range(1, count))
    )
    bar.set_ticklabels([plain(label) for label in steps.labels])
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=8)


def _steps(forecast: Forecast) -> Steps:
    labels = tuple(f"{value:.3g}" for value in forecast.thresholds)
    return steps_for(forecast.thresholds, labels=labels, unit=forecast.unit)


def _coarsen(field: np.ndarray) -> np.ndarray:
    """Return a field of at most ``_MOST_PIXELS`` per side by block maxima, so that small cells remain visible."""
    factor = -(-max(field.shape) // _MOST_PIXELS)
    if factor == 1:
        return field
    height, width = (size - size % factor for size in field.shape)
    blocks = field[:height, :width].reshape(height // factor, factor, width // factor, factor)
    highest = np.where(np.isnan(blocks), -np.inf, blocks).max(axis=(1, 3))
    return np.where(np.isneginf(highest), np.nan, highest)


def _lead_indices(count: int) -> list[int]:
    """Return the indices of evenly spaced lead times, including the last."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, _MOST_PANELS - 1))})


def _title(forecast: Forecast) -> str:
    what = "ensemble mean" if forecast.probability is not None else "forecast"
    run = forecast.provenance.get("simcast_run", "")
    return plain(f"{what} issued {forecast.issue:%Y-%m-%d %H:%M} UTC by {run}")
