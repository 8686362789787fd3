"""Forest plots of the evidence page: differences of CSI with 95 % intervals, one row per comparison."""

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from benchmarks.evidence.figure_style import FONT, GREY, INK, WIDTH, plain_look, save
from simcast_hpc.report.lead_time_curves import new_figure

from .arms import PERSISTENCE
from .claims import HOLDS, NOT_TESTABLE, REVERSED, UNDECIDED, Finding, Verdict
from .study import Study
from .summary_text import headline_findings

MOST_ROWS = 16
"""Largest number of rows at which all labels are readable at the width of a page."""
MOST_CHARACTERS = 55
"""Length of a label in one line."""

_CSI = "csi/mean"
_COLOURS = {HOLDS: "#0072b2", REVERSED: "#d55e00", UNDECIDED: GREY}
_LABELS = {HOLDS: HOLDS, REVERSED: REVERSED, UNDECIDED: "not significant"}
_MARKERS = {HOLDS: "o", REVERSED: "D", UNDECIDED: "s"}
LONG_TRAINING = (
    "own-steps", "own-steps-future", "own-steps-4x", "compute", "converged", "long", "longest", "long-student",
    "long-distillation", "teacher-steps", "best-case", "longer-teacher", "longer-teacher-students",
)  # fmt: skip
"""Controls with more training steps; the other controls have a figure of their own."""


def draw_headlines(verdicts: Sequence[Verdict], study: Study, path: Path) -> None:
    """Draw the comparisons of the summary."""
    _forest(headline_findings(verdicts, study), "difference of CSI-M", path)


def draw_claims(verdicts: Sequence[Verdict], path: Path) -> None:
    """Draw the CSI-M comparisons of the paper's claims, with the paper's values."""
    _forest(_rows([v for v in verdicts if v.claim.origin == "paper"]), "difference of CSI-M", path, paper=True)


def draw_long_controls(verdicts: Sequence[Verdict], path: Path) -> None:
    """Draw the CSI-M comparisons of the controls with more training steps."""
    _forest(_rows([v for v in verdicts if v.claim.key in LONG_TRAINING]), "difference of CSI-M", path)


def draw_other_controls(verdicts: Sequence[Verdict], path: Path) -> None:
    """Draw the CSI-M comparisons of the other controls, without those with persistence."""
    others = [v for v in verdicts if v.claim.origin == "control" and v.claim.key not in LONG_TRAINING]
    _forest(_rows(others), "difference of CSI-M", path)


def draw_hybrid(verdicts: Sequence[Verdict], path: Path) -> None:
    """Draw the CSI-M comparisons of hybrid networks."""
    _forest(_rows([v for v in verdicts if v.claim.origin == "hybrid"]), "difference of CSI-M", path)


def draw_few_data_claims(verdicts: Sequence[Verdict], path: Path) -> None:
    """Draw the CSI-M comparisons of the arms with few events."""
    _forest(_rows([v for v in verdicts if v.claim.origin == "few data"]), "difference of CSI-M", path)


def _rows(verdicts: Sequence[Verdict]) -> list[tuple[str, Finding]]:
    return [
        (finding.comparison.label.removeprefix("CSI-M, "), finding)
        for verdict in verdicts
        for finding in verdict.findings
        if finding.comparison.score == _CSI and PERSISTENCE not in {arm for arm, _ in finding.comparison.terms}
    ]


def as_mathtext(label: str) -> str:
    """Return a label whose Markdown code spans, for example ```T_s = 3```, are mathematics of matplotlib."""
    return re.sub(r"`(.+?)`", r"$\1$", label)


def in_two_lines(label: str) -> str:
    """Return a long label with a line break before ``, minus`` or ``minus``; the axes keep most of the width."""
    if len(label) <= MOST_CHARACTERS:
        return label
    return label.replace(", minus ", ",\nminus ", 1) if ", minus " in label else label.replace(" minus ", "\nminus ", 1)


def _forest(rows: Sequence[tuple[str, Finding]], quantity: str, path: Path, *, paper: bool = False) -> None:
    rows = [(label, finding) for label, finding in rows if finding.interval.has_bounds]
    labels = [in_two_lines(as_mathtext(label)) for label, _ in rows]
    figure = new_figure(WIDTH, 1.25 + 0.27 * len(rows) + 0.12 * sum("\n" in label for label in labels))
    axes = figure.subplots()
    for row, (_, finding) in enumerate(rows):
        interval, verdict = finding.interval, finding.verdict
        colour = _COLOURS[verdict]
        axes.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt")
        inside = colour if finding.testable else "white"
        axes.plot(interval.value, row, _MARKERS[verdict], color=colour, markerfacecolor=inside, markersize=6.5)
        if paper and finding.comparison.paper is not None:
            axes.plot(finding.comparison.paper, row, "d", markerfacecolor="none", markeredgecolor=INK, markersize=7)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel(f"{quantity}, 95 % interval", color=INK, fontsize=FONT)
    for verdict in {finding.verdict: None for _, finding in rows}:
        axes.plot([], [], _MARKERS[verdict], color=_COLOURS[verdict], linestyle="-", label=_LABELS[verdict])
    if not all(finding.testable for _, finding in rows):
        axes.plot([], [], "o", markerfacecolor="white", markeredgecolor=INK, label=f"white: {NOT_TESTABLE}")
    if paper:
        axes.plot([], [], "d", markerfacecolor="none", markeredgecolor=INK, linestyle="none", label="paper, on SEVIR")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=FONT)
    plain_look(axes)
    save(figure, path)
