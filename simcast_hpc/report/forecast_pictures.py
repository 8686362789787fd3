"""Figures of one operational forecast: lead times side by side (PNG) and animated (GIF)."""

import io
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from PIL import Image

from simcast_hpc.forecast.forecast_fields import Forecast
from simcast_hpc.forecast.products.product_fields import ProductField

from .colors import MISSING_FACE, MISSING_HATCH, Steps, map_steps, probability_steps
from .lead_time_curves import new_figure, plain
from .map_axes import MapAxes

_MOST_LEADS = 7
_MOST_COLUMNS = 4
_MOST_PIXELS = 800
_PANEL_INCHES = 2.5
_FRAME_MILLISECONDS = 400
_NAMES = {"mm/h": "rain rate", "dBZ": "reflectivity", "kg/m^2": "vertically integrated liquid"}
_UNITS = {"mm/h": "mm/h", "dBZ": "dBZ", "kg/m^2": "kg/m²"}


def draw_forecast(forecast: Forecast, path: Path) -> None:
    """Write :func:`forecast_figure` to a PNG.

    Raises:
        OSError: the file cannot be written.
    """
    about = {"Title": _title(forecast)}
    for key, attribute in (("Copyright", "license"), ("Source", "attribution")):
        if text := forecast.provenance.get(attribute):
            about[key] = text
    forecast_figure(forecast).savefig(path, format="png", metadata={"Software": None, **about})


