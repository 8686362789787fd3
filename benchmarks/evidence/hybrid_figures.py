"""Figures of CSI-M by number of training steps, and by number of training events."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.evidence.figure_style import FONT, INK, STEP_MINUTES, WIDTH, Look, legend, plain_look, save
from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.report.lead_time_curves import new_figure

from .arms import EXTRAPOLATION, PYSTEPS, arm_named
from .claims import FEWEST_SEEDS
from .intervals import Bootstrap

_LINES = {
    "hybrid student, warm start": (
        Look("hybrid student, warm start", "#000000", "s", "-"),
        ("hybrid-student-warm", "hybrid-student-4x-warm"),
    ),
    "hybrid student": (Look("hybrid student", "#0072b2", "o", "-"), ("hybrid-student", "hybrid-student-4x")),
    "hybrid direct": (Look("hybrid direct model", "#009e73", "v", "-"), ("hybrid-direct", "hybrid-direct-4x")),
    "direct": (
        Look("direct model", "#d55e00", "D", "-"),
        ("direct", "direct-2x", "direct-4x", "direct-5x", "direct-16x"),
    ),
    "teacher": (
        Look("teacher, rolled out", "#56b4e9", "^", "--"),
        ("teacher-{half}", "teacher-4x", "teacher-16x"),
    ),
}
_LEVELS = {
    EXTRAPOLATION: Look("extrapolation", "#5f6368", "", ":"),
    PYSTEPS: Look("pysteps", "#cc79a7", "", "-."),
}
_FEW = {
    "direct": Look("direct model", "#d55e00", "D", "-"),
    "oracle": Look("student of a perfect teacher (oracle)", "#cc79a7", "P", "--"),
    "teacher": Look("teacher, rolled out", "#009e73", "v", "-."),
    "student": Look("student from scratch", "#0072b2", "o", "-"),
    "student-warm": Look("student, warm start", "#000000", "s", ":"),
}


def steps_arms(evidence: Evidence) -> bool:
    """Return whether a hybrid arm has results."""
    return any(arm in evidence.by_arm for name, (_, arms) in _LINES.items() if "hybrid" in name for arm in arms)


def draw_hybrid_steps(bootstrap: Bootstrap, path: Path) -> None:
    """Draw CSI-M by number of steps, one panel per lead time, with the levels of the extrapolations."""
    study, trained = bootstrap.evidence.study, bootstrap.evidence.by_arm
    leads = study.sequence.frames_out
    figure = new_figure(WIDTH, 5.2)
    grid = figure.subplots(2, -(-leads // 2), sharex=True, squeeze=False)
    steps_shown: set[int] = set()
    for look, arms in _LINES.values():
        present = [arm for one in arms if (arm := one.format(half=study.half_horizon)) in trained]
        steps = [arm_named(study, arm).steps for arm in present]
        steps_shown |= set(steps)
        scores = [bootstrap.score(((arm, 1.0),), "csi/mean", by_lead=True) for arm in present]
        for lead, axes in zip(range(leads), grid.flat, strict=False):
            points = [score[lead] for score in scores]
            _line(axes, steps, points, look)
    for name, look in _LEVELS.items():
        if name in trained:
            for axes, level in zip(grid.flat, bootstrap.score(((name, 1.0),), "csi/mean", by_lead=True), strict=False):
                axes.axhline(level.value, color=look.colour, linestyle=look.dashes, linewidth=1.4)
    for lead, axes in enumerate(grid.flat):
        axes.set_xscale("log")
        axes.minorticks_off()
        ticks = [step for step in sorted(steps_shown) if step in (study.steps, 4 * study.steps, 16 * study.steps)]
        axes.set_xticks(ticks, [f"{step}" for step in ticks])
        axes.set_title(f"{STEP_MINUTES * (lead + 1)} minutes", fontsize=FONT + 1, color=INK)
        plain_look(axes)
    for axes in grid[-1]:
        axes.set_xlabel("training steps, log scale", fontsize=FONT, color=INK)
    for axes in grid[:, 0]:
        axes.set_ylabel("CSI-M", fontsize=FONT, color=INK)
    shown = {name: look for name, (look, arms) in _LINES.items() if set(arms) & set(trained)}
    legend(figure, {**shown, **{name: look for name, look in _LEVELS.items() if name in trained}})
    save(figure, path)


def draw_few_data(bootstrap: Bootstrap, path: Path) -> None:
    """Draw CSI-M and MSE by number of training events."""
    study, trained = bootstrap.evidence.study, bootstrap.evidence.by_arm
    events = [number for number in study.few_events if any(f"{kind}-n{number}" in trained for kind in _FEW)]
    figure = new_figure(WIDTH, 3.6)
    panels = zip(figure.subplots(1, 2), (("csi/mean", 1.0, "CSI-M"), ("mse", 1000.0, "MSE x 1000")), strict=True)
    for axes, (score, scale, title) in panels:
        for place, (kind, look) in enumerate(_FEW.items()):
            groups = [group for group, number in enumerate(events) if f"{kind}-n{number}" in trained]
            points = [bootstrap.one(((f"{kind}-n{events[group]}", scale),), score) for group in groups]
            _line(axes, [group + 0.12 * (place - 2) for group in groups], points, look._replace(dashes=""))
        axes.set_xlim(-0.5, len(events) - 0.5)
        axes.set_xticks(range(len(events)), [f"{number}" for number in events])
        axes.set_xlabel("training events", fontsize=FONT, color=INK)
        axes.set_title(title, fontsize=FONT + 1, color=INK)
        plain_look(axes)
    legend(figure, {kind: look._replace(dashes="") for kind, look in _FEW.items()})
    save(figure, path)


def _line(axes: Axes, places: list[float] | list[int], points: list, look: Look) -> None:
    if not points:
        return
    errors = np.array(
        [point.half_width if point.has_bounds and point.seeds >= FEWEST_SEEDS else 0.0 for point in points]
    )
    axes.errorbar(
        places, [point.value for point in points], yerr=errors, color=look.colour, marker=look.marker,
        linestyle=look.dashes, linewidth=1.4, markersize=5, capsize=2.5,
    )  # fmt: skip
