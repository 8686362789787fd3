"""Charts and maps of a climatology: months and hours, coverage and clutter, series of days, persistence."""

import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_hex

from simcast_hpc.data.climatology import ClimatologySummary

from .colors import MISSING_FACE, LineStyle
from .findings_text import with_unit
from .lead_time_curves import Chart, draw_line, name_axes, new_chart, start_at_zero

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MAP_TITLES = {
    "coverage": ("Coverage", "share of frames with a valid pixel", "viridis"),
    "echo": ("Frequency of echo", "share of valid frames with an echo", "magma_r"),
    "wet": ("Frequency of rain", "share of valid frames at the lowest threshold", "magma_r"),
    "rate": ("Mean rate", "mean over valid frames", "YlGnBu"),
}
_SUSPICIOUS = ListedColormap(["#f6f6f3", "#d55e00", "#0072b2"])
_BAR = "#2f72b8"


def threshold_line_styles(summary: ClimatologySummary) -> dict[str, LineStyle]:
    """Return a line style for each threshold, darker for higher thresholds."""
    labels = summary.thresholds
    shades = np.linspace(0.75, 0.0, len(labels)) if len(labels) > 1 else [0.4]
    return {
        f"≥ {with_unit(label, summary.threshold_unit)}": LineStyle(
            to_hex(colormaps["viridis"](shade)), _MARKERS[number % len(_MARKERS)], "-"
        )
        for number, (label, shade) in enumerate(zip(labels, shades, strict=True))
    }


def month_charts(summary: ClimatologySummary) -> list[Chart]:
    """Return mean rate and wet shares by month of the year, and mean rate by UTC hour and month."""
    months = list(summary.months)
    names = [_MONTHS[month - 1] for month in months]
    rates = [row["mean_rate"] for row in summary.months.values()]
    shares = [row["wet_shares"] for row in summary.months.values()]
    up = f"mean rate, {summary.rate_unit}"
    hours = [row["mean_rate"] for row in summary.hours.values()]
    return [
        _bars("Mean rate by month", names, rates, up=up, across="month"),
        _wet_shares(summary, "Wet share by month", shares, names, "month"),
        _bars("Mean rate by hour", [f"{hour}" for hour in summary.hours], hours, up=up, across="hour, UTC"),
        _month_and_hour(summary),
    ]


def map_charts(summary: ClimatologySummary) -> list[Chart]:
    """Return maps of coverage, frequency of echo and rain, mean rate, and suspicious pixels."""
    charts = [
        _map(summary.maps[name], title, words, colormap, unit=summary.rate_unit if name == "rate" else "")
        for name, (title, words, colormap) in _MAP_TITLES.items()
    ]
    suspicious = summary.maps["suspicious"]
    figure, axes = new_chart()
    axes.grid(visible=False)
    axes.imshow(suspicious, cmap=_SUSPICIOUS, vmin=-0.5, vmax=2.5, interpolation="nearest", aspect="equal")
    name_axes(axes, "column", "row")
    counts = [int((suspicious == kind).sum()) for kind in (1, 2)]
    alt = f"Map of suspicious pixels: {counts[0]} with frequent echoes, {counts[1]} with rare echoes."
    return [*charts, Chart("Suspicious pixels (orange: clutter, blue: blocked)", alt, figure)]


def day_charts(summary: ClimatologySummary) -> list[Chart]:
    """Return series of days: mean rate, median of wet pixels and missing share, with changes marked."""
    charts = []
    for key, title, up, changes in (
        ("mean_rate", "Mean rate by day", f"mean rate, {summary.rate_unit}", ()),
        ("wet_median_db", "Median of wet pixels", f"dB of {summary.rate_unit}", summary.calibration_changes),
        ("missing_share", "Missing pixels", "share", summary.missing_changes),
    ):
        figure, axes = new_chart()
        dates = [date.fromisoformat(day).toordinal() for day in summary.days]
        values = [row[key] for row in summary.days.values()]
        axes.plot(dates, values, color=_BAR, linewidth=0.8, marker=".", markersize=3)
        for change in changes:
            axes.axvline(date.fromisoformat(change.date).toordinal(), color="#d55e00", linewidth=1.2)
        if key != "wet_median_db":
            start_at_zero(axes, values)
        shown = sorted({dates[0], dates[-1]})
        axes.set_xticks(shown, [date.fromordinal(one).isoformat() for one in shown], fontsize=8)
        name_axes(axes, "date", up)
        marked = f" {len(changes)} changes are marked." if changes else ""
        charts.append(Chart(title, f"{title}, {len(dates)} days.{marked}", figure))
    return charts


