"""Performance diagrams of the two highest thresholds: the direct models by w_max, the teacher, the student."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.evidence.figure_style import FONT, INK, WIDTH, Look, legend, looks, plain_look, save
from simcast_hpc.report.lead_time_curves import new_figure
from simcast_hpc.report.performance_diagram import performance_axes, performance_point
from simcast_hpc.verification.bootstrap import Interval

from .intervals import LABELS, Bootstrap
from .study import FULL_WEIGHT


def draw_heavy_rain(bootstrap: Bootstrap, path: Path) -> None:
    """Draw the two highest thresholds: the direct models by w_max, the teacher, the student."""
    study, trained = bootstrap.evidence.study, bootstrap.evidence.by_arm
    ladder = ["direct" if w == FULL_WEIGHT else f"direct-w{w:g}" for w in sorted(study.weights)]
    ladder = [arm for arm in ladder if arm in trained]
    others = [arm for arm in (f"teacher-{study.half_horizon}", f"student-{study.half_horizon}") if arm in trained]
    names = {arm: look.name for arm, look in looks(study.half_horizon).items()}
    styles = _styles(looks(study.half_horizon), ladder)
    figure = new_figure(WIDTH, 7.6)
    for axes, label in zip(figure.subplots(2, 1), LABELS[-2:], strict=True):
        points = {
            arm: (bootstrap.one(((arm, 1.0),), f"far/{label}"), bootstrap.one(((arm, 1.0),), f"pod/{label}"))
            for arm in [*ladder, *others]
        }
        points = {arm: point for arm, point in points.items() if math.isfinite(point[0].value)}
        ratios = [1 - far.value for far, _ in points.values()]
        pods = [pod.value + _half_width(pod) for _, pod in points.values()]
        right, top = min(1.0, 1.35 * max([*ratios, 0.05])), min(1.0, 1.05 * max([*pods, 0.05]))
        performance_axes(axes, right=right, top=top, label_size=FONT)
        line = [points[arm] for arm in ladder if arm in points]
        axes.plot(
            [1 - far.value for far, _ in line], [pod.value for _, pod in line], color=styles["direct"].colour,
            linewidth=1.2,
        )  # fmt: skip
        for arm, (far, pod) in points.items():
            _point(axes, far, pod, styles[arm], named=arm in ladder)
        _move_bias_labels(axes, list(points.values()))
        axes.set_title(f"pixel value ≥ {label}", fontsize=FONT + 1, color=INK)
        axes.set_xlabel("success ratio, 1 - FAR", color=INK, fontsize=FONT)
        axes.set_ylabel("POD", color=INK, fontsize=FONT)
        plain_look(axes, grid=False)
    shown = ("direct", *others)
    legend(figure, {arm: styles[arm]._replace(name=names[arm], dashes="-" if arm == "direct" else "") for arm in shown})
    save(figure, path)


def _styles(styles: dict[str, Look], ladder: list[str]) -> dict[str, Look]:
    """Return the styles of the arms; direct models have one style and are named by their weight in the diagram."""
    direct = styles["direct"]
    weights = {arm: f"{FULL_WEIGHT:g}" if arm == "direct" else arm.removeprefix("direct-w") for arm in ladder}
    named = {arm: direct._replace(name=f"$w = {weight}$") for arm, weight in weights.items()}
    return {**styles, **named}


def _point(axes: Axes, far: Interval, pod: Interval, look: Look, *, named: bool) -> None:
    errors = (_half_width(far), _half_width(pod))
    performance_point(axes, far.value, pod.value, color=look.colour, marker=look.marker, errors=errors)
    if named:
        axes.annotate(
            look.name, (1 - far.value, pod.value), xytext=(5, 5), textcoords="offset points", fontsize=FONT,
            color=look.colour, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}, zorder=10,
        )  # fmt: skip


def _move_bias_labels(axes: Axes, points: list[tuple[Interval, Interval]]) -> None:
    """Move a label of frequency bias along its line to the origin until it is clear of all points and their bars."""
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    for text in [text for text in axes.texts if text.get_text().startswith("×")]:
        x, y = text.get_position()
        for share in np.arange(1.0, 0.2, -0.05).tolist():
            place = (share * x / right, share * y / top)
            if all(_clear(place, far, pod, right, top) for far, pod in points):
                text.set_position((share * x, share * y))
                break


def _clear(place: tuple[float, float], far: Interval, pod: Interval, right: float, top: float) -> bool:
    """Return whether a label at a place, in fractions of the axes, is clear of the point's cross of bars."""
    x, y = abs(place[0] - (1 - far.value) / right), abs(place[1] - pod.value / top)
    across, along = _half_width(far) / right, _half_width(pod) / top
    return (x > across + 0.05 or y > 0.05) and (y > along + 0.05 or x > 0.05) and not (x < 0.12 and y < 0.12)


def _half_width(interval: Interval) -> float:
    return interval.half_width if interval.has_bounds else 0.0
