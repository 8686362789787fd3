"""Charts of the report, and curves over lead time. The global state of pyplot is not used.

All charts have the same small size, so that a grid of them adapts to the screen and text remains legible on a phone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from .colors import LineStyle, line_styles
from .field_images import as_png
from .findings_text import with_unit
from .pipeline_results import ScoreFile

_DPI = 150
INK, FAINT = "#222222", "#5f6368"
_CHART_INCHES = (3.7, 2.75)
_CHART_DPI = 170
_PALETTE_COLORS = 96
_MAX_LEAD_TICKS = 6


@dataclass(frozen=True)
class Chart:
    """One small figure with its title and alternative text."""

    title: str
    alt: str
    figure: Figure

    @property
    def png(self) -> bytes:
        """The figure as a palette PNG, a third of the size of a full-color PNG."""
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        return as_png(image.quantize(_PALETTE_COLORS, dither=Image.Dither.NONE))


def new_figure(width_inches: float, height_inches: float, *, gap_inches: float = 0.06) -> Figure:
    """Return an empty white figure with the Agg backend, independent of the backend of the importing program."""
    layout = ConstrainedLayoutEngine(w_pad=gap_inches, h_pad=gap_inches, wspace=0, hspace=0)
    figure = Figure(figsize=(width_inches, height_inches), dpi=_DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """Return text with escaped dollar signs, which matplotlib would interpret as mathematics."""
    return text.replace("$", r"\$")


def new_chart() -> tuple[Figure, Axes]:
    """Return an empty chart and its axes, with a light grid."""
    figure = Figure(figsize=_CHART_INCHES, dpi=_CHART_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # Fixed margins: a layout engine would draw everything twice.
    figure.subplots_adjust(left=0.18, right=0.97, bottom=0.19, top=0.96)
    axes.grid(visible=True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9.5, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def name_axes(axes: Axes, across: str, up: str) -> None:
    """Set the labels of both axes."""
    axes.set_xlabel(across, color=INK, fontsize=10)
    axes.set_ylabel(up, color=INK, fontsize=10)


def start_at_zero(axes: Axes, values: Sequence[float | None]) -> None:
    """Set the vertical axis from 0 to slightly above the highest of these values."""
    highest = max((value for value in values if value is not None and math.isfinite(value)), default=0.0)
    axes.set_ylim(0, 1.06 * highest if highest > 0 else 1.0)


def lead_curves(
    scores: ScoreFile,
    curves: Mapping[str, Sequence[float | None]],
    *,
    up: str,
    title: str,
    styles: Mapping[str, LineStyle] | None = None,
    reference: float | None = None,
) -> Chart:
    """Return a chart of curves over lead time; an undefined value leaves a gap.

    Args:
        scores: the score file, which defines the lead times.
        curves: a value per lead time, by name.
        up: label of the vertical axis.
        title: title of the chart.
        styles: line styles by name; by default those of the entries.
        reference: ideal value, drawn as a horizontal line.
    """
    figure, axes = new_chart()
    styles = styles or line_styles(scores.names)
    for name, values in curves.items():
        draw_line(axes, scores.lead_minutes, values, styles[name], name=name)
    start_at_zero(axes, [reference, *(value for values in curves.values() for value in values)])
    if reference is not None:
        axes.axhline(reference, color=FAINT, linewidth=1.0)
    every = math.ceil(scores.frames_out / _MAX_LEAD_TICKS)
    ticks = scores.lead_minutes[every - 1 :: every]
    axes.set_xticks(ticks, [f"{minutes:g}" for minutes in ticks])
    name_axes(axes, "lead time, minutes", up)
    return Chart(title, f"{title}: {up} against lead time. {_describe_ends(scores, curves)}", figure)


def draw_line(
    axes: Axes, across: Sequence[float], up: Sequence[float | None], style: LineStyle, *, name: str, every: int = 1
) -> None:
    """Draw one curve with a marker on every ``every``-th point."""
    axes.plot(
        across,
        [math.nan if value is None else value for value in up],
        color=style.color,
        linestyle=style.dashes,
        linewidth=1.8,
        marker=style.marker or None,
        markevery=every,
        markersize=5.5,
        label=plain(name),
    )


def mean_csi_chart(scores: ScoreFile) -> Chart:
    """Return a chart of mean CSI against lead time, one line per entry."""
    return lead_curves(scores, scores.mean_csi_by_lead, up="mean CSI", title="Mean CSI")


def csi_charts(scores: ScoreFile) -> list[Chart]:
    """Return charts of CSI against lead time, one per threshold, each with its own vertical axis."""
    charts = []
    for label in scores.protocols[scores.pooled_protocol].labels:
        rare = "" if label in scores.supported_thresholds else " (rare)"
        curves = {name: scores.by_lead(name, f"csi/{label}") for name in scores.names}
        charts.append(lead_curves(scores, curves, up="CSI", title=f"≥ {with_unit(label, scores.unit)}{rare}"))
    return charts


def _describe_ends(scores: ScoreFile, curves: Mapping[str, Sequence[float | None]]) -> str:
    """Return a text with the last value of each curve."""
    ends = [f"{name} {'undefined' if values[-1] is None else f'{values[-1]:.3g}'}" for name, values in curves.items()]
    return f"At {scores.lead_minutes[-1]:g} minutes: {', '.join(ends)}."
