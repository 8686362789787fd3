"""Summary of the evidence page: five sentences, and the comparisons of its first table and figure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.verification.bootstrap import Interval

from .arms import EXTRAPOLATION, arms_of
from .claims import FEWEST_SEEDS, HOLDS, NOT_TESTABLE, REVERSED, Finding, Verdict
from .figure_style import STEP_MINUTES
from .intervals import Bootstrap
from .study import Study

NOT_MEASURED = "not measured yet"


class Headline(NamedTuple):
    """A comparison of the summary: the claim's key, the number of the comparison, and the claim in few words.

    ``{n}`` in the text is replaced by n times the study's number of steps.
    """

    key: str
    number: int
    text: str


HEADLINES = (
    Headline("hybrid", 0, "Hybrid model beats direct model, {1} steps each"),
    Headline("hybrid-skill-warm", 0, "Hybrid student, warm start, beats pysteps"),
    Headline("hybrid-skill-warm", 1, "Hybrid student, warm start, beats extrapolation"),
    Headline("skill", 3, "Direct model, {1} steps, beats extrapolation"),
    Headline("skill-long", 0, "Direct model, {16} steps, beats extrapolation"),
    Headline("autoregression", 0, "Rolled-out teacher beats direct model, {1} steps each"),
    Headline("longest", 0, "Rolled-out teacher beats direct model, {16} steps each"),
    Headline("oracle", 1, "Student of a perfect teacher beats direct model"),
    Headline("own-steps-4x", 0, "Student from scratch beats direct model, {4} steps each"),
    Headline("distillation", 0, "Student from scratch beats its rolled-out teacher"),
    Headline("warm-distillation", 0, "Student with warm start beats its rolled-out teacher"),
    Headline("warm", 1, "Student with warm start beats direct model, {2} total steps"),
    Headline("weighting", 1, "Weighted loss raises CSI of heavy rain (CSI-181)"),
    Headline("few-oracle-12", 0, "12 events: student of a perfect teacher beats direct model"),
    Headline("few-student-12", 0, "12 events: student from scratch beats direct model"),
    Headline("few-warm-12", 1, "12 events: student with warm start beats direct model"),
)


def findings_by_key(verdicts: Sequence[Verdict]) -> dict[tuple[str, int], Finding]:
    """Return all findings by the key of their claim and their number within the claim."""
    return {
        (verdict.claim.key, number): finding for verdict in verdicts for number, finding in enumerate(verdict.findings)
    }


def headline_findings(verdicts: Sequence[Verdict], study: Study) -> list[tuple[str, Finding]]:
    """Return the measured comparisons of the summary, each with the claim in few words."""
    found = findings_by_key(verdicts)
    steps = [str(factor * study.steps) for factor in range(17)]
    return [
        (line.text.format(*steps), found[line.key, line.number])
        for line in HEADLINES
        if (line.key, line.number) in found
    ]


def signed(interval: Interval) -> str:
    """Return value and bounds of a difference, for example ``+0.0019 [-0.0049, +0.0087]``."""
    return f"{interval.value:+.4f} {bounds(interval)}".strip()


def bounds(interval: Interval) -> str:
    """Return the bounds of an interval in brackets; empty if there are none."""
    return f"[{interval.low:+.4f}, {interval.high:+.4f}]" if interval.has_bounds else ""


def side_of(interval: Interval) -> int:
    """Return 1 or -1 if the interval is above or below zero, else 0; also 0 with too few seeds for a verdict."""
    if not interval.has_bounds or interval.seeds < FEWEST_SEEDS:
        return 0
    return int(interval.low > 0) - int(interval.high < 0)


class _Words:
    """Numbers and verbs that follow from the findings and the scores."""

    def __init__(self, bootstrap: Bootstrap, found: Mapping[tuple[str, int], Finding]):
        self.bootstrap, self.found = bootstrap, found

    def interval(self, key: str, number: int = 0) -> Interval | None:
        """Return the interval of a comparison, if it was measured."""
        finding = self.found.get((key, number))
        return finding.interval if finding else None

    def value(self, key: str, number: int = 0) -> str:
        """Return a difference with its interval, and the number of seeds if they give no verdict."""
        interval = self.interval(key, number)
        if interval is None:
            return NOT_MEASURED
        few = interval.seeds < FEWEST_SEEDS
        return signed(interval) + (f", only {_counted(interval.seeds, 'seed')}" if few else "")

    def seeds(self, key: str, number: int = 0) -> int:
        """Return the number of seeds of a comparison, 0 without results."""
        interval = self.interval(key, number)
        return interval.seeds if interval else 0

    def plain(self, key: str, number: int = 0) -> str:
        """Return a difference with its interval."""
        interval = self.interval(key, number)
        return signed(interval) if interval else NOT_MEASURED

    def side(self, key: str, number: int = 0) -> int:
        """Return 1 or -1 for a significant difference, else 0."""
        interval = self.interval(key, number)
        return side_of(interval) if interval else 0

    def compared(self, key: str, number: int = 0) -> str:
        """Return the words between the two sides of a comparison of CSI-M."""
        return compared(self.interval(key, number))

    def level(self, key: str, number: int) -> str:
        """Return the direction of a difference."""
        words = {1: "a higher", -1: "a lower", 0: "no significantly lower"}
        return words[self.side(key, number)]

    def difference(self, first: str, second: str) -> Interval | None:
        """Return the paired difference of CSI-M of two arms, if both were trained."""
        if not {first, second} <= set(self.bootstrap.evidence.by_arm):
            return None
        return self.bootstrap.one(((first, 1.0), (second, -1.0)), "csi/mean")

    def mean(self, arm: str) -> float:
        """Return CSI-M of an arm with results."""
        return self.bootstrap.one(((arm, 1.0),), "csi/mean").value


def compared(interval: Interval | None) -> str:
    """Return the words between the two sides of a comparison of CSI-M."""
    if interval is None:
        return "has not been compared yet with"
    if interval.seeds < FEWEST_SEEDS:
        level = "higher" if interval.value > 0 else "lower"
        return f"has, in {_counted(interval.seeds, 'seed')} and thus with unknown significance, a {level} CSI-M than"
    words = {1: "has a higher CSI-M than", -1: "has a lower CSI-M than"}
    return words.get(side_of(interval), "does not differ significantly in CSI-M from")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _listed(parts: Sequence[object]) -> str:
    """Return ``a, b and c``."""
    words = [str(part) for part in parts]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def summary(evidence: Evidence, bootstrap: Bootstrap, verdicts: Sequence[Verdict]) -> list[str]:
    """Return five sentences: extrapolation, hybrid networks, warm start, students from scratch, few events.

    Numbers and verbs follow from the findings; a comparison without results reads "not measured yet".
    """
    words = _Words(bootstrap, findings_by_key(verdicts))
    return [
        _of_extrapolation(words),
        _of_hybrids(words),
        _of_warm_start(words),
        _of_students(words, verdicts),
        _of_few_events(words),
    ]


def _of_extrapolation(words: _Words) -> str:
    """Say how many networks extrapolation exceeds, and whether the direct model exceeds it after most steps."""
    evidence = words.bootstrap.evidence
    if EXTRAPOLATION not in evidence.by_arm:
        return f"**Extrapolation** is {NOT_MEASURED}."
    plain = [arm.name for arm in arms_of(evidence.study) if arm.base == "none" and arm.events is None]
    trained = [arm for arm in plain if arm in evidence.by_arm]
    level = words.mean(EXTRAPOLATION)
    lower = sum(words.mean(arm) < level for arm in trained)
    steps = evidence.study.steps
    title = "Extrapolation without training beats most networks." if 2 * lower > len(trained) else "Extrapolation."
    return (
        f"**{title}** Extrapolation has a higher CSI-M ({level:.3f}) than {lower} of the "
        f"{len(trained)} networks that do not start from it. After {steps} steps the direct model "
        f"{words.compared('skill', 3)} extrapolation; after {16 * steps} steps it "
        f"{words.compared('skill-long', 0)} extrapolation ({words.plain('skill-long', 0)})."
    )


def _of_hybrids(words: _Words) -> str:
    """Compare the hybrid direct model with the direct model, and the hybrid student with extrapolation."""
    steps = words.bootstrap.evidence.study.steps
    itself = words.difference("hybrid-direct", EXTRAPOLATION)
    joined = "but still" if itself is not None and side_of(itself) < 0 else "and"
    better = words.side("hybrid") == 1, words.side("hybrid-skill-warm", 1) == 1
    titles = {
        (
            True,
            True,
        ): "Networks that correct extrapolation beat networks alone, and with enough training extrapolation.",
        (True, False): "Networks that correct extrapolation beat networks alone.",
        (False, True): "Networks that correct extrapolation beat extrapolation.",
    }
    return (
        f"**{titles.get(better, 'Hybrid.')}** After {steps} steps the hybrid direct model "
        f"{words.compared('hybrid')} the direct model ({words.value('hybrid')}), {joined} {compared(itself)} "
        f"extrapolation. A hybrid student with warm start ({4 * steps} steps after {4 * steps} of its teacher) "
        f"{words.compared('hybrid-skill-warm', 1)} extrapolation "
        f"({words.value('hybrid-skill-warm', 1)}){_by_lead(words)}."
    )


def _by_lead(words: _Words) -> str:
    """Return the lead times at which the hybrid student is better or worse than extrapolation."""
    arms = ("hybrid-student-4x-warm", EXTRAPOLATION)
    if not set(arms) <= set(words.bootstrap.evidence.by_arm):
        return ""
    intervals = words.bootstrap.score(((arms[0], 1.0), (arms[1], -1.0)), "csi/mean", by_lead=True)
    times: dict[int, list[int]] = {}
    for lead, interval in enumerate(intervals, 1):
        times.setdefault(side_of(interval), []).append(STEP_MINUTES * lead)
    names = {1: "higher", 0: "not significantly different", -1: "lower"}
    return ": " + ", ".join(f"{names[side]} at {_listed(times[side])} minutes" for side in names if side in times)


def _of_warm_start(words: _Words) -> str:
    """Compare rollout with the direct model, and the student with warm start with both."""
    steps = words.bootstrap.evidence.study.steps
    verb, other = words.compared("warm-distillation"), words.compared("warm", 1)
    again = "or from" if verb.endswith("from") else "and"
    joined = again if verb == other else f"and {other}"
    sides = words.side("autoregression"), words.side("warm-distillation"), words.side("warm", 1)
    titles = {
        (1, 0, 0): "Rollout helps at equal steps; one pass after warm start or longer direct training is as good.",
        (1, 0, 1): "Rollout helps, and with warm start one pass is as good.",
        (1, 1, 1): "Rollout helps, and distillation with warm start helps more.",
    }
    return (
        f"**{titles.get(sides, 'Rollout and warm start.')}** A rolled-out teacher "
        f"{words.compared('autoregression')} a direct model, {steps} steps each ({words.value('autoregression')}). "
        f"A student with warm start, in one pass, {verb} this teacher ({words.value('warm-distillation')}) {joined} "
        "a direct model with the same total number of steps; it has "
        f"{words.level('warm-false-alarms', 0)} false alarm ratio of heavy rain than the teacher."
    )


def _of_students(words: _Words, verdicts: Sequence[Verdict]) -> str:
    """Compare a student from scratch, and that of a perfect teacher, with the direct model."""
    study = words.bootstrap.evidence.study
    found = words.found.get(("oracle", 1))
    control = found.comparison if found else None
    untestable = sum(v.verdict == NOT_TESTABLE and v.claim.oracle == control for v in verdicts)
    effects = {HOLDS: "has a higher CSI-M", REVERSED: "has a lower CSI-M"}
    effect = effects.get(found.verdict, "does not have a significantly higher CSI-M") if found else "is"
    reason = (
        f", so that {_counted(untestable, 'claim')} on distillation from scratch "
        f"{'is' if untestable == 1 else 'are'} [not testable here](#claims-and-controls)"
    )
    no_gain = found is not None and words.side("own-steps") == 0 and words.seeds("own-steps") >= FEWEST_SEEDS
    title = "Distillation from scratch shows no gain." if no_gain and untestable else "Student from scratch."
    return (
        f"**{title}** A student from scratch {words.compared('own-steps')} a direct model, "
        f"{study.steps} steps each ({words.value('own-steps')}). Even a student of a perfect teacher {effect} "
        f"({words.value('oracle', 1)})" + (reason if untestable else "") + "."
    )


def _of_few_events(words: _Words) -> str:
    """Compare the students with the direct model by the number of training events."""
    study = words.bootstrap.evidence.study
    total = "with its teacher's steps in addition to the same number of its own,"
    names = {("few-warm", 1): f"A student with warm start, {total}", ("few-student", 0): "A student from scratch"}
    sentences = []
    for (kind, number), name in names.items():
        measured = [n for n in study.few_events if words.seeds(f"{kind}-{n}", number) >= FEWEST_SEEDS]
        groups: dict[str, list[int]] = {}
        for events in measured:
            groups.setdefault(words.compared(f"{kind}-{events}", number), []).append(events)
        parts = [
            f"{verb} the direct model with {_listed(counts)} training events"
            + (_of_smallest(counts, words.plain(f"{kind}-{counts[0]}", number)) if counts[0] == measured[0] else "")
            for verb, counts in groups.items()
        ]
        if parts:
            sentences.append(f"{name} {', and '.join(parts)}.")
    only_warm = [
        n for n in study.few_events if words.side(f"few-warm-{n}", 1) == 1 and words.side(f"few-student-{n}") == 0
    ]
    title = (
        f"With {_listed(only_warm)} training events only warm start, with more steps in total, shows a gain."
        if only_warm
        else "Few training events."
    )
    return f"**{title}** {' '.join(sentences) or f'No comparison has {FEWEST_SEEDS} seeds yet.'}"


def _of_smallest(counts: Sequence[int], value: str) -> str:
    """Return the difference at the smallest number of events, with the number if there are several."""
    return f" ({counts[0]} events: {value})" if len(counts) > 1 else f" ({value})"
