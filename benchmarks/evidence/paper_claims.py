"""The paper's claims as comparisons of arms, and a verdict on each that follows from its interval alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from simcast_hpc.verification.bootstrap import Interval

from .intervals import Bootstrap
from .study import FULL_WEIGHT, Study, arms_of

FEWEST_SEEDS = 3
"""With fewer seeds no verdict is given, whatever the interval."""

STATED_LATER = ("short-horizon", "robustness", "saw-tooth", "long", "long-distillation", "best-case", "longer-teacher")
"""Claims that were put, or put in this form, after the first results of ``study.yaml`` had been seen."""

HOLDS, REVERSED, UNDECIDED = "holds here", "does not hold here: the reverse does", "undecided"
PARTLY, IN_FULL = "holds in part, the rest undecided", "does not hold here in full"


class Comparison(NamedTuple):
    """A weighted sum of one score over arms that the claim says is positive (``sign`` 1) or negative (-1).

    ``paper`` is the paper's value of the same difference on SEVIR (method of its tables, no seeds), where it has one.
    """

    label: str
    terms: tuple[tuple[str, float], ...]
    score: str
    sign: int = 1
    paper: float | None = None


@dataclass(frozen=True)
class Claim:
    """What somebody says, and the comparisons that all have to show it.

    ``origin`` is ``paper`` for what SimCast's tables and figures state, ``control`` for what they leave open.
    """

    key: str
    statement: str
    comparisons: tuple[Comparison, ...]
    origin: str = "paper"


class Finding(NamedTuple):
    """A comparison, its interval and its verdict."""

    comparison: Comparison
    interval: Interval
    verdict: str


class Verdict(NamedTuple):
    """A claim, its findings and what they amount to."""

    claim: Claim
    findings: tuple[Finding, ...]
    verdict: str


def verdict_of(interval: Interval, sign: int) -> str:
    """Return what an interval says of a claim that the difference has this sign."""
    if not interval.has_bounds or interval.seeds < FEWEST_SEEDS:
        return UNDECIDED
    if min(sign * interval.low, sign * interval.high) > 0:
        return HOLDS
    if max(sign * interval.low, sign * interval.high) < 0:
        return REVERSED
    return UNDECIDED


def verdict_of_all(verdicts: list[str]) -> str:
    """Return what the verdicts of a claim's comparisons amount to: it holds only where all do."""
    if all(verdict == HOLDS for verdict in verdicts):
        return HOLDS
    if any(verdict == REVERSED for verdict in verdicts):
        return REVERSED if all(verdict == REVERSED for verdict in verdicts) else IN_FULL
    return UNDECIDED if all(verdict == UNDECIDED for verdict in verdicts) else PARTLY


def decide(claims: tuple[Claim, ...], bootstrap: Bootstrap) -> list[Verdict]:
    """Return the verdicts of those claims whose arms have all been trained with a seed."""
    return [_decide(claim, bootstrap) for claim in claims if _trained(claim, bootstrap)]


def _trained(claim: Claim, bootstrap: Bootstrap) -> bool:
    arms = [arm for comparison in claim.comparisons for arm, _ in comparison.terms]
    return bool(bootstrap.evidence.seeds(*arms))


def _decide(claim: Claim, bootstrap: Bootstrap) -> Verdict:
    findings = []
    for comparison in claim.comparisons:
        interval = bootstrap.one(comparison.terms, comparison.score)
        findings.append(Finding(comparison, interval, verdict_of(interval, comparison.sign)))
    return Verdict(claim, tuple(findings), verdict_of_all([finding.verdict for finding in findings]))


def in_words(finding: Finding) -> str:
    """Return what a comparison shows, in numbers: how it stands to zero and to the paper's value."""
    comparison, interval = finding.comparison, finding.interval
    if interval.seeds < FEWEST_SEEDS:
        return f"{interval.seeds} seed(s): too few for a verdict"
    if not interval.has_bounds:
        return "no interval: the score is undefined for some seeds or events"
    parts = []
    if finding.verdict == UNDECIDED:
        parts.append(f"a difference under {interval.half_width:.4f} cannot be told from none here")
    if comparison.paper is not None:
        inside = interval.low <= comparison.paper <= interval.high
        parts.append("the paper's value lies inside" if inside else "the paper's value lies outside")
    return "; ".join(parts) or "the interval excludes zero"


def less(label: str, first: str, second: str, score: str, sign: int = 1, paper: float | None = None) -> Comparison:
    """Return the comparison ``first`` minus ``second``."""
    return Comparison(label, ((first, 1.0), (second, -1.0)), score, sign, paper)


