"""Figures of the evidence page, with 95 % intervals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.evidence.figure_style import (
    FONT,
    INK,
    WIDTH,
    Look,
    lead_axis,
    legend,
    looks,
    minutes,
    names,
    plain_look,
    save,
    with_bars,
)
from simcast_hpc.report.lead_time_curves import new_figure

from .arms import BASELINES, EXTRAPOLATION, PERSISTENCE, arm_named
from .claims import Verdict
from .claims_figure import (
    draw_claims,
    draw_few_data_claims,
    draw_headlines,
    draw_hybrid,
    draw_long_controls,
    draw_other_controls,
)
from .heavy_rain_figure import draw_heavy_rain
from .hybrid_figures import draw_few_data, draw_hybrid_steps, steps_arms
from .intervals import LABELS, Bootstrap

# CSI-M of the paper's ablation on SEVIR (arXiv 2510.07953): T_s, rolled-out teacher, student.
PAPER_BY_HORIZON = ((1, 0.4184, 0.4338), (4, 0.4472, 0.4516), (6, 0.4517, 0.4521))
PAPER_DIRECT = 0.4354

CAPTIONS = {
    "summary": "Differences of CSI-M between arms, with 95 % intervals over seeds and test events: the comparisons of "
    "the table above. Right of zero the difference has the claimed sign.",
    "claims": "Claims of the paper: differences of CSI-M with 95 % intervals, and the paper's own values on SEVIR.",
    "controls-training": "Controls with more training steps: differences of CSI-M with 95 % intervals.",
    "controls-other": "Other controls: differences of CSI-M with 95 % intervals.",
    "claims-hybrid": "Networks that start from extrapolation: differences of CSI-M with 95 % intervals.",
    "claims-few-data": "Few training events (the number is in the row): differences of CSI-M with 95 % intervals.",
    "hybrid-steps": "CSI-M by number of training steps (logarithmic axis), one panel per lead time: networks with and "
    "without extrapolation as base, and extrapolation without training. The axis counts a model's own steps; a student "
    "with warm start begins after as many steps of its teacher. Each point is a separate run. The 95 % intervals "
    "include the variation of the events; the paired differences in the table do not. The panels have different CSI-M "
    "ranges.",
    "few-data": "CSI-M and MSE by number of training events, with 95 % intervals; weights selected on the val events.",
    "csi-by-lead": "Top: CSI-M by lead time; bands are 95 % intervals. Bottom: paired difference from the direct "
    "model, with 95 % intervals.",
    "horizons": "CSI-M minus that of the direct model, by the horizon of the teacher: this study with 95 % intervals, "
    "and the paper's values on SEVIR. Both panels have the same vertical range.",
    "csi-long": "Top: CSI-M by lead time after longer training; bands are 95 % intervals. Bottom: paired difference "
    "from the direct model, with 95 % intervals.",
    "heavy-rain": "Performance diagrams of the two highest thresholds: POD by success ratio, with 95 % intervals. The "
    "line connects the direct models in the order of the weight. Gray solid curves: equal CSI, whose value is at the "
    "right; gray dashed lines: equal frequency bias, whose value follows the sign ×.",
    "csi": "CSI by lead time, one panel per threshold (pixel value).",
    "bias": "Frequency bias by lead time, one panel per threshold (pixel value); 1 is unbiased.",
    "pod": "POD by lead time, one panel per threshold (pixel value).",
    "far": "FAR by lead time, one panel per threshold (pixel value).",
    "fss-crps": "Fractions skill score by lead time for three thresholds, and the CRPS, which equals the MAE for a "
    "single forecast.",
    "loss": "Validation loss on real frames by optimizer step; bands are the range of the seeds. The learning rate "
    "decreases to zero at the end of every run, so only runs of different lengths show convergence.",
}


def draw_all(bootstrap: Bootstrap, verdicts: Sequence[Verdict], folder: Path) -> dict[str, Path]:
    """Draw every figure whose arms are available into ``folder`` and return the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {
        "summary": lambda path: draw_headlines(verdicts, bootstrap.evidence.study, path),
        "claims": lambda path: draw_claims(verdicts, path),
        "controls-training": lambda path: draw_long_controls(verdicts, path),
        "controls-other": lambda path: draw_other_controls(verdicts, path),
        "csi-by-lead": lambda path: _csi_by_lead(bootstrap, _present(bootstrap), "direct", path),
        "horizons": lambda path: _horizons(bootstrap, path),
        "heavy-rain": lambda path: draw_heavy_rain(bootstrap, path),
        "csi": lambda path: _by_threshold(bootstrap, "csi", "CSI", path),
        "bias": lambda path: _by_threshold(bootstrap, "frequency_bias", "frequency bias", path),
        "pod": lambda path: _by_threshold(bootstrap, "pod", "POD", path),
        "far": lambda path: _by_threshold(bootstrap, "far", "FAR", path),
        "fss-crps": lambda path: _fss_and_crps(bootstrap, path),
        "loss": lambda path: _losses(bootstrap, path),
    }
    origins = {verdict.claim.origin for verdict in verdicts}
    if "hybrid" in origins:
        makers["claims-hybrid"] = lambda path: draw_hybrid(verdicts, path)
    if "few data" in origins:
        makers["claims-few-data"] = lambda path: draw_few_data_claims(verdicts, path)
        makers["few-data"] = lambda path: draw_few_data(bootstrap, path)
    if steps_arms(bootstrap.evidence):
        makers["hybrid-steps"] = lambda path: draw_hybrid_steps(bootstrap, path)
    long = _long_styles(bootstrap)
    if long:
        makers["csi-long"] = lambda path: _csi_by_lead(bootstrap, long, "direct-5x", path)
    files = {}
    for name, make in makers.items():
        path = folder / f"{name}.png"
        make(path)
        files[name] = path
    return files


