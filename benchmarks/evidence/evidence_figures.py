"""Figures of the evidence page, with 95 % intervals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.evidence.figure_style import (
    GREY,
    INK,
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
from benchmarks.evidence.paper_claims import HOLDS, REVERSED, Comparison, Finding, Verdict
from simcast_hpc.report.lead_time_curves import new_figure

from .heavy_rain_figure import draw_heavy_rain
from .intervals import LABELS, Bootstrap

MAIN_SCORES = (("csi", "CSI"), ("pod", "POD"), ("far", "FAR"), ("frequency_bias", "frequency bias"))
# CSI-M of the paper's ablation on SEVIR (arXiv 2510.07953): T's, rolled-out teacher, student.
PAPER_BY_HORIZON = ((1, 0.4184, 0.4338), (4, 0.4472, 0.4516), (6, 0.4517, 0.4521))
PAPER_DIRECT = 0.4354

CAPTIONS = {
    "claims": "Differences of CSI-M of all claims with 95 % intervals; above the dotted line claims of the paper, "
    "below it the controls.",
    "csi-by-lead": "CSI-M by lead time, and the paired difference from the direct model.",
    "horizons": "Ablation of the teacher's horizon in this study and in the paper, as paired differences from the "
    "direct model.",
    "csi-long": "CSI-M by lead time of teacher and student after four times the steps, and of the direct model after "
    "five.",
    "heavy-rain": "The two highest thresholds: POD over success ratio. The line connects the direct models by w_max.",
    "csi-bias": "CSI and frequency bias by threshold and lead time.",
    "pod-far": "POD and FAR by threshold and lead time.",
    "fss-crps": "Fractions skill score by lead time, and the CRPS, which equals the MAE for a single forecast.",
    "loss": "Validation loss on real frames; bands are the range of the seeds. The learning rate decreases to zero at "
    "the end of every run, so only runs of different lengths show convergence.",
}


def draw_all(bootstrap: Bootstrap, verdicts: Sequence[Verdict], folder: Path) -> dict[str, Path]:
    """Draw every figure whose arms are available into ``folder`` and return the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {
        "claims": lambda path: _claims(verdicts, path),
        "csi-by-lead": lambda path: _csi_by_lead(bootstrap, _present(bootstrap), "direct", path),
        "horizons": lambda path: _horizons(bootstrap, path),
        "heavy-rain": lambda path: draw_heavy_rain(bootstrap, path),
        "csi-bias": lambda path: _by_threshold(bootstrap, (MAIN_SCORES[0], MAIN_SCORES[3]), path),
        "pod-far": lambda path: _by_threshold(bootstrap, MAIN_SCORES[1:3], path),
        "fss-crps": lambda path: _fss_and_crps(bootstrap, path),
        "loss": lambda path: _losses(bootstrap, path),
    }
    long = _long_styles(bootstrap)
    if long:
        makers["csi-long"] = lambda path: _csi_by_lead(bootstrap, long, "direct-5x", path)
    files = {}
    for name, make in makers.items():
        path = folder / f"{name}.png"
        make(path)
        files[name] = path
    return files