def persistence_charts(summary: ClimatologySummary, styles: Mapping[str, LineStyle]) -> list[Chart]:
    """Return the CSI of persistence against lead time, one chart per split and one line per threshold."""
    charts = []
    for split, by_lead in summary.persistence.items():
        if not by_lead:
            continue
        figure, axes = new_chart()
        minutes = list(by_lead)
        for number, (name, style) in enumerate(styles.items()):
            draw_line(axes, minutes, [row["csi"][number] for row in by_lead.values()], style, name=name)
        axes.set_ylim(0, 1)
        name_axes(axes, "lead time, minutes", "CSI")
        first = next(iter(styles))
        ends = by_lead[minutes[-1]]["csi"][0]
        alt = f"CSI of persistence on {split}. {first} at {minutes[-1]:g} minutes: {ends:.2f}."
        charts.append(Chart(f"Persistence, {split}", alt, figure))
    return charts


def _bars(title: str, names: Sequence[str], values: Sequence[float], *, up: str, across: str) -> Chart:
    figure, axes = new_chart()
    axes.bar(range(len(names)), [0.0 if math.isnan(value) else value for value in values], color=_BAR)
    _name_ticks(axes, names)
    name_axes(axes, across, up)
    known = [value for value in values if not math.isnan(value)]
    top = names[int(np.nanargmax(values))] if known else "none"
    return Chart(title, f"{title}, largest for {top}.", figure)


def _wet_shares(
    summary: ClimatologySummary, title: str, rows: Sequence[Sequence[float]], names: Sequence[str], across: str
) -> Chart:
    figure, axes = new_chart()
    for number, (name, style) in enumerate(threshold_line_styles(summary).items()):
        draw_line(axes, range(len(names)), [row[number] or None for row in rows], style, name=name)
    if any(share > 0 for row in rows for share in row):
        axes.set_yscale("log")
    _name_ticks(axes, names)
    name_axes(axes, across, "share of valid pixels")
    return Chart(title, f"{title} and threshold, logarithmic.", figure)


def _month_and_hour(summary: ClimatologySummary) -> Chart:
    figure, axes = new_chart()
    axes.grid(visible=False)
    picture = axes.imshow(
        summary.month_hour_rate, aspect="auto", origin="upper", cmap="YlGnBu", interpolation="nearest"
    )
    axes.set_yticks(range(0, 12, 2), _MONTHS[::2])
    axes.set_xticks(range(0, 24, 6))
    axes.set_facecolor(MISSING_FACE)
    figure.colorbar(picture, ax=axes).ax.tick_params(labelsize=8)
    name_axes(axes, "hour, UTC", "month")
    return Chart(f"Mean rate by month and hour, {summary.rate_unit}", "Mean rate by month and UTC hour.", figure)


def _map(field: np.ndarray, title: str, words: str, colormap: str, *, unit: str) -> Chart:
    figure, axes = new_chart()
    axes.grid(visible=False)
    axes.set_facecolor(MISSING_FACE)
    known = field[np.isfinite(field)]
    # A single clutter pixel must not hide the rest.
    top = float(np.quantile(known, 0.995)) if known.size else 1.0
    picture = axes.imshow(
        field, cmap=colormap, vmin=0, vmax=top if top > 0 else 1.0, interpolation="nearest", aspect="equal"
    )
    figure.colorbar(picture, ax=axes).ax.tick_params(labelsize=8)
    name_axes(axes, "column", "row")
    spread = f"{known.min():.3g} to {known.max():.3g}" if known.size else "no valid pixel"
    heading = f"{title}, {unit}" if unit else title
    return Chart(heading, f"Map: {words}; {spread}.", figure)


def _name_ticks(axes: Any, names: Sequence[str]) -> None:
    every = math.ceil(len(names) / 6)
    axes.set_xticks(range(0, len(names), every), names[::every])
