"""Charts of issued forecasts: scores by lead time and month, missing frames, reliability and sharpness."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from .colors import LineStyle
from .findings_text import with_unit
from .lead_time_curves import FAINT, Chart, draw_line, name_axes, new_chart, start_at_zero

_ALL = "all"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_TICKS = 6


def lead_chart(
    series: Mapping[str, Any],
    key: str,
    protocol: str,
    styles: Mapping[str, LineStyle],
    *,
    title: str,
    up: str = "",
    reference: float | None = None,
) -> Chart:
    """Return a chart of one score against lead time, all months, one line per forecast.

    Args:
        series: a series of the result of ``score-issued``.
        key: key of the score.
        protocol: name of the protocol.
        styles: line styles by name of the forecast.
        title: title of the chart.
        up: label of the vertical axis; by default the title.
        reference: ideal value, drawn as a horizontal line.
    """
    figure, axes = new_chart()
    minutes, scores = series["leads_minutes"], series["periods"][_ALL]["scores"]
    curves = {
        name: [by_protocol[protocol].get(f"{key}/lead/{lead}") for lead in range(1, len(minutes) + 1)]
        for name, by_protocol in scores.items()
    }
    for name, values in curves.items():
        draw_line(axes, minutes, values, styles[name], name=name)
    start_at_zero(axes, [reference, *(value for values in curves.values() for value in values)])
    if reference is not None:
        axes.axhline(reference, color=FAINT, linewidth=1.0)
    _lead_ticks(axes, minutes)
    name_axes(axes, "lead time, minutes", up or title)
    ends = ", ".join(f"{name} {_text(values[-1])}" for name, values in curves.items())
    shown = f"{up}, {title}" if up else title
    return Chart(title, f"{shown} against lead time. At {minutes[-1]:g} minutes: {ends}.", figure)


def missing_chart(series: Mapping[str, Any]) -> Chart:
    """Return a chart of the share of forecasts without a frame at each lead time."""
    figure, axes = new_chart()
    values, minutes = series["periods"][_ALL], series["leads_minutes"]
    share = [100 * count / max(values["issues"], 1) for count in values["frames_missing"]]
    axes.bar(minutes, share, width=0.7 * (minutes[1] - minutes[0] if len(minutes) > 1 else minutes[0]), color="#8a8a8a")
    start_at_zero(axes, share)
    _lead_ticks(axes, minutes)
    name_axes(axes, "lead time, minutes", "% of forecasts")
    title = "Valid times without a frame"
    return Chart(title, f"{title}: {share[-1]:.1f} % at {minutes[-1]:g} minutes.", figure)


def month_chart(
    series: Mapping[str, Any], key: str, protocol: str, styles: Mapping[str, LineStyle], *, title: str
) -> Chart:
    """Return a chart of one score by month, one line per forecast, with intervals over days."""
    figure, axes = new_chart()
    months = [period for period in series["periods"] if period != _ALL]
    drawn: list[float | None] = []
    for name, style in styles.items():
        values = [_score(series["periods"][month], name, protocol, key) for month in months]
        draw_line(axes, range(len(months)), values, style, name=name)
        bounds = [_bounds(series["periods"][month], name, protocol, key) for month in months]
        lows, highs = [low for low, _ in bounds], [high for _, high in bounds]
        axes.fill_between(range(len(months)), lows, highs, color=style.color, alpha=0.15, linewidth=0)
        drawn += [*values, *highs]
    start_at_zero(axes, drawn)
    every = math.ceil(len(months) / _MOST_TICKS)
    axes.set_xticks(range(0, len(months), every), months[::every], fontsize=8)
    name_axes(axes, "month", title)
    return Chart(f"{title} by month", f"{title} by month, {months[0]} to {months[-1]}.", figure)


def threshold_styles(reliability: Mapping[str, Any], unit: str) -> dict[str, LineStyle]:
    """Return a line style for each threshold of the probabilities, darker for higher thresholds."""
    shades = np.linspace(0.75, 0.0, len(reliability)) if len(reliability) > 1 else [0.4]
    return {
        f"≥ {with_unit(label, unit)}": LineStyle(to_hex(colormaps["viridis"](shade)), _MARKERS[k % len(_MARKERS)], "-")
        for k, (label, shade) in enumerate(zip(reliability, shades, strict=True))
    }


def reliability_chart(reliability: Mapping[str, Any], styles: Mapping[str, LineStyle]) -> Chart:
    """Return observed frequency against issued probability, one curve per threshold."""
    figure, axes = new_chart()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.0)
    descriptions = []
    for curve, (title, style) in zip(reliability.values(), styles.items(), strict=True):
        draw_line(axes, curve["probability"], curve["observed_frequency"], style, name=title)
        descriptions.append(f"{title} {_text(curve['observed_frequency'][-1])}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    name_axes(axes, "issued probability", "observed frequency")
    alt = f"Reliability diagram. Observed frequency where probability 1 was issued: {', '.join(descriptions)}."
    return Chart("Reliability", alt, figure)


def sharpness_chart(reliability: Mapping[str, Any], styles: Mapping[str, LineStyle]) -> Chart:
    """Return the frequency of each issued probability, one curve per threshold."""
    figure, axes = new_chart()
    for curve, (title, style) in zip(reliability.values(), styles.items(), strict=True):
        total = max(1, sum(curve["forecasts"]))
        draw_line(
            axes, curve["probability"], [count / total or None for count in curve["forecasts"]], style, name=title
        )
    axes.set(yscale="log", xlim=(-0.02, 1.02))
    name_axes(axes, "issued probability", "fraction of pixels")
    return Chart("Sharpness", "Fraction of pixels by issued probability, logarithmic.", figure)


def _lead_ticks(axes: Axes, minutes: Sequence[float]) -> None:
    every = math.ceil(len(minutes) / _MOST_TICKS)
    ticks = minutes[every - 1 :: every]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _score(period: Mapping[str, Any], name: str, protocol: str, key: str) -> float | None:
    return period["scores"].get(name, {}).get(protocol, {}).get(key)


def _bounds(period: Mapping[str, Any], name: str, protocol: str, key: str) -> tuple[float, float]:
    found = period["intervals"].get(name, {}).get(protocol, {}).get(key)
    low, high = found or (math.nan, math.nan)
    return (math.nan if low is None else low), (math.nan if high is None else high)


def _text(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.3g}"
