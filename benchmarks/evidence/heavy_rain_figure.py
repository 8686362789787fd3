"""Performance diagrams of the two highest thresholds: the direct models by w_max, the teacher, the student."""

import math
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.evidence.figure_style import FONT, INK, WIDTH, Look, looks, plain_look, save
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
            _point(axes, far, pod, styles[arm], side="right" if arm in ladder[1:] else "left")
        axes.set_title(f"VIL pixel value ≥ {label}", fontsize=FONT + 1, color=INK)
        axes.set_xlabel("success ratio, 1 - FAR", color=INK, fontsize=FONT)
        axes.set_ylabel("POD", color=INK, fontsize=FONT)
        plain_look(axes, grid=False)
    save(figure, path)


def _styles(styles: dict[str, Look], ladder: list[str]) -> dict[str, Look]:
    """Return the styles of the arms; direct models have one style and are named by their weight."""
    direct = styles["direct"]
    weights = {arm: f"{FULL_WEIGHT:g}" if arm == "direct" else arm.removeprefix("direct-w") for arm in ladder}
    named = {arm: direct._replace(name=f"direct, $w = {weight}$") for arm, weight in weights.items()}
    return {**styles, **named}


def _point(axes: Axes, far: Interval, pod: Interval, look: Look, *, side: str) -> None:
    errors = (_half_width(far), _half_width(pod))
    performance_point(axes, far.value, pod.value, color=look.colour, marker=look.marker, errors=errors)
    axes.annotate(
        look.name, (1 - far.value, pod.value), xytext=(7, 6) if side == "right" else (-7, -12),
        textcoords="offset points", fontsize=FONT, color=look.colour, ha="left" if side == "right" else "right",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}, zorder=10,
    )  # fmt: skip


def _half_width(interval: Interval) -> float:
    return interval.half_width if interval.has_bounds else 0.0
