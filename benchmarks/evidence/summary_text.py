"""Summary of the evidence page: five sentences, and the comparisons of its first figure and table."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.evidence.paper_claims import HOLDS, REVERSED, Finding, Verdict
from benchmarks.evidence.study_text import describe_seeds, loss_decrease
from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.verification.bootstrap import Interval

from .figure_style import STEP_MINUTES

NOT_MEASURED = "not measured yet"


class Headline(NamedTuple):
    """A comparison of the summary: the claim's key, the number of the comparison, and the claim in few words."""

    key: str
    number: int
    text: str


HEADLINES = (
    Headline("weighting", 0, "The weighted loss raises CSI-M"),
    Headline("weighting", 1, "The weighted loss raises CSI for heavy rain"),
    Headline("autoregression", 0, "Rollout beats the direct model after equal steps"),
    Headline("horizon", 0, "A shorter teacher horizon is worse"),
    Headline("distillation", 0, "The student keeps the CSI-M of its teacher"),
    Headline("warm-distillation", 0, "Initialized with the teacher, the student keeps its CSI-M"),
    Headline("simcast", 0, "The student beats direct if both train equally long"),
    Headline("compute", 0, "The student beats direct with teacher + student steps"),
    Headline("long", 0, "Rollout beats direct after longer training"),
    Headline("long", 1, "The student beats direct after longer training"),
    Headline("oracle", 1, "A student of a perfect teacher beats direct"),
    Headline("skill", 0, "Direct beats persistence, all lead times"),
    Headline("first-lead", 0, f"Direct beats persistence at {STEP_MINUTES} min"),
)


def findings_by_key(verdicts: Sequence[Verdict]) -> dict[tuple[str, int], Finding]:
    """Return all findings by the key of their claim and their number within the claim."""
    return {
        (verdict.claim.key, number): finding for verdict in verdicts for number, finding in enumerate(verdict.findings)
    }


def headline_findings(verdicts: Sequence[Verdict]) -> list[tuple[Headline, Finding]]:
    """Return the measured comparisons of the summary."""
    found = findings_by_key(verdicts)
    return [(line, found[line.key, line.number]) for line in HEADLINES if (line.key, line.number) in found]


def signed(interval: Interval) -> str:
    """Return value and bounds of a difference, for example ``+0.0019 [-0.0049, +0.0087]``."""
    return f"{interval.value:+.4f} {bounds(interval)}".strip()


def bounds(interval: Interval) -> str:
    """Return the bounds of an interval in brackets; empty if there are none."""
    return f"[{interval.low:+.4f}, {interval.high:+.4f}]" if interval.has_bounds else ""


def summary(evidence: Evidence, verdicts: Sequence[Verdict]) -> list[str]:
    """Return five sentences: experiment, weighting and rollout, distillation, persistence, limits.

    Numbers and verbs follow from the findings; a comparison without results reads "not measured yet".
    """
    study, found = evidence.study, findings_by_key(verdicts)
    claims = sum(verdict.claim.origin == "paper" for verdict in verdicts)
    minutes = STEP_MINUTES * study.sequence.frames_out

    def value(key: str, number: int = 0) -> str:
        return signed(found[key, number].interval) if (key, number) in found else NOT_MEASURED

    def verb(key: str, number: int, yes: str, no: str, neither: str) -> str:
        verdict = found[key, number].verdict if (key, number) in found else ""
        return {HOLDS: yes, REVERSED: no}.get(verdict, neither)

    def compared(key: str, number: int = 0) -> str:
        words = ("a higher CSI-M than", "a lower CSI-M than", "a CSI-M not significantly different from")
        return verb(key, number, *words)

    helps = {found[key].verdict if key in found else "" for key in (("distillation", 0), ("compute", 0))}
    distillation = "Distillation gives a mixed result"
    if helps == {HOLDS}:
        distillation = "Distillation helps here"
    if helps == {REVERSED}:
        distillation = "Distillation does not help here"
    persistence = verb(
        "first-lead", 0, "the direct model is better than persistence", "persistence is better than the direct model",
        "the direct model and persistence do not differ significantly",
    )  # fmt: skip
    return [
        f"We test {claims} claims of SimCast (arXiv 2510.07953) and {len(verdicts) - claims} controls with small SimVP "
        f"networks on synthetic storms ({study.sequence.frames_in} input frames, a forecast of {minutes} minutes, "
        f"{study.archive.size} x {study.archive.size} pixels, {describe_seeds(evidence)}).",
        f"The weighted loss {verb('weighting', 1, 'raises', 'lowers', 'does not significantly change')} the CSI of "
        f"heavy rain (pixel value 181: {value('weighting', 1)}), and the rolled-out teacher, which "
        f"forecasts half of the horizon per call, has {compared('autoregression')} the direct model at equal steps "
        f"({value('autoregression')}).",
        f"{distillation}: the student has "
        f"{compared('distillation')} its rolled-out teacher ({value('distillation')}) and {compared('compute')} a "
        f"direct model with as many training steps as teacher and student together ({value('compute')}).",
        f"At a lead time of {STEP_MINUTES} minutes {persistence} (CSI-M, direct minus persistence: "
        f"{value('first-lead')}); over all lead times the direct model has {compared('skill')} persistence "
        f"({value('skill')}).",
        f"The results are valid for this experiment and not for SEVIR: these networks are far from convergence "
        f"({loss_decrease(evidence, 'direct', 'direct-5x')}), and a student trained on sequences that "
        f"are extended by real frames (a perfect teacher) has {compared('oracle', 1)} the direct model "
        f"({value('oracle', 1)}).",
    ]