def _csi_by_lead(bootstrap: Bootstrap, styles: dict[str, Look], reference: str, path: Path) -> None:
    """Draw CSI-M of arms by lead time, and the paired difference of the models from ``reference``."""
    figure = new_figure(WIDTH, 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    ends = _curves(top, bootstrap, "csi/mean", styles)
    top.set_ylabel("CSI-M", color=INK, fontsize=FONT)
    top.set_ylim(bottom=0)
    names(top, ends)
    others = {arm: look for arm, look in styles.items() if arm not in (reference, *BASELINES)}
    ends = []
    for place, (arm, look) in enumerate(others.items()):
        leads = bootstrap.score(((arm, 1.0), (reference, -1.0)), "csi/mean", by_lead=True)
        places = minutes(len(leads)) + 0.5 * (place - (len(others) - 1) / 2)
        with_bars(bottom, places, leads, look)
        ends.append((minutes(len(leads))[-1] + 0.9, leads[-1].value, look))
    names(bottom, ends)
    bottom.axhline(0, color=INK, linewidth=0.9)
    bottom.set_ylabel(f"CSI-M minus that of {styles[reference].name}", color=INK, fontsize=FONT)
    bottom.set_xlabel("lead time, minutes", color=INK, fontsize=FONT)
    for axes in (top, bottom):
        lead_axis(axes, bootstrap)
    save(figure, path)


def _long_styles(bootstrap: Bootstrap) -> dict[str, Look]:
    """Return the styles of the long runs; empty if one is missing."""
    half = bootstrap.evidence.study.half_horizon
    styles = looks(half)
    arms = {"direct-5x": "direct", "teacher-4x": f"teacher-{half}", "student-4x": f"student-{half}"}
    if not set(arms) <= set(bootstrap.evidence.by_arm):
        return {}
    study = bootstrap.evidence.study
    names_of = {arm: f"{styles[of].name}, {arm_named(study, arm).steps} steps" for arm, of in arms.items()}
    found = {arm: styles[of]._replace(name=names_of[arm]) for arm, of in arms.items()}
    return {**{name: styles[name] for name in (PERSISTENCE, EXTRAPOLATION)}, **found}


def _horizons(bootstrap: Bootstrap, path: Path) -> None:
    """Draw CSI-M of teachers and students minus that of the direct model by T_s, and the same of the paper."""
    study, trained = bootstrap.evidence.study, bootstrap.evidence.by_arm
    horizons = [h for h in sorted(study.horizons) if f"teacher-{h}" in trained and f"student-{h}" in trained]
    styles = looks(study.half_horizon)
    kinds = {kind: styles[f"{kind}-{study.half_horizon}"] for kind in ("teacher", "student")}
    figure = new_figure(WIDTH, 3.5)
    here, paper = figure.subplots(1, 2, sharey=True)
    for (kind, look), column, shift in zip(kinds.items(), (1, 2), (-0.03, 0.03), strict=True):
        points = [bootstrap.one(((f"{kind}-{h}", 1.0), ("direct", -1.0)), "csi/mean") for h in horizons]
        with_bars(here, np.arange(len(points)) + shift, points, look)
        values = [row[column] - PAPER_DIRECT for row in PAPER_BY_HORIZON]
        paper.plot(
            range(len(values)), values, color=look.colour, marker=look.marker, linestyle=look.dashes, markersize=6
        )
    here.set_xticks(range(len(horizons)), [f"{h} of {study.sequence.frames_out}" for h in horizons])
    paper.set_xticks(range(len(PAPER_BY_HORIZON)), [f"{row[0]} of 12" for row in PAPER_BY_HORIZON])
    here.set_title("this study: synthetic storms", fontsize=FONT + 1, color=INK)
    paper.set_title("paper: SEVIR, one run, no interval", fontsize=FONT + 1, color=INK)
    here.set_ylabel("CSI-M minus that of direct", color=INK, fontsize=FONT)
    for axes in (here, paper):
        axes.axhline(0, color=styles["direct"].colour, linewidth=1.5)
        axes.set_xlabel("horizon of the teacher, $T_s$, in frames", color=INK, fontsize=FONT)
        plain_look(axes)
    legend(figure, {**kinds, "direct": styles["direct"]._replace(marker="", dashes="-")})
    save(figure, path)


def _by_threshold(bootstrap: Bootstrap, score: str, title: str, path: Path) -> None:
    """Draw a score by lead time, one panel per threshold."""
    styles = _present(bootstrap)
    figure = new_figure(WIDTH, 4.7)
    grid = figure.subplots(2, len(LABELS) // 2, sharex=True)
    for axes, label in zip(grid.flat, LABELS, strict=True):
        _curves(axes, bootstrap, f"{score}/{label}", styles)
        lead_axis(axes, bootstrap)
        axes.set_ylim(bottom=0)
        if score == "frequency_bias":
            axes.axhline(1, color=INK, linewidth=0.7)
        elif axes.get_ylim()[1] > 1:
            axes.set_ylim(top=1)
        axes.set_title(f"{title}, ≥ {label}", fontsize=FONT + 1, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("lead time, minutes", fontsize=FONT, color=INK)
    legend(figure, styles)
    save(figure, path)


def _fss_and_crps(bootstrap: Bootstrap, path: Path) -> None:
    styles, scoring = _present(bootstrap), bootstrap.evidence.study.scoring
    panels = [(f"fss/{value}", f"FSS, {scoring.fss_pixels} pixels, ≥ {value}") for value in scoring.fss_thresholds]
    panels.append(("mae", "CRPS (= MAE), fields in [0, 1]"))
    figure = new_figure(WIDTH, 4.9)
    grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False, sharex=True)
    for axes, (score, title) in zip(grid.flat, panels, strict=True):
        _curves(axes, bootstrap, score, styles)
        axes.set_title(title, fontsize=FONT + 1, color=INK)
        axes.set_ylim(bottom=0)
        lead_axis(axes, bootstrap)
    for axes in grid[-1]:
        axes.set_xlabel("lead time, minutes", color=INK, fontsize=FONT)
    legend(figure, styles)
    save(figure, path)


def _losses(bootstrap: Bootstrap, path: Path) -> None:
    """Draw the validation loss by step, with the range of the seeds as a band."""
    half = bootstrap.evidence.study.half_horizon
    styles = looks(half)
    figure = new_figure(WIDTH, 3.3)
    teacher, direct = figure.subplots(1, 2)
    _loss_curves(
        teacher,
        bootstrap,
        {f"teacher-{half}": "1x", "teacher-4x": "4x", "teacher-16x": "16x"},
        styles[f"teacher-{half}"],
    )
    _loss_curves(direct, bootstrap, {"direct": "1x", "direct-5x": "5x", "direct-16x": "16x"}, styles["direct"])
    teacher.set_title(f"teacher of $T_s = {half}$, its own lead times", fontsize=FONT + 1, color=INK)
    direct.set_title("direct model, all lead times", fontsize=FONT + 1, color=INK)
    for axes in (teacher, direct):
        axes.set_xlabel("optimizer step", color=INK, fontsize=FONT)
        axes.set_ylabel("weighted MSE x 1000, val events", color=INK, fontsize=FONT)
        plain_look(axes)
    save(figure, path)


def _loss_curves(axes: Axes, bootstrap: Bootstrap, arms: dict[str, str], look: Look) -> None:
    for (arm, name), dashes in zip(arms.items(), ("-", "--", ":"), strict=False):
        if arm not in bootstrap.evidence.by_arm:
            continue
        curves = [result.record["val_loss"] for result in bootstrap.evidence.by_arm[arm].values()]
        steps = [step for step, _ in curves[0]]
        losses = np.array([[loss for _, loss in curve] for curve in curves]) * 1e3
        axes.fill_between(steps, losses.min(0), losses.max(0), color=look.colour, alpha=0.15, linewidth=0)
        axes.plot(
            steps, losses.mean(0), color=look.colour, marker=look.marker, markersize=4, linestyle=dashes,
            label=f"{name} steps ({steps[-1]})",
        )  # fmt: skip
    if axes.lines:
        axes.legend(frameon=False, fontsize=FONT)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _present(bootstrap: Bootstrap) -> dict[str, Look]:
    all_looks = looks(bootstrap.evidence.study.half_horizon)
    return {arm: look for arm, look in all_looks.items() if arm in bootstrap.evidence.by_arm}


def _curves(axes: Axes, bootstrap: Bootstrap, score: str, styles: dict[str, Look]) -> list[tuple[float, float, Look]]:
    """Draw a score by lead time, and return the end of each line."""
    ends = []
    for arm, look in styles.items():
        leads = bootstrap.score(((arm, 1.0),), score, by_lead=True)
        times, values = minutes(len(leads)), [interval.value for interval in leads]
        axes.plot(
            times, values, color=look.colour, linestyle=look.dashes, linewidth=1.5, marker=look.marker, markersize=4
        )
        if arm not in BASELINES:
            low, high = ([getattr(interval, end) for interval in leads] for end in ("low", "high"))
            axes.fill_between(times, low, high, color=look.colour, alpha=0.15, linewidth=0)
        ends.append((times[-1] + 0.4, values[-1], look))
    return ends