def claims_of(study: Study) -> tuple[Claim, ...]:
    """Return all claims, the paper's first."""
    return (*_of_the_paper(study), *_controls(study))


def _of_the_paper(study: Study) -> Iterator[Claim]:
    half, shorter = study.half_horizon, sorted(study.horizons, reverse=True)[1:]
    teacher, student = f"teacher-{half}", f"student-{half}"
    full = "12-frame" if study.sequence.frames_out == 12 else "full-horizon"
    yield Claim(
        "weighting",
        "The weighted loss raises CSI, at the heavy thresholds above all.",
        (
            less("CSI-M, w 10 less w 1", "direct", "direct-w1", "csi/mean", paper=0.4354 - 0.4166),
            less("CSI-181", "direct", "direct-w1", "csi/181"),
            less("CSI-219", "direct", "direct-w1", "csi/219"),
        ),
    )
    yield from _weight_ladder(study)
    yield Claim(
        "price",
        "SimCast costs CRPS (here MAE, which a single forecast's CRPS is), the weighted loss first of all.",
        (
            less("MAE, w 10 less w 1", "direct", "direct-w1", "mae"),
            less("MAE, student less direct of w 1", student, "direct-w1", "mae", paper=0.0270 - 0.0259),
        ),
    )
    yield Claim(
        "autoregression",
        f"A teacher of half the horizon, rolled out, beats the {full} model.",
        (less("CSI-M, rolled-out teacher less direct", teacher, "direct", "csi/mean", paper=0.4517 - 0.4354),),
    )
    paper = {2: (0.4517 - 0.4472, 0.4517 - 0.4184)}.get(len(shorter), (None,) * len(shorter))
    yield Claim(
        "horizon",
        "The shorter the teacher's horizon, the worse its roll-out.",
        tuple(
            less(f"CSI-M, T's {half} less T's {horizon}", teacher, f"teacher-{horizon}", "csi/mean", paper=value)
            for horizon, value in zip(shorter, paper, strict=True)
        ),
    )
    yield Claim(
        "distillation",
        "Distillation keeps the rolled-out teacher's CSI in one pass, or raises it.",
        (less("CSI-M, student less rolled-out teacher", student, teacher, "csi/mean", paper=0.4521 - 0.4517),),
    )
    gains = {2: (0.4516 - 0.4472, 0.4338 - 0.4184)}.get(len(shorter), (None,) * len(shorter))
    gain = 0.4521 - 0.4517
    yield Claim(
        "short-horizon",
        "Distillation raises the CSI of teachers of a shorter horizon.",
        tuple(
            less(f"CSI-M, student less teacher at T's {horizon}", f"student-{horizon}", f"teacher-{horizon}",
                 "csi/mean", paper=value)
            for horizon, value in zip(shorter, gains, strict=True)
        ),
    )  # fmt: skip
    yield Claim(
        "robustness",
        "Distillation is worth the more, the shorter the teacher's horizon.",
        tuple(
            Comparison(
                f"CSI-M, student less teacher at T's {horizon}, less the same at T's {half}",
                ((f"student-{horizon}", 1.0), (f"teacher-{horizon}", -1.0), (student, -1.0), (teacher, 1.0)),
                "csi/mean",
                paper=None if value is None else value - gain,
            )
            for horizon, value in zip(shorter, gains, strict=True)
        ),
    )
    yield Claim(
        "false-alarms",
        "The student has a lower FAR than the rolled-out teacher, and a lower POD.",
        tuple(
            less(f"{score.upper()}-{threshold}, student less teacher", student, teacher, f"{score}/{threshold}", -1)
            for threshold in (181, 219)
            for score in ("far", "pod")
        ),
    )
    yield Claim(
        "saw-tooth",
        "The rolled-out teacher's forecast of heavy rain jumps where a call begins; the student's does not so.",
        (
            Comparison(
                f"bias-181 of the teacher, lead {half + 1} less lead {half}", ((teacher, 1.0),), f"jump/181/{half}"
            ),
            less("the same, student less teacher", student, teacher, f"jump/181/{half}", -1),
        ),
    )
    yield Claim(
        "simcast",
        "SimCast's student beats the direct model at equal student steps.",
        (less("CSI-M, student less direct", student, "direct", "csi/mean", paper=0.4521 - 0.4354),),
    )