def forecast_figure(forecast: Forecast) -> Figure:
    """Return maps of the last input and up to seven lead times; also exceedance probabilities and rainfall amounts.

    Each panel is a map with a latitude/longitude grid and has the valid time and lead time as its title. If there are
    more than seven lead times, evenly spaced ones are shown, which a note states.
    """
    steps, leads = _steps(forecast), _lead_indices(len(forecast.shown))
    mapped = MapAxes(forecast.grid)
    # 1. Grid of panels: the last input and the lead times; below them the probabilities
    columns = len(leads) + 1 if len(leads) < 5 else _MOST_COLUMNS
    rows = -(-(len(leads) + 1) // columns)
    accumulated = [field for field in forecast.products if field.windows and field.statistic in ("forecast", "mean")]
    blocks = (1 if forecast.probability is None else 2) + len(accumulated)
    height = (_PANEL_INCHES - 0.15) * mapped.height_by_width + 0.3
    figure = new_figure(_PANEL_INCHES * columns + 0.3, blocks * (rows * height + 0.75) + 0.5)
    panels = figure.subplots(blocks * rows, columns, squeeze=False)
    fields = [forecast.observed, *(forecast.shown[k] for k in leads)]
    titles = [f"{_clock(forecast, forecast.issue)} UTC, observed", *(_valid_time(forecast, k) for k in leads)]
    _show_block(panels[:rows], fields, titles, steps, mapped)
    _bar(figure, panels[:rows], steps, _quantity(forecast))
    # 2. Probabilities of the middle threshold
    if forecast.probability is not None:
        middle, scale = len(forecast.thresholds) // 2, probability_steps()
        chances = Steps(tuple(level / 255 for level in scale.levels), scale.colors, scale.labels)
        fields = [None, *(forecast.probability[middle, k] for k in leads)]
        _show_block(panels[rows : 2 * rows], fields, titles, chances, mapped)
        label = f"probability of ≥ {forecast.thresholds[middle]:.3g} {_UNITS[forecast.unit]}"
        _bar(figure, panels[rows : 2 * rows], chances, plain(label))
    # 3. Rainfall amounts: windows that end at the shown lead times, or the only one
    for number, field in enumerate(accumulated, blocks - len(accumulated)):
        block = panels[number * rows : (number + 1) * rows]
        shown = _shown_windows(forecast, field, leads)
        amounts = map_steps("mm", lowest_threshold=np.inf)
        own = [None if window is None else field.values[window] for window in shown]
        _show_block(block, own, [_window_title(forecast, field, window) for window in shown], amounts, mapped)
        _bar(figure, block, amounts, plain(f"{field.long_name}, mm"))
    figure.suptitle(_title(forecast), fontsize=10)
    figure.supxlabel(plain(_note(forecast, leads, mapped)), fontsize=7.5)
    return figure


def animate_forecast(forecast: Forecast, path: Path) -> None:
    """Write a looping GIF of the last input and every lead time, with a pause at the last.

    Raises:
        OSError: the file cannot be written.
    """
    steps, mapped = _steps(forecast), MapAxes(forecast.grid)
    observed = f"{_clock(forecast, forecast.issue)} UTC, observed"
    pictures = [_picture(forecast, forecast.observed, steps, mapped, observed)]
    for k, field in enumerate(forecast.shown):
        pictures.append(_picture(forecast, field, steps, mapped, _valid_time(forecast, k)))
    first, *others = pictures
    pauses = [_FRAME_MILLISECONDS] * (len(pictures) - 1) + [3 * _FRAME_MILLISECONDS]
    first.save(path, format="GIF", save_all=True, append_images=others, duration=pauses, loop=0)


def _picture(forecast: Forecast, field: np.ndarray, steps: Steps, mapped: MapAxes, title: str) -> Image.Image:
    figure = new_figure(4.6, 4.1 * mapped.height_by_width + 1.3)
    axes = figure.subplots()
    _show(axes, field, steps, mapped, title=title)
    mapped.draw(axes)
    _bar(figure, np.array([axes]), steps, _quantity(forecast), shrink=0.95)
    figure.suptitle(_title(forecast), fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)


def _show_block(
    panels: np.ndarray, fields: Sequence[np.ndarray | None], titles: Sequence[str], steps: Steps, mapped: MapAxes
) -> None:
    """Show one field per panel, row by row, and hide the panels that are left; None leaves a panel empty."""
    columns = panels.shape[1]
    for k, axes in enumerate(panels.flat):
        field = fields[k] if k < len(fields) else None
        if field is None:
            axes.set_axis_off()
            continue
        _show(axes, field, steps, mapped, title=titles[k])
        # The panel below is empty in the last column of an incomplete row.
        mapped.draw(axes, is_left=k % columns == 0 or fields[k - 1] is None, is_bottom=k + columns >= len(fields))


def _show(axes: Axes, field: np.ndarray, steps: Steps, mapped: MapAxes, *, title: str) -> None:
    """Draw one field; missing pixels are gray and hatched."""
    coarse, factor = _coarsen(field)
    missing = np.isnan(coarse)
    index = np.ma.masked_array(np.searchsorted(steps.levels, np.where(missing, -np.inf, coarse), side="right"), missing)
    colors = ListedColormap(list(steps.colors)).with_extremes(bad=(0, 0, 0, 0))
    axes.set_facecolor(MISSING_FACE)
    axes.patch.set(hatch="////", edgecolor=MISSING_HATCH, linewidth=0)
    axes.set_title(title, fontsize=8, pad=3)
    # Blocks cover slightly less than the grid if its sides are not multiples of their size.
    left, right, bottom, top = mapped.extent
    rows, columns = (size * factor for size in coarse.shape)
    right = left + (right - left) * columns / field.shape[1]
    bottom = top + (bottom - top) * rows / field.shape[0]
    axes.imshow(
        index, cmap=colors, vmin=-0.5, vmax=len(steps.colors) - 0.5, interpolation="nearest",
        extent=(left, right, bottom, top),
    )  # fmt: skip


def _bar(figure: Figure, panels: np.ndarray, steps: Steps, label: str, *, shrink: float = 0.6) -> None:
    count = len(steps.colors)
    scale = ScalarMappable(norm=BoundaryNorm(np.arange(count + 1), count), cmap=ListedColormap(list(steps.colors)))
    bar = figure.colorbar(
        scale, ax=list(panels.flat), location="bottom", shrink=shrink, aspect=45, pad=0.03, ticks=list(range(1, count))
    )
    bar.set_ticklabels([plain(label) for label in steps.labels])
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=8)


