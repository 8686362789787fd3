"""The claims of the paper as comparisons of arms, and a verdict on each that follows from its interval."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from simcast_hpc.verification.bootstrap import Interval

from .arms import arms_of
from .intervals import Bootstrap
from .study import FULL_WEIGHT, Study

FEWEST_SEEDS = 3
"""With fewer seeds no verdict is given."""

STATED_LATER = ("short-horizon", "robustness", "saw-tooth", "long", "long-distillation", "best-case", "longer-teacher",
                "warm-distillation", "first-lead", "own-steps", "longest", "warm-long")  # fmt: skip
"""Claims that were formulated, or changed, after the first results of ``study.yaml``."""

HOLDS, REVERSED, UNDECIDED = "supported", "contradicted", "undecided"
PARTLY, IN_FULL = "partly supported", "partly contradicted"


class Comparison(NamedTuple):
    """A weighted sum of one score over arms that is positive (``sign`` 1) or negative (-1) if the claim is true.

    ``paper`` is the value of the same difference in the paper's tables on SEVIR (no seeds), or None.
    """

    label: str
    terms: tuple[tuple[str, float], ...]
    score: str
    sign: int = 1
    paper: float | None = None


@dataclass(frozen=True)
class Claim:
    """A statement, and the comparisons that must all support it.

    ``origin`` is ``paper`` for statements of SimCast's tables and figures, ``control`` for further statements.
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
    """A claim, its findings and the overall verdict."""

    claim: Claim
    findings: tuple[Finding, ...]
    verdict: str


def verdict_of(interval: Interval, sign: int) -> str:
    """Return the verdict of an interval on the claim that the difference has this sign."""
    if not interval.has_bounds or interval.seeds < FEWEST_SEEDS:
        return UNDECIDED
    if min(sign * interval.low, sign * interval.high) > 0:
        return HOLDS
    if max(sign * interval.low, sign * interval.high) < 0:
        return REVERSED
    return UNDECIDED


def verdict_of_all(verdicts: list[str]) -> str:
    """Return the verdict of a claim: it is supported only if all comparisons support it."""
    if all(verdict == HOLDS for verdict in verdicts):
        return HOLDS
    if any(verdict == REVERSED for verdict in verdicts):
        return REVERSED if all(verdict == REVERSED for verdict in verdicts) else IN_FULL
    return UNDECIDED if all(verdict == UNDECIDED for verdict in verdicts) else PARTLY


def decide(claims: tuple[Claim, ...], bootstrap: Bootstrap) -> list[Verdict]:
    """Return the verdicts of the claims whose arms have all been trained with a common seed."""
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
    """Return the verdict of a comparison in words, with the reason if there is none."""
    interval = finding.interval
    if interval.seeds < FEWEST_SEEDS:
        return f"no verdict: {interval.seeds} seed(s)"
    if not interval.has_bounds:
        return "no verdict: the score is undefined for some seeds or events"
    return "not significant" if finding.verdict == UNDECIDED else finding.verdict


def paper_value(finding: Finding) -> str:
    """Return the paper's value of a comparison, and whether the interval contains it; empty if there is none."""
    paper, interval = finding.comparison.paper, finding.interval
    if paper is None:
        return ""
    if not interval.has_bounds:
        return f"{paper:+.4f}"
    return f"{paper:+.4f}, {'inside' if interval.low <= paper <= interval.high else 'outside'}"


