"""Summary of the evidence page: five sentences, and the comparisons of its first table and figure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.evidence.study_text import loss_decrease
from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.verification.bootstrap import Interval

from .arms import EXTRAPOLATION, PERSISTENCE, arms_of
from .claims import FEWEST_SEEDS, HOLDS, NOT_TESTABLE, REVERSED, Finding, Verdict
from .intervals import Bootstrap

NOT_MEASURED = "not measured yet"


class Headline(NamedTuple):
    """A comparison of the summary: the claim's key, the number of the comparison, and the claim in few words."""

    key: str
    number: int
    text: str


HEADLINES = (
    Headline("hybrid", 0, "Starting from extrapolation helps, equal steps"),
    Headline("hybrid-skill-warm", 0, "Hybrid student, warm start, beats optical flow"),
    Headline("hybrid-skill-4x", 0, "Hybrid student from scratch beats optical flow"),
    Headline("skill", 3, "Direct model beats extrapolation"),
    Headline("skill-long", 0, "Direct model beats it after 16x steps"),
    Headline("autoregression", 0, "Rolled-out teacher beats direct, equal steps"),
    Headline("longest", 0, "Rolled-out teacher beats direct, both 16x steps"),
    Headline("oracle", 1, "Student of a perfect teacher beats direct"),
    Headline("own-steps-4x", 0, "Student beats direct, both 4x steps"),
    Headline("distillation", 0, "Student from scratch beats its rolled-out teacher"),
    Headline("warm-distillation", 0, "Warm-started student beats its rolled-out teacher"),
    Headline("warm", 1, "Warm start beats direct, equal total steps"),
    Headline("weighting", 1, "Weighted loss raises CSI of heavy rain"),
    Headline("few-oracle-12", 0, "12 events: student of a perfect teacher beats direct"),
    Headline("few-student-12", 0, "12 events: student beats direct"),
    Headline("few-warm-12", 0, "12 events: warm start beats its rolled-out teacher"),
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


class _Words:
    """Numbers and verbs that follow from the findings and the scores."""

    def __init__(self, bootstrap: Bootstrap, found: Mapping[tuple[str, int], Finding]):
        self.bootstrap, self.found = bootstrap, found

    def value(self, key: str, number: int = 0) -> str:
        """Return a difference with its interval."""
        return signed(self.found[key, number].interval) if (key, number) in self.found else NOT_MEASURED

    def side(self, key: str, number: int = 0) -> int:
        """Return 1 or -1 if the interval is above or below zero, else 0."""
        if (key, number) not in self.found:
            return 0
        interval = self.found[key, number].interval
        return int(interval.has_bounds and interval.low > 0) - int(interval.has_bounds and interval.high < 0)

    def compared(self, key: str, number: int = 0) -> str:
        """Return the words between the two sides of a comparison of CSI-M."""
        words = {1: "a higher CSI-M than", -1: "a lower CSI-M than", 0: "no significantly different CSI-M from"}
        return words[self.side(key, number)]

    def level(self, key: str, number: int) -> str:
        """Return the direction of a difference."""
        return {1: "a higher", -1: "a lower", 0: "a similar"}[self.side(key, number)]

    def score(self, arm: str) -> str:
        """Return CSI-M of an arm."""
        if arm not in self.bootstrap.evidence.by_arm:
            return NOT_MEASURED
        return f"{self.mean(arm):.3f}"

    def mean(self, arm: str) -> float:
        """Return CSI-M of an arm with results."""
        return self.bootstrap.one(((arm, 1.0),), "csi/mean").value


def summary(evidence: Evidence, bootstrap: Bootstrap, verdicts: Sequence[Verdict]) -> list[str]:
    """Return five sentences: extrapolation, what a student equals, convergence, what can be tested, warm start.

    Numbers and verbs follow from the findings; a comparison without results reads "not measured yet".
    """
    words = _Words(bootstrap, findings_by_key(verdicts))
    steps = evidence.study.steps
    return [
        _of_the_student(words, steps),
        _of_extrapolation(words, steps),
        f"**Convergence.** No network without extrapolation is converged: {loss_decrease(evidence, 'direct', '5x')}, "
        f"and {loss_decrease(evidence, 'direct', '16x')}; {_of_the_longest(words)}.",
        _of_the_oracle(evidence, words, verdicts),
        "**Warm start.** A student that begins with the weights of its teacher has "
        f"{words.compared('warm-distillation')} the rolled-out teacher ({words.value('warm-distillation')}) in one "
        f"pass, with {words.level('warm-false-alarms', 0)} false alarm ratio and {words.level('warm-false-alarms', 1)} "
        f"probability of detection of heavy rain (FAR-181 {words.value('warm-false-alarms', 0)}, POD-181 "
        f"{words.value('warm-false-alarms', 1)}), and "
        f"{words.compared('warm', 1)} a direct model with the same total number of steps ({words.value('warm', 1)}).",
    ]


def _of_the_longest(words: _Words) -> str:
    found = words.found.get(("longest", 0))
    if found is None or found.interval.seeds < FEWEST_SEEDS:
        seeds = found.interval.seeds if found else 0
        return (
            f"the rolled-out teacher minus the direct model, both 16x steps: {words.value('longest')} ({seeds} seeds)"
        )
    return f"at 16x steps the rolled-out teacher has {words.compared('longest')} the direct model " + (
        f"({words.value('longest')})"
    )


def _of_the_student(words: _Words, steps: int) -> str:
    keys = (("own-steps", 0), ("own-steps-4x", 0), ("own-steps-4x", 1))
    sides = {words.side(*key) for key in keys}
    equals = "is as good as a direct model trained for the same number of steps, whatever its teacher"
    if sides - {0}:
        equals = "differs from a direct model trained for the same number of steps"
    return (
        f"**Student.** A student trained from scratch {equals} (difference of CSI-M at {steps} steps "
        f"{words.value('own-steps')}, at {4 * steps} steps {words.value('own-steps-4x')}, of a teacher with "
        f"{16 * steps} steps {words.value('own-steps-4x', 1)})."
    )


def _of_extrapolation(words: _Words, steps: int) -> str:
    evidence = words.bootstrap.evidence
    plain = [arm.name for arm in arms_of(evidence.study) if arm.base == "none" and arm.events is None]
    trained = [arm for arm in plain if arm in evidence.by_arm]
    level = words.mean(EXTRAPOLATION) if EXTRAPOLATION in evidence.by_arm else 0.0
    lower = sum(words.mean(arm) < level for arm in trained)
    return (
        f"**Extrapolation.** Optical-flow extrapolation, without any training, has a CSI-M of "
        f"{words.score(EXTRAPOLATION)} (persistence {words.score(PERSISTENCE)}), more than {lower} of the "
        f"{len(trained)} networks without it (direct model: {words.score('direct')} after {steps}, "
        f"{words.score('direct-16x')} after {16 * steps} steps); a hybrid network, which corrects the extrapolation, "
        f"has {words.compared('hybrid')} the direct model at equal steps ({words.value('hybrid')}), and a hybrid "
        f"student has {words.score('hybrid-student-4x-warm')} ({4 * steps} steps, initialized with the weights of its "
        f"teacher; minus pysteps' optical flow: {words.value('hybrid-skill-warm')})."
    )


def _of_the_oracle(evidence: Evidence, words: _Words, verdicts: Sequence[Verdict]) -> str:
    events, few = evidence.study.archive.events["train"], min(evidence.study.few_events)
    untestable = sum(verdict.verdict == NOT_TESTABLE for verdict in verdicts)
    effects = {HOLDS: "helps", REVERSED: "harms"}
    found = words.found.get(("oracle", 1))
    effect = effects.get(found.verdict, "does not significantly help") if found else "has not been measured"
    student, oracle = f"few-student-{few}", f"few-oracle-{few}"
    with_few = (
        f"; with {few} events, where networks overfit, a student from scratch has {words.compared(student)} the direct "
        f"model ({words.value(student)}), and a student of a perfect teacher {words.compared(oracle)} it "
        f"({words.value(oracle)})"
    )
    return (
        f"**What can be tested.** With {events} training events even a perfect teacher {effect} "
        f"({words.value('oracle', 1)}), so that {untestable} claims on distillation from scratch are not testable here"
        + (with_few if (student, 0) in words.found else "")
        + "."
    )