def _steps(forecast: Forecast) -> Steps:
    return map_steps(forecast.unit, lowest_threshold=min(forecast.thresholds, default=np.inf))


def _coarsen(field: np.ndarray) -> tuple[np.ndarray, int]:
    """Return a field of at most ``_MOST_PIXELS`` per side by block maxima, so that small cells remain visible.

    The second value is the number of pixels per block side.
    """
    factor = -(-max(field.shape) // _MOST_PIXELS)
    if factor == 1:
        return field, 1
    height, width = (size - size % factor for size in field.shape)
    blocks = field[:height, :width].reshape(height // factor, factor, width // factor, factor)
    highest = np.where(np.isnan(blocks), -np.inf, blocks).max(axis=(1, 3))
    return np.where(np.isneginf(highest), np.nan, highest), factor


def _lead_indices(count: int) -> list[int]:
    """Return the indices of evenly spaced lead times, including the last."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, _MOST_LEADS))})


def _clock(forecast: Forecast, moment: datetime) -> str:
    """Return a time, with its date if that is not the date of the issue time."""
    return f"{moment:%H:%M}" if moment.date() == forecast.issue.date() else f"{moment:%Y-%m-%d %H:%M}"


def _valid_time(forecast: Forecast, lead: int) -> str:
    return f"{_clock(forecast, forecast.valid[lead])} UTC, +{forecast.leads_minutes[lead]:g} min"


def _shown_windows(forecast: Forecast, field: ProductField, leads: list[int]) -> list[int | None]:
    """Return the index of the window that each panel shows; None leaves the panel of the last input or a lead empty."""
    ends = [end for _, end in field.windows]
    if len(ends) == 1:
        return [None, 0, *[None] * (len(leads) - 1)]
    wanted = [forecast.leads_minutes[lead] for lead in leads]
    return [None, *(ends.index(lead) if lead in ends else None for lead in wanted)]


def _window_title(forecast: Forecast, field: ProductField, window: int | None) -> str:
    if window is None:
        return ""
    begin, end = (forecast.issue + timedelta(minutes=minutes) for minutes in field.windows[window])
    return f"{_clock(forecast, begin)} to {_clock(forecast, end)} UTC"


def _quantity(forecast: Forecast) -> str:
    return plain(f"{_NAMES[forecast.unit]}, {_UNITS[forecast.unit]}")


def _note(forecast: Forecast, leads: list[int], mapped: MapAxes) -> str:
    """Return the lead times that are not shown, the distance of the lines, and the meaning of gray."""
    count = len(forecast.shown)
    parts = []
    if len(leads) < count:
        parts.append(
            f"{len(leads)} of {count} lead times are shown; the data file contains all of them, "
            f"+{forecast.leads_minutes[0]:g} to +{forecast.leads_minutes[-1]:g} min"
        )
    lines = "axes in pixels"
    if mapped.spacings is not None:
        across, up = mapped.spacings
        lines = f"lines of longitude every {across:g}° and of latitude every {up:g}°"
    return "; ".join([*parts, lines, "gray and hatched: missing"])


def _title(forecast: Forecast) -> str:
    what = "Ensemble mean" if forecast.probability is not None else "Forecast"
    run, changed = (forecast.provenance.get(f"simcast_{key}", "") for key in ("run", "postprocessing"))
    run += f"+{changed}" if changed not in ("", "none") else ""
    if forecast.fallback:
        replaced = forecast.provenance.get("simcast_fallback_for", "the model")
        run += f" (FALLBACK for {replaced[-60:]})"
    return plain(f"{what} issued {forecast.issue:%Y-%m-%d %H:%M} UTC by {run or 'an unnamed model'}")
