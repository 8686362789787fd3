"""Charts of training: loss, throughput and validation scores by optimizer step."""

import dataclasses
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .colors import LineStyle, line_styles
from .lead_time_curves import FAINT, Chart, draw_line, name_axes, new_chart, start_at_zero
from .pipeline_results import StageResult

_THROUGHPUT = "throughput/samples_per_second"
_ENSEMBLE = {"crps": "fair CRPS", "mae": "MAE of the mean", "csi/mean": "mean CSI"}
_VALIDATION_LOSS = LineStyle("#5f6368", "", "--")
_FORECAST = {"csi/mean": "mean CSI", "mse": "MSE"}


def loss_charts(stages: Sequence[StageResult]) -> list[Chart]:
    """Return a chart of the loss of each stage, on a logarithmic axis if all values are positive.

    The loss on the validation windows is a second curve, gray and dashed.
    """
    charts = []
    for stage, style in _with_styles(stages):
        losses = [line["loss"] for line in stage.metrics]
        chart = _chart(stage, losses, style, up="loss", from_zero=False)
        axes, validated = chart.figure.axes[0], stage.validation_points("loss")
        if validated:
            every = max(1, len(validated) // 12)
            steps, values = zip(*validated, strict=True)
            draw_line(axes, steps, values, _VALIDATION_LOSS, name="validation", every=every)
            _mark_best(axes, stage)
        if all(loss is not None and loss > 0 for loss in [*losses, *(value for _, value in validated)]):
            _log_axis(axes)
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
    """Return charts of the validation scores that stages logged during training.

    Horizontal lines are the scores of the baselines on the same windows; a vertical line is the best step.
    """
    charts = []
    for stage, style in _with_styles(stages):
        for key, title in _titles(stage).items():
            if not (points := stage.validation_points(key)):
                continue
            steps, values = zip(*points, strict=True)
            chart = _over_steps(stage, steps, values, style, up=title, title=f"{stage.name}: {title}")
            baselines = stage.baseline_scores(key)
            axes = chart.figure.axes[0]
            for name, line in line_styles(tuple(baselines)).items():
                axes.axhline(baselines[name], color=line.color, linestyle=line.dashes, linewidth=1.4)
            start_at_zero(axes, [*values, *baselines.values()])
            _mark_best(axes, stage)
            baseline_scores = "".join(f" {name} {value:.3g}." for name, value in baselines.items())
            best = stage.selection.get("best_step")
            selected = "" if best is None else f" Best {stage.selection['score']} at step {best}."
            charts.append(dataclasses.replace(chart, alt=chart.alt + baseline_scores + selected))
    return charts


def baselines_of(stages: Sequence[StageResult]) -> dict[str, LineStyle]:
    """Return the line styles of the baselines in the charts of validation scores, by name."""
    names = dict.fromkeys(name for stage in stages for key in _titles(stage) for name in stage.baseline_scores(key))
    return line_styles(tuple(names))


def _titles(stage: StageResult) -> dict[str, str]:
    """Return the titles of the validation scores of a stage by key; a forecasting stage also has its own score."""
    if not stage.selection:
        return _ENSEMBLE
    score = stage.selection["score"]
    return {**_FORECAST, **({} if score in (*_FORECAST, "loss") else {score: score})}


def _mark_best(axes: Axes, stage: StageResult) -> None:
    """Draw a vertical line at the step with the best validation score."""
    if stage.selection.get("best_step") is not None:
        axes.axvline(stage.selection["best_step"], color=FAINT, linewidth=1.2, linestyle=(0, (1, 2)))


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