def _claims(verdicts: Sequence[Verdict], path: Path) -> None:
    """Draw every comparison of CSI-M as a line with its interval, and the paper's value."""
    rows = [
        (verdict.claim.origin, finding)
        for verdict in verdicts
        for finding in verdict.findings
        if finding.comparison.score == "csi/mean" and finding.interval.has_bounds and not _against_persistence(finding)
    ]
    figure = new_figure(8.6, 1.5 + 0.27 * len(rows))
    axes = figure.subplots()
    colours = {HOLDS: "#0072b2", REVERSED: "#d55e00"}
    markers = {HOLDS: "o", REVERSED: "X"}
    for row, (_, finding) in enumerate(rows):
        interval, colour = finding.interval, colours.get(finding.verdict, GREY)
        axes.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(interval.value, row, markers.get(finding.verdict, "s"), color=colour, markersize=6.5)
        if finding.comparison.paper is not None:
            axes.plot(finding.comparison.paper, row, "d", markerfacecolor="none", markeredgecolor=INK, markersize=7)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_yticks(range(len(rows)), [_row_label(finding.comparison) for _, finding in rows], fontsize=8.5)
    first_control = next((row for row, (origin, _) in enumerate(rows) if origin == "control"), len(rows))
    if 0 < first_control < len(rows):
        axes.axhline(first_control - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel("difference of CSI-M, 95 % interval over seeds and events", color=INK)
    for verdict, text in ((HOLDS, "supported"), (REVERSED, "contradicted"), ("", "undecided")):
        axes.plot([], [], markers.get(verdict, "s"), color=colours.get(verdict, GREY), linestyle="-", label=text)
    axes.plot([], [], "d", markerfacecolor="none", markeredgecolor=INK, linestyle="none", label="the paper, on SEVIR")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    plain_look(axes)
    save(figure, path)


def _against_persistence(finding: Finding) -> bool:
    return any(arm == "persistence" for arm, _ in finding.comparison.terms)


def _row_label(comparison: Comparison) -> str:
    return comparison.label.removeprefix("CSI-M, ")


def _csi_by_lead(bootstrap: Bootstrap, styles: dict[str, Look], reference: str, path: Path) -> None:
    """Draw CSI-M of arms by lead time, and the paired difference of the models from ``reference``."""
    figure = new_figure(9.6, 4.2)
    left, right = figure.subplots(1, 2)
    ends = _curves(left, bootstrap, "csi/mean", styles)
    left.set_ylabel("CSI-M", color=INK)
    left.set_ylim(bottom=0)
    names(left, ends)
    others = {arm: look for arm, look in styles.items() if arm not in (reference, "persistence")}
    ends = []
    for place, (arm, look) in enumerate(others.items()):
        leads = bootstrap.score(((arm, 1.0), (reference, -1.0)), "csi/mean", by_lead=True)
        places = minutes(len(leads)) + 0.5 * (place - (len(others) - 1) / 2)
        with_bars(right, places, leads, look)
        ends.append((minutes(len(leads))[-1] + 0.9, leads[-1].value, look))
    names(right, ends)
    right.axhline(0, color=INK, linewidth=0.9)
    right.set_ylabel(f"CSI-M - CSI-M of {styles[reference].name}, paired", color=INK)
    for axes in (left, right):
        axes.set_xlabel("lead time, minutes", color=INK)
        lead_axis(axes, bootstrap)
    save(figure, path)


def _long_styles(bootstrap: Bootstrap) -> dict[str, Look]:
    """Return the styles of the long runs; empty if one is missing."""
    half = bootstrap.evidence.study.half_horizon
    styles = looks(half)
    arms = {"direct-5x": "direct", "teacher-4x": f"teacher-{half}", "student-4x": f"student-{half}"}
    if not set(arms) <= set(bootstrap.evidence.by_arm):
        return {}
    found = {arm: styles[of]._replace(name=f"{styles[of].name}, {arm[-2:]} steps") for arm, of in arms.items()}
    return {"persistence": styles["persistence"], **found}


def _horizons(bootstrap: Bootstrap, path: Path) -> None:
    """Draw CSI-M of teachers and students minus that of the direct model by T's, and the same of the paper."""
    study, trained = bootstrap.evidence.study, bootstrap.evidence.by_arm
    horizons = [h for h in sorted(study.horizons) if f"teacher-{h}" in trained and f"student-{h}" in trained]
    styles = looks(study.half_horizon)
    figure = new_figure(9.6, 4.0)
    here, paper = figure.subplots(1, 2)
    ends, ends_paper = [], []
    for kind, column, shift in (("teacher", 1, -0.03), ("student", 2, 0.03)):
        look = styles[f"{kind}-{study.half_horizon}"]
        points = [bootstrap.one(((f"{kind}-{h}", 1.0), ("direct", -1.0)), "csi/mean") for h in horizons]
        with_bars(here, np.arange(len(points)) + shift, points, look)
        ends.append((len(points) - 0.9, points[-1].value, look))
        values = [row[column] - PAPER_DIRECT for row in PAPER_BY_HORIZON]
        paper.plot(
            range(len(values)), values, color=look.colour, marker=look.marker, linestyle=look.dashes, markersize=6
        )
        ends_paper.append((len(values) - 0.9, values[-1], look))
    here.set_xticks(range(len(horizons)), [f"{h} of {study.sequence.frames_out}" for h in horizons])
    paper.set_xticks(range(len(PAPER_BY_HORIZON)), [f"{row[0]} of 12" for row in PAPER_BY_HORIZON])
    here.set_title("this study: synthetic storms", fontsize=10, color=INK)
    paper.set_title("the paper: SEVIR, one run each, no interval", fontsize=10, color=INK)
    here.set_ylabel("CSI-M - CSI-M of the direct model", color=INK)
    for axes, labels in ((here, ends), (paper, ends_paper)):
        axes.axhline(0, color=styles["direct"].colour, linewidth=1.5)
        axes.annotate("direct", (0.25, 0), xytext=(0, 3), textcoords="offset points", fontsize=8.5,
                      color=styles["direct"].colour)  # fmt: skip
        names(axes, labels)
        axes.set_xlabel("horizon of the teacher, T's", color=INK)
        axes.set_xlim(-0.2, len(labels) + 0.15)
        plain_look(axes)
    save(figure, path)


def _by_threshold(bootstrap: Bootstrap, scores: Sequence[tuple[str, str]], path: Path) -> None:
    styles = _present(bootstrap)
    figure = new_figure(11.0, 0.6 + 1.9 * len(scores), gap_inches=0.03)
    grid = figure.subplots(len(scores), len(LABELS), sharex=True)
    for row, (score, title) in zip(grid, scores, strict=True):
        for axes, label in zip(row, LABELS, strict=True):
            _curves(axes, bootstrap, f"{score}/{label}", styles)
            lead_axis(axes, bootstrap)
            axes.tick_params(labelsize=7)
            axes.set_ylim(bottom=0)
            if score == "frequency_bias":
                axes.axhline(1, color=INK, linewidth=0.7)
            elif axes.get_ylim()[1] > 1:
                axes.set_ylim(top=1)
        row[0].set_ylabel(title, color=INK)
    for axes, label in zip(grid[0], LABELS, strict=True):
        axes.set_title(f"≥ {label}", fontsize=10, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("lead time, minutes", fontsize=8, color=INK)
    legend(figure, styles)
    save(figure, path)


def _fss_and_crps(bootstrap: Bootstrap, path: Path) -> None:
    styles, scoring = _present(bootstrap), bootstrap.evidence.study.scoring
    figure = new_figure(11.0, 3.2)
    panels = figure.subplots(1, len(scoring.fss_thresholds) + 1, squeeze=False)[0]
    for axes, threshold in zip(panels, scoring.fss_thresholds, strict=False):
        _curves(axes, bootstrap, f"fss/{threshold}", styles)
        axes.set_title(f"FSS, {scoring.fss_pixels} px, ≥ {threshold}", fontsize=10, color=INK)
        axes.set_ylim(bottom=0)
    _curves(panels[-1], bootstrap, "mae", styles)
    panels[-1].set_title("CRPS (= MAE), of [0, 1]", fontsize=10, color=INK)
    panels[-1].set_ylim(bottom=0)
    for axes in panels:
        axes.set_xlabel("lead time, minutes", color=INK)
        lead_axis(axes, bootstrap)
    legend(figure, styles)
    save(figure, path)


def _losses(bootstrap: Bootstrap, path: Path) -> None:
    """Draw the validation loss by step, with the range of the seeds as a band."""
    half = bootstrap.evidence.study.half_horizon
    styles = looks(half)
    figure = new_figure(9.6, 3.6)
    teacher, direct = figure.subplots(1, 2)
    _loss_curves(
        teacher,
        bootstrap,
        {f"teacher-{half}": "1x", "teacher-4x": "4x", "teacher-16x": "16x"},
        styles[f"teacher-{half}"],
    )
    _loss_curves(direct, bootstrap, {"direct": "1x", "direct-2x": "2x", "direct-5x": "5x"}, styles["direct"])
    teacher.set_title(f"teacher of T's {half}, its own lead times", fontsize=10, color=INK)
    direct.set_title("direct model, all lead times", fontsize=10, color=INK)
    for axes in (teacher, direct):
        axes.set_xlabel("optimizer step", color=INK)
        axes.set_ylabel("weighted MSE x 1000, val events", color=INK)
        plain_look(axes)
    save(figure, path)


def _loss_curves(axes: Axes, bootstrap: Bootstrap, arms: dict[str, str], look: Look) -> None:
    ends = []
    for (arm, name), dashes in zip(arms.items(), ("-", "--", ":"), strict=False):
        if arm not in bootstrap.evidence.by_arm:
            continue
        curves = [result.record["val_loss"] for result in bootstrap.evidence.by_arm[arm].values()]
        steps = [step for step, _ in curves[0]]
        losses = np.array([[loss for _, loss in curve] for curve in curves]) * 1e3
        axes.fill_between(steps, losses.min(0), losses.max(0), color=look.colour, alpha=0.15, linewidth=0)
        axes.plot(steps, losses.mean(0), color=look.colour, marker=look.marker, markersize=4, linestyle=dashes)
        ends.append((steps[-1], losses.mean(0)[-1], look._replace(name=f"{name} steps")))
    for x, y, named in ends:
        axes.annotate(named.name, (x, y), xytext=(0, -17), textcoords="offset points", fontsize=8.5,
                      color=look.colour, ha="center")  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1.14 * axes.dataLim.x1)


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
        if arm != "persistence":
            low, high = ([getattr(interval, end) for interval in leads] for end in ("low", "high"))
            axes.fill_between(times, low, high, color=look.colour, alpha=0.15, linewidth=0)
        ends.append((times[-1] + 0.4, values[-1], look))
    return ends