def _weight_ladder(study: Study) -> Iterator[Claim]:
    weights = sorted(study.weights)
    names = ["direct" if weight == FULL_WEIGHT else f"direct-w{weight:g}" for weight in weights]
    paper = {(1.0, 3.0): 0.4273 - 0.4166, (3.0, 10.0): 0.4354 - 0.4273}
    steps = list(zip(weights, weights[1:], names, names[1:], strict=False))
    yield Claim(
        "monotone",
        "CSI-M rises with w_max all the way (the paper stops at 10).",
        tuple(
            less(f"CSI-M, w {high:g} less w {low:g}", upper, lower, "csi/mean", paper=paper.get((low, high)))
            for low, high, lower, upper in steps
        ),
    )
    yield Claim(
        "trade",
        "A larger w_max buys POD with FAR and over-forecast.",
        tuple(
            less(f"{label}-181, w {weights[-1]:g} less w {weights[0]:g}", names[-1], names[0], f"{score}/181")
            for label, score in (("POD", "pod"), ("FAR", "far"), ("bias", "frequency_bias"))
        ),
    )


def _controls(study: Study) -> Iterator[Claim]:
    half = study.half_horizon
    teacher, student = f"teacher-{half}", f"student-{half}"

    def control(key: str, statement: str, *comparisons: Comparison) -> Claim:
        return Claim(key, statement, comparisons, origin="control")

    def csi(label: str, first: str, second: str) -> Comparison:
        return less(f"CSI-M, {label}", first, second, "csi/mean")

    yield control(
        "compute",
        "The student beats a direct model that trains as many steps as teacher and student together.",
        csi("student less direct of 2x steps", student, "direct-2x"),
    )
    yield control(
        "converged",
        "From a teacher trained four times as long, the student beats the direct model, at its own steps and at the "
        "sum of both.",
        csi("student of the 4x teacher less direct", "student-of-4x", "direct"),
        csi("the same less direct of 5x steps", "student-of-4x", "direct-5x"),
    )
    yield control(
        "long",
        "With four times the steps for both, roll-out and student still beat a direct model (which has five times).",
        csi("4x teacher, rolled out, less direct of 5x steps", "teacher-4x", "direct-5x"),
        csi("4x student less direct of 5x steps", "student-4x", "direct-5x"),
    )
    yield control(
        "long-distillation",
        "With four times the steps for both, the student keeps the rolled-out teacher's CSI, or raises it.",
        csi("4x student less 4x teacher, rolled out", "student-4x", "teacher-4x"),
    )
    yield control(
        "teacher-steps",
        "A teacher trained four times as long makes a better student.",
        csi("student of the 4x teacher less student", "student-of-4x", student),
    )
    yield control(
        "best-case",
        "From a teacher of sixteen times the steps, a student of four times beats the direct model of five.",
        csi("4x student of the 16x teacher less direct of 5x steps", "student-4x-of-16x", "direct-5x"),
    )
    yield control(
        "longer-teacher",
        "Four times the steps have not exhausted the teacher: sixteen times roll out better, and make better students.",
        csi("16x teacher less 4x teacher, rolled out", "teacher-16x", "teacher-4x"),
        csi("student of the 16x teacher less that of the 4x teacher", "student-of-16x", "student-of-4x"),
        csi("4x student of the 16x teacher less that of the 4x teacher", "student-4x-of-16x", "student-4x"),
    )
    yield control(
        "crop",
        "The student beats random crops of the whole event without any distillation.",
        csi("student less random crop", student, "crop"),
    )
    yield control("crop-alone", "Random crops alone help the direct model.", csi("crop less direct", "crop", "direct"))
    yield control(
        "oracle",
        "Real frames in the pseudo-frames' place make a better student still (all arms on sequences that have them).",
        csi("oracle less student", "future-oracle", "future-student"),
        csi("oracle less direct", "future-oracle", "future-direct"),
    )
    yield control(
        "warm",
        "A student that begins from the teacher's weights beats one from scratch.",
        csi("warm less scratch", "student-warm", student),
        csi("warm less direct of 2x steps", "student-warm", "direct-2x"),
    )
    yield control(
        "unweighted",
        "Distillation helps without the weighted loss too.",
        csi("student less direct, both w 1", "student-w1", "direct-w1"),
        csi("student less teacher, both w 1", "student-w1", "teacher-w1"),
    )
    yield control(
        "skill",
        "Every kind of model beats persistence: the nets have learnt something.",
        *(csi(f"{arm} less persistence", arm, "persistence") for arm in ("direct", teacher, student)),
    )


def arms_in_claims(study: Study) -> set[str]:
    """Return the arms that some claim looks at, and their teachers; a test holds that none is trained for nothing."""
    named = {arm for claim in claims_of(study) for comparison in claim.comparisons for arm, _ in comparison.terms}
    found = [arm for arm in arms_of(study) if arm.name in named]
    return {arm.name for arm in found} | {arm.teacher for arm in found if arm.teacher is not None}
