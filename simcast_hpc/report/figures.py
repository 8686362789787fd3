"""Curves: CSI by lead time, loss by step. Figures are objects of their own; pyplot and its state are not touched."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .claims import with_unit
from .colours import LineStyle, line_styles
from .results import ScoreFile, StageResult

_DPI = 150
_INK = "#222222"
_MAX_LEAD_TICKS = 6


def new_figure(width_inches: float, height_inches: float, *, gap_inches: float = 0.06) -> Figure:
    """Return an empty white figure that draws by Agg, whatever backend an importer uses."""
    layout = ConstrainedLayoutEngine(w_pad=gap_inches, h_pad=gap_inches, wspace=0, hspace=0)
    figure = Figure(figsize=(width_inches, height_inches), dpi=_DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG; a reader never meets half of it."""
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=_DPI, metadata={"Software": None})
    partial.replace(path)


def plain(text: str) -> str:
    """Return text from a file so that matplotlib draws it as it stands, a dollar sign included."""
    return text.replace("$", r"\$")


def draw_mean_csi(scores: ScoreFile) -> Figure:
    """Draw mean CSI against lead time, a line for each entry."""
    figure = new_figure(7.0, 4.4)
    axes = figure.subplots()
    _curves(axes, scores, {name: scores.mean_csi_by_lead[name] for name in scores.names})
    axes.set_xlabel("lead time, minutes", color=_INK)
    axes.set_ylabel("mean CSI", color=_INK)
    _legend(figure, axes)
    return figure


def draw_csi_by_threshold(scores: ScoreFile) -> Figure:
    """Draw CSI against lead time, a panel for each threshold with an axis of its own."""
    protocol = scores.pooled_protocol
    labels = scores.protocols[protocol].labels
    figure, panels = _panels(len(labels), height_inches=2.6, across="lead time, minutes", up="CSI")
    for axes, label in zip(panels, labels, strict=True):
        keys = [f"csi/{label}/lead/{k}" for k in range(1, scores.frames_out + 1)]
        curves = {name: tuple(scores.scores[name][protocol][key] for key in keys) for name in scores.names}
        _curves(axes, scores, curves)
        rare = "" if label in scores.supported_thresholds else " (rare)"
        axes.set_title(plain(f"≥ {with_unit(label, scores.unit)}{rare}"), fontsize=10, color=_INK)
    _legend(figure, panels[0])
    return figure


def draw_losses(stages: Sequence[StageResult]) -> Figure:
    """Draw the training loss by optimizer step, a panel for each stage: their losses have different targets."""
    figure, panels = _panels(len(stages), height_inches=2.5, across="optimizer step", up="training loss, own scale")
    styles = line_styles(tuple(stage.name for stage in stages))
    for axes, stage in zip(panels, stages, strict=True):
        steps = [line["step"] for line in stage.metrics]
        losses = [_positive(line.get("loss")) for line in stage.metrics]
        axes.plot(steps, losses, color=styles[stage.name].colour, linewidth=1.6, marker=".", markersize=4)
        axes.set_title(plain(stage.name), fontsize=10, color=_INK)
        axes.set_xlim(0, max(*steps, stage.steps, 1))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        _log_axis(axes, losses)
        _plain_look(axes)
    return figure


def _curves(axes: Axes, scores: ScoreFile, curves: dict[str, tuple[float | None, ...]]) -> None:
    styles = line_styles(scores.names)
    for name, values in curves.items():
        style: LineStyle = styles[name]
        axes.plot(
            scores.lead_minutes,
            [math.nan if value is None else value for value in values],
            color=style.colour,
            linestyle=style.dashes,
            linewidth=1.8,
            marker=style.marker,
            markersize=5,
            label=plain(name),
        )
    axes.set_ylim(bottom=0)
    every = math.ceil(scores.frames_out / _MAX_LEAD_TICKS)
    ticks = scores.lead_minutes[every - 1 :: every]
    axes.set_xticks(ticks, [f"{minutes:g}" for minutes in ticks])
    _plain_look(axes)


def _panels(count: int, *, height_inches: float, across: str, up: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels, at most three in a row; what is left of the last row stays empty.

    The horizontal axis is named where no panel stands below, the vertical one at the left edge.
    """
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = math.ceil(count / columns)
    figure = new_figure(max(4.5, 2.9 * columns), height_inches * rows + 0.4)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.remove()
    for k, axes in enumerate(panels[:count]):
        if k + columns >= count:
            axes.set_xlabel(across, fontsize=9, color=_INK)
        if k % columns == 0:
            axes.set_ylabel(up, fontsize=9, color=_INK)
    return figure, panels[:count]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if len(labels) <= 4 else math.ceil(len(labels) / 2)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, handlelength=3.5
    )


def _log_axis(axes: Axes, losses: list[float]) -> None:
    if all(math.isnan(loss) for loss in losses):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _positive(loss: float | None) -> float:
    return loss if loss is not None and loss > 0 else math.nan


def _plain_look(axes: Axes) -> None:
    axes.grid(visible=True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