def difference(
    label: str, first: str, second: str, score: str, sign: int = 1, paper: float | None = None
) -> Comparison:
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
        "The weighted loss raises CSI, most at the highest thresholds.",
        (
            difference("CSI-M, `w = 10` minus `w = 1`", "direct", "direct-w1", "csi/mean", paper=0.4354 - 0.4166),
            difference("CSI-181, `w = 10` minus `w = 1`", "direct", "direct-w1", "csi/181"),
            difference("CSI-219, `w = 10` minus `w = 1`", "direct", "direct-w1", "csi/219"),
        ),
    )
    yield from _weight_ladder(study)
    yield Claim(
        "price",
        "SimCast increases the CRPS (for a single forecast the MAE), mainly because of the weighted loss.",
        (
            difference("MAE, `w = 10` minus `w = 1`", "direct", "direct-w1", "mae"),
            difference("MAE, student minus direct with `w = 1`", student, "direct-w1", "mae", paper=0.0270 - 0.0259),
        ),
    )
    yield Claim(
        "autoregression",
        f"A teacher of half the horizon, rolled out, beats the {full} model.",
        (difference("CSI-M, rolled-out teacher minus direct", teacher, "direct", "csi/mean", paper=0.4517 - 0.4354),),
    )
    paper = {2: (0.4517 - 0.4472, 0.4517 - 0.4184)}.get(len(shorter), (None,) * len(shorter))
    yield Claim(
        "horizon",
        "A teacher with a shorter horizon has a worse rollout.",
        tuple(
            difference(
                f"CSI-M, `T_s = {half}` minus `T_s = {horizon}`",
                teacher,
                f"teacher-{horizon}",
                "csi/mean",
                paper=value,
            )
            for horizon, value in zip(shorter, paper, strict=True)
        ),
    )
    yield Claim(
        "distillation",
        "Distillation preserves or raises the CSI of the rolled-out teacher in one pass.",
        (difference("CSI-M, student minus rolled-out teacher", student, teacher, "csi/mean", paper=0.4521 - 0.4517),),
    )
    gains = {2: (0.4516 - 0.4472, 0.4338 - 0.4184)}.get(len(shorter), (None,) * len(shorter))
    gain = 0.4521 - 0.4517
    yield Claim(
        "short-horizon",
        "Distillation raises the CSI of teachers with a shorter horizon.",
        tuple(
            difference(f"CSI-M, student minus teacher at `T_s = {horizon}`", f"student-{horizon}", f"teacher-{horizon}",
                 "csi/mean", paper=value)
            for horizon, value in zip(shorter, gains, strict=True)
        ),
    )  # fmt: skip
    yield Claim(
        "robustness",
        "The gain of distillation is larger for a shorter horizon of the teacher.",
        tuple(
            Comparison(
                f"CSI-M, student minus teacher at `T_s = {horizon}`, minus the same at `T_s = {half}`",
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
            difference(
                f"{score.upper()}-{threshold}, student minus teacher", student, teacher, f"{score}/{threshold}", -1
            )
            for threshold in (181, 219)
            for score in ("far", "pod")
        ),
    )
    yield Claim(
        "saw-tooth",
        "The rolled-out teacher's frequency bias jumps at the start of its second call; the student's jumps less.",
        (
            Comparison(
                f"bias-181 of the teacher, lead time {half + 1} minus {half}", ((teacher, 1.0),), f"jump/181/{half}"
            ),
            difference("jump of bias-181, student minus teacher", student, teacher, f"jump/181/{half}", -1),
        ),
    )
    yield Claim(
        "simcast",
        "SimCast's student beats the direct model at equal student steps.",
        (difference("CSI-M, student minus direct", student, "direct", "csi/mean", paper=0.4521 - 0.4354),),
    )


def _weight_ladder(study: Study) -> Iterator[Claim]:
    weights = sorted(study.weights)
    names = ["direct" if weight == FULL_WEIGHT else f"direct-w{weight:g}" for weight in weights]
    paper = {(1.0, 3.0): 0.4273 - 0.4166, (3.0, 10.0): 0.4354 - 0.4273}
    steps = list(zip(weights, weights[1:], names, names[1:], strict=False))
    yield Claim(
        "monotone",
        "Each larger `w` gives a higher CSI-M (the largest `w` in the paper is 10).",
        tuple(
            difference(
                f"CSI-M, `w = {high:g}` minus `w = {low:g}`", upper, lower, "csi/mean", paper=paper.get((low, high))
            )
            for low, high, lower, upper in steps
        ),
    )
    yield Claim(
        "trade",
        "A larger `w` increases POD, FAR and frequency bias.",
        tuple(
            difference(
                f"{label}-181, `w = {weights[-1]:g}` minus `w = {weights[0]:g}`", names[-1], names[0], f"{score}/181"
            )
            for label, score in (("POD", "pod"), ("FAR", "far"), ("bias", "frequency_bias"))
        ),
    )


def _controls(study: Study) -> Iterator[Claim]:
    half = study.half_horizon
    teacher, student = f"teacher-{half}", f"student-{half}"

    def control(key: str, statement: str, *comparisons: Comparison) -> Claim:
        return Claim(key, statement, comparisons, origin="control")

    def csi(label: str, first: str, second: str) -> Comparison:
        return difference(f"CSI-M, {label}", first, second, "csi/mean")

    yield control(
        "compute",
        "The student beats a direct model with as many training steps as teacher and student together.",
        csi("student minus direct with 2x steps", student, "direct-2x"),
    )
    yield control(
        "converged",
        "With a teacher trained four times as long, the student beats the direct model trained as long as the student, "
        "and the one trained as long as teacher and student together.",
        csi("student of the 4x teacher minus direct", "student-of-4x", "direct"),
        csi("student of the 4x teacher minus direct with 5x steps", "student-of-4x", "direct-5x"),
    )
    yield control(
        "long",
        "With four times the steps for both, rollout and student still beat a direct model with five times the steps.",
        csi("rolled-out 4x teacher minus direct with 5x steps", "teacher-4x", "direct-5x"),
        csi("4x student minus direct with 5x steps", "student-4x", "direct-5x"),
    )
    yield control(
        "long-distillation",
        "With four times the steps for both, the student preserves or raises the CSI of the rolled-out teacher.",
        csi("4x student minus rolled-out 4x teacher", "student-4x", "teacher-4x"),
    )
    yield control(
        "teacher-steps",
        "A teacher trained four times as long gives a better student.",
        csi("student of the 4x teacher minus student", "student-of-4x", student),
    )
    yield control(
        "own-steps",
        "A student differs from a direct model with the student's own number of steps.",
        csi("4x student of the 4x teacher minus direct with 4x steps", "student-4x", "direct-4x"),
        csi("4x student of the 16x teacher minus direct with 4x steps", "student-4x-of-16x", "direct-4x"),
    )
    yield control(
        "longest",
        "With 16 times the steps for both, the rolled-out teacher still beats the direct model.",
        csi("rolled-out 16x teacher minus direct with 16x steps", "teacher-16x", "direct-16x"),
    )
    yield control(
        "warm-long",
        "With four times the steps for both, a student initialized with the teacher's weights preserves or raises the "
        "teacher's CSI, and beats one trained from scratch.",
        csi("4x warm start minus rolled-out 4x teacher", "student-4x-warm", "teacher-4x"),
        csi("4x warm start minus 4x student from scratch", "student-4x-warm", "student-4x"),
    )
    yield control(
        "best-case",
        "A student (4x steps) of a teacher with 16x steps beats the direct model with 5x steps.",
        csi("4x student of the 16x teacher minus direct with 5x steps", "student-4x-of-16x", "direct-5x"),
    )
    yield control(
        "longer-teacher",
        "A teacher with 16x steps has a better rollout than one with 4x steps, and gives better students.",
        csi("16x teacher minus 4x teacher, both rolled out", "teacher-16x", "teacher-4x"),
        csi("student of the 16x teacher minus that of the 4x teacher", "student-of-16x", "student-of-4x"),
        csi("4x student of the 16x teacher minus that of the 4x teacher", "student-4x-of-16x", "student-4x"),
    )
    yield control(
        "crop",
        "The student beats a direct model trained on random crops of the events.",
        csi("student minus random crop", student, "crop"),
    )
    yield control(
        "crop-alone", "Random crops improve the direct model.", csi("random crop minus direct", "crop", "direct")
    )
    yield control(
        "oracle",
        "Real frames instead of pseudo-frames give a better student (all arms on sequences with later frames).",
        csi("oracle minus student", "future-oracle", "future-student"),
        csi("oracle minus direct", "future-oracle", "future-direct"),
    )
    yield control(
        "warm",
        "A student initialized with the teacher's weights beats one trained from scratch.",
        csi("warm start minus scratch", "student-warm", student),
        csi("warm start minus direct with 2x steps", "student-warm", "direct-2x"),
    )
    yield control(
        "warm-distillation",
        "A student initialized with the teacher's weights preserves or raises the teacher's CSI, with a lower FAR.",
        csi("warm start minus rolled-out teacher", "student-warm", teacher),
        difference("FAR-181, warm start minus rolled-out teacher", "student-warm", teacher, "far/181", -1),
    )
    yield control(
        "unweighted",
        "Distillation also helps without the weighted loss.",
        csi("student minus direct, both `w = 1`", "student-w1", "direct-w1"),
        csi("student minus rolled-out teacher, both `w = 1`", "student-w1", "teacher-w1"),
    )
    yield control(
        "skill",
        "Every kind of model beats persistence.",
        *(csi(f"{arm} minus persistence", arm, "persistence") for arm in ("direct", teacher, student)),
    )
    yield control(
        "first-lead",
        "Every kind of model beats persistence at the first lead time.",
        *(
            difference(f"CSI-M at lead time 1, {arm} minus persistence", arm, "persistence", "lead/1/csi/mean")
            for arm in ("direct", teacher, student)
        ),
    )


def arms_in_claims(study: Study) -> set[str]:
    """Return the arms of all claims, and their teachers."""
    named = {arm for claim in claims_of(study) for comparison in claim.comparisons for arm, _ in comparison.terms}
    arms = [arm for arm in arms_of(study) if arm.name in named]
    return {arm.name for arm in arms} | {arm.teacher for arm in arms if arm.teacher is not None}
