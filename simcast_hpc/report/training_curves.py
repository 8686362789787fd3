"""Charts of training: loss, throughput and validation scores by optimizer step."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .colors import LineStyle, line_styles
from .lead_time_curves import Chart, draw_line, name_axes, new_chart, start_at_zero
from .pipeline_results import StageResult

_THROUGHPUT = "throughput/samples_per_second"
_VALIDATION = {"validation/crps": "fair CRPS", "validation/mae": "MAE of the mean", "validation/csi/mean": "mean CSI"}


def loss_charts(stages: Sequence[StageResult]) -> list[Chart]:
    """Return a chart of the training loss of each stage, on a logarithmic axis if all values are positive."""
    charts = []
    for stage, style in _with_styles(stages):
        losses = [line["loss"] for line in stage.metrics]
        chart = _chart(stage, losses, style, up="training loss", from_zero=False)
        if all(loss is not None and loss > 0 for loss in losses):
            _log_axis(chart.figure.axes[0])
        charts.append(chart)
    return charts


def throughput_charts(stages: Sequence[StageResult]) -> list[Chart]:
    """Return a chart of the throughput of each stage that logged it, in samples per second."""
    return [
        _chart(stage, [line.get(_THROUGHPUT) for line in stage.metrics], style, up="samples per second")
        for stage, style in _with_styles(stages)
        if any(line.get(_THROUGHPUT) is not None for line in stage.metrics)
    ]


def validation_charts(stages: Sequence[StageResult]) -> list[Chart]:
    """Return charts of the validation scores that stages logged during training."""
    charts = []
    for stage, style in _with_styles(stages):
        for key, title in _VALIDATION.items():
            points = [(line["step"], line[key]) for line in stage.validated if line.get(key) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                charts.append(_over_steps(stage, steps, values, style, up=title, title=f"{stage.name}: {title}"))
    return charts


def _with_styles(stages: Sequence[StageResult]) -> list[tuple[StageResult, LineStyle]]:
    styles = line_styles(tuple(stage.name for stage in stages))
    return [(stage, styles[stage.name]) for stage in stages]


def _chart(
    stage: StageResult, values: Sequence[float | None], style: LineStyle, *, up: str, from_zero: bool = True
) -> Chart:
    return _over_steps(stage, [line["step"] for line in stage.metrics], values, style, up=up, from_zero=from_zero)


def _over_steps(
    stage: StageResult,
    steps: Sequence[int],
    values: Sequence[float | None],
    style: LineStyle,
    *,
    up: str,
    title: str = "",
    from_zero: bool = True,
) -> Chart:
    figure, axes = new_chart()
    draw_line(axes, steps, values, style, name=stage.name, every=max(1, len(steps) // 12))
    axes.set_xlim(0, max(*steps, stage.steps, 1) * 1.02)
    if from_zero:
        start_at_zero(axes, values)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    name_axes(axes, "optimizer step", up)
    last = next((value for value in reversed(values) if value is not None and math.isfinite(value)), None)
    description = "undefined" if last is None else f"{last:.3g} at the end"
    return Chart(title or stage.name, f"{stage.name}: {up} against optimizer step, {description}.", figure)


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
