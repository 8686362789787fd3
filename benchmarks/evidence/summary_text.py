"""Summary of the evidence page: five sentences, and the comparisons of its first table and figure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.verification.bootstrap import Interval

from .arms import EXTRAPOLATION, arms_of
from .claims import FEWEST_SEEDS, HOLDS, NOT_TESTABLE, Finding, Verdict
from .figure_style import STEP_MINUTES
from .intervals import Bootstrap
from .study import Study

NOT_MEASURED = "not measured yet"
MOST_NAMED = 3
"""Largest number of networks that the first sentence names."""


class Headline(NamedTuple):
    """A comparison of the summary: the claim's key, the number of the comparison, and the claim in few words.

    ``{n}`` in the text is replaced by n times the study's number of steps.
    """

    key: str
    number: int
    text: str


HEADLINES = (
    Headline("hybrid", 0, "Hybrid model beats direct model, {1} steps each"),
    Headline("hybrid-4x", 0, "Hybrid model beats direct model, {4} steps each"),
    Headline("hybrid-skill-warm", 1, "Hybrid student, warm start, beats extrapolation"),
    Headline("skill", 3, "Direct model, {1} steps, beats extrapolation"),
    Headline("skill-long", 0, "Direct model, {16} steps, beats extrapolation"),
    Headline("skill-long", 1, "Rolled-out teacher, {16} steps, beats extrapolation"),
    Headline("autoregression", 0, "Rolled-out teacher beats direct model, {1} steps each"),
    Headline("longest", 0, "Rolled-out teacher beats direct model, {16} steps each"),
    Headline("oracle", 1, "Student of a perfect teacher beats direct model"),
    Headline("own-steps-4x", 0, "Student from scratch beats direct model, {4} steps each"),
    Headline("distillation", 0, "Student from scratch beats its rolled-out teacher"),
    Headline("warm-distillation", 0, "Student with warm start beats its rolled-out teacher"),
    Headline("warm", 1, "Student with warm start beats direct model, {2} total steps"),
    Headline("weighting", 0, "Weighted loss raises CSI-M"),
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
        return _value(self.interval(key, number))

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

    def alarms(self) -> str:
        """Return the changes of false alarms and of hits of heavy rain from the teacher to the warm start."""
        words = {1: "more", -1: "fewer", 0: "not significantly fewer"}
        false, hits = (words[self.side("warm-false-alarms", number)] for number in (0, 1))
        return f"{false} false alarms of heavy rain and {hits} hits"

    def difference(self, first: str, second: str) -> Interval | None:
        """Return the paired difference of CSI-M of two arms, if both were trained."""
        if not {first, second} <= set(self.bootstrap.evidence.by_arm):
            return None
        return self.bootstrap.one(((first, 1.0), (second, -1.0)), "csi/mean")

    def leads(self, first: str, second: str) -> list[Interval]:
        """Return the paired difference of CSI-M of two arms by lead time; empty if one was not trained."""
        if not {first, second} <= set(self.bootstrap.evidence.by_arm):
            return []
        return self.bootstrap.score(((first, 1.0), (second, -1.0)), "csi/mean", by_lead=True)

    def lead_times(self, first: str, second: str) -> dict[int, list[int]]:
        """Return the lead times in minutes by the side of the difference: 1, 0 or -1."""
        times: dict[int, list[int]] = {}
        for lead, interval in enumerate(self.leads(first, second), 1):
            times.setdefault(side_of(interval), []).append(STEP_MINUTES * lead)
        return times

    def mean(self, arm: str) -> float:
        """Return CSI-M of an arm with results."""
        return self.bootstrap.one(((arm, 1.0),), "csi/mean").value


def _value(interval: Interval | None) -> str:
    """Return a difference with its interval, and the number of seeds if they give no verdict."""
    if interval is None:
        return NOT_MEASURED
    few = interval.seeds < FEWEST_SEEDS
    return signed(interval) + (f", only {_counted(interval.seeds, 'seed')}" if few else "")


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


def listed(parts: Sequence[object]) -> str:
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
    """Say how many networks have a higher CSI-M than extrapolation, which these are, and their differences."""
    evidence = words.bootstrap.evidence
    if EXTRAPOLATION not in evidence.by_arm:
        return f"**Extrapolation** is {NOT_MEASURED}."
    plain = [arm for arm in arms_of(evidence.study) if arm.base == "none" and arm.events is None]
    trained = [arm for arm in plain if arm.name in evidence.by_arm]
    level = words.mean(EXTRAPOLATION)
    better = sorted((arm for arm in trained if words.mean(arm.name) > level), key=lambda arm: -words.mean(arm.name))
    most = 2 * len(better) < len(trained)
    title = "Extrapolation without training beats most networks." if most else "Extrapolation."
    known = [arm for arm in better if arm.stage != "student"]
    named = known if known == better and len(better) <= MOST_NAMED else []
    all_steps = listed(sorted({arm.steps for arm in named}))
    parts = []
    for arm in named:
        interval = words.difference(arm.name, EXTRAPOLATION)
        best = all(words.mean(arm.name) >= words.mean(other) for other in evidence.by_arm)
        name = "the rolled-out teacher" if arm.stage == "teacher" else "the direct model"
        highest = "; the highest CSI-M of all arms" if best else ""
        parts.append(f"{name} {_significance(interval)} ({_value(interval)}{highest})")
    which = f", after {all_steps} steps: {', '.join(parts)}" if parts else ""
    return (
        f"**{title}** Of the {len(trained)} networks that do not start from extrapolation, {len(better) or 'none'} "
        f"{'has' if len(better) < 2 else 'have'} a higher CSI-M than extrapolation ({level:.3f}){which}."
    )


def _significance(interval: Interval | None) -> str:
    if interval is None or interval.seeds < FEWEST_SEEDS:
        return "with unknown significance"
    return "significantly" if side_of(interval) else "not significantly"


def _of_hybrids(words: _Words) -> str:
    """Compare the hybrid direct model with the direct model, and the hybrid student with extrapolation."""
    steps = words.bootstrap.evidence.study.steps
    sides = words.side("hybrid"), words.side("hybrid-4x")
    title = "Networks that correct extrapolation beat networks alone at equal steps." if sides == (1, 1) else "Hybrid."
    teacher = words.interval("hybrid-warm-4x")
    not_by_distillation = (
        f" It does not differ significantly from its teacher ({signed(teacher)}), so this gain cannot be attributed to "
        "distillation."
        if teacher and teacher.seeds >= FEWEST_SEEDS and side_of(teacher) == 0 and words.side("hybrid-skill-warm", 1)
        else ""
    )
    return (
        f"**{title}** The hybrid direct model {words.compared('hybrid')} the direct model after {steps} steps each "
        f"({words.value('hybrid')}; after {4 * steps} steps each {words.value('hybrid-4x')}). A hybrid student with "
        f"warm start ({4 * steps} steps after {4 * steps} of its teacher) "
        f"{words.compared('hybrid-skill-warm', 1)} extrapolation ({words.value('hybrid-skill-warm', 1)})"
        f"{_by_lead(words, 'hybrid-student-4x-warm', EXTRAPOLATION)}.{not_by_distillation}"
    )


def _by_lead(words: _Words, first: str, second: str) -> str:
    """Return the lead times at which the CSI-M of an arm is significantly higher or lower than that of another."""
    times = words.lead_times(first, second)
    names = {1: "higher", -1: "lower"}
    parts = [f"{name} at {listed(times[side])} minutes" for side, name in names.items() if side in times]
    return f": {', '.join(parts)}" if parts else ""


def _of_warm_start(words: _Words) -> str:
    """Compare rollout with the direct model, and the student with warm start with both."""
    study = words.bootstrap.evidence.study
    steps = study.steps
    verb, other = words.compared("warm-distillation"), words.compared("warm", 1)
    sides = words.side("autoregression"), words.side("warm-distillation")
    titles = {
        (1, 0): f"Rollout helps after {steps} steps; a student with warm start does not differ significantly from its "
        "teacher.",
        (1, 1): f"Rollout helps after {steps} steps, and distillation with warm start helps more.",
    }
    excluded = ""
    if (kept := words.interval("warm-distillation")) is not None and kept.has_bounds and kept.low < 0 < kept.high:
        excluded = f"; a loss of more than {-kept.low:.4f} is excluded"
    longer = [words.interval(key) for key in ("longest", "hybrid-rollout-4x")]
    positive = all(one is not None and one.value > 0 and side_of(one) == 0 for one in longer)
    known = f"{words.value('longest')} and {words.value('hybrid-rollout-4x')}"
    return (
        f"**{titles.get(sides, 'Rollout and warm start.')}** A rolled-out teacher "
        f"{words.compared('autoregression')} a direct model, {steps} steps each ({words.value('autoregression')}; "
        f"hybrid: {words.value('hybrid-rollout')}); after {16 * steps} steps, and for hybrid networks after "
        f"{4 * steps}, the difference is {'positive but not significant' if positive else known}. A student with warm "
        f"start, in one pass, {verb} this teacher ({words.value('warm-distillation')}{excluded})"
        f"{_by_lead(words, 'student-warm', f'teacher-{study.half_horizon}')}. It has {words.alarms()} than the "
        f"teacher, and {other} a direct model with as many total steps."
    )


def _of_students(words: _Words, verdicts: Sequence[Verdict]) -> str:
    """Compare a student from scratch, and that of a perfect teacher, with the direct model."""
    study = words.bootstrap.evidence.study
    found = words.found.get(("oracle", 1))
    untestable = sum(verdict.verdict == NOT_TESTABLE for verdict in verdicts)
    times = words.lead_times(f"student-{study.half_horizon}", "direct")
    later = words.leads(f"student-{study.half_horizon}", "direct")
    gains = [interval.value for interval in later if side_of(interval) == 1]
    no_gain = words.seeds("own-steps") >= FEWEST_SEEDS and words.side("own-steps") == 0
    title = "Student from scratch."
    if no_gain:
        title = "Distillation from scratch shows no gain over all lead times"
        title += f", but one at {listed(times[1])} minutes." if gains else "."
    by_lead = ""
    if gains:
        by_lead = f"; at {listed(times[1])} minutes it has a higher CSI-M ({min(gains):+.3f} to {max(gains):+.3f})"
    none = "no significant gain" if found is None or found.verdict != HOLDS else "a significant gain"
    anywhere = 1 in words.lead_times("future-oracle", "future-direct")
    at_leads = "" if found is None or found.verdict == HOLDS or anywhere else ", also at no single lead time"
    reason = (
        f": a gain through better pseudo-frames is not expected, and {_counted(untestable, 'claim')} on distillation "
        f"from scratch {'is' if untestable == 1 else 'are'} [not testable here](#claims-and-controls)"
    )
    return (
        f"**{title}** A student from scratch {words.compared('own-steps')} a direct model, {study.steps} steps each "
        f"({words.value('own-steps')}){by_lead}. A perfect teacher gives {none} ({words.value('oracle', 1)}){at_leads}"
        + (reason if untestable else "")
        + "."
    )


def _of_few_events(words: _Words) -> str:
    """Compare the students with the direct model by the number of training events."""
    study = words.bootstrap.evidence.study
    total = "(after as many steps of its teacher)"
    names = {("few-warm", 1): f"A student with warm start {total}", ("few-student", 0): "A student from scratch"}
    sentences = []
    for (kind, number), name in names.items():
        measured = [n for n in study.few_events if words.seeds(f"{kind}-{n}", number) >= FEWEST_SEEDS]
        groups: dict[str, list[int]] = {}
        for events in measured:
            groups.setdefault(words.compared(f"{kind}-{events}", number), []).append(events)
        parts = [
            f"{verb} the direct model"
            + (f" with {listed(counts)} events" if counts != list(study.few_events) else "")
            + (_of_smallest(counts, words.plain(f"{kind}-{counts[0]}", number)) if counts[0] == measured[0] else "")
            for verb, counts in groups.items()
        ]
        if parts:
            sentences.append(f"{name} {', and '.join(parts)}.")
    only_warm = [
        n for n in study.few_events if words.side(f"few-warm-{n}", 1) == 1 and words.side(f"few-student-{n}") == 0
    ]
    title = (
        f"With {listed(only_warm)} training events only warm start shows a gain in CSI-M."
        if only_warm
        else "Few training events."
    )
    if lower := [n for n in study.few_events if words.side(f"few-error-{n}") == -1]:
        sentences.append(f"Its MSE is lower with {listed(lower)} events.")
    own = [finding for (key, _), finding in words.found.items() if key.startswith("few-")]
    if sentences:
        seeds = sorted({finding.interval.seeds for finding in own})
        sentences.append(
            f"There are {len(own)} comparisons with {listed(seeds)} seeds, without correction for multiple tests."
        )
    return f"**{title}** {' '.join(sentences) or f'No comparison has {FEWEST_SEEDS} seeds yet.'}"


def _of_smallest(counts: Sequence[int], value: str) -> str:
    """Return the difference at the smallest number of events, with the number if there are several."""
    return f" ({counts[0]} events: {value})" if len(counts) > 1 else f" ({value})"
