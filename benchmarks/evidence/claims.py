"""Claims as comparisons of arms, and the verdicts that follow from the intervals of the comparisons."""

from dataclasses import dataclass
from typing import NamedTuple

from simcast_hpc.verification.bootstrap import Interval

from .intervals import Bootstrap

FEWEST_SEEDS = 3
"""With fewer seeds no verdict is given."""

HOLDS, REVERSED, UNDECIDED = "supported", "contradicted", "undecided"
PARTLY, IN_FULL, NOT_TESTABLE = "partly supported", "partly contradicted", "not testable here"


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

    ``origin`` is ``paper`` for statements of SimCast's tables and figures, ``control`` for further statements, and
    ``hybrid`` or ``few data`` for statements on those groups of arms. ``oracle`` is the control of a claim on a gain of
    distillation from scratch: a student of a perfect teacher minus the direct model, in the score of the claim. If it
    shows no significant gain, the claim is not testable with these data.
    """

    key: str
    statement: str
    comparisons: tuple[Comparison, ...]
    origin: str = "paper"
    oracle: Comparison | None = None


class Finding(NamedTuple):
    """A comparison, its interval, the verdict of the interval, and whether the claim is testable with these data."""

    comparison: Comparison
    interval: Interval
    verdict: str
    testable: bool = True


class Verdict(NamedTuple):
    """A claim, its findings, the overall verdict, and the verdict that follows from the intervals."""

    claim: Claim
    findings: tuple[Finding, ...]
    verdict: str
    by_intervals: str


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
    testable = _is_testable(claim, bootstrap)
    findings = []
    for comparison in claim.comparisons:
        interval = bootstrap.one(comparison.terms, comparison.score)
        findings.append(Finding(comparison, interval, verdict_of(interval, comparison.sign), testable))
    by_intervals = verdict_of_all([finding.verdict for finding in findings])
    return Verdict(claim, tuple(findings), by_intervals if testable else NOT_TESTABLE, by_intervals)


def _is_testable(claim: Claim, bootstrap: Bootstrap) -> bool:
    """Return False if a perfect teacher shows no significant gain; a control without results decides nothing."""
    oracle = claim.oracle
    if oracle is None or not bootstrap.evidence.seeds(*(arm for arm, _ in oracle.terms)):
        return True
    return verdict_of(bootstrap.one(oracle.terms, oracle.score), oracle.sign) == HOLDS


def in_words(finding: Finding) -> str:
    """Return the verdict of a comparison in words: that of the interval, and whether the claim is testable."""
    return _of_interval(finding) + ("" if finding.testable else f"; {NOT_TESTABLE}")


def _of_interval(finding: Finding) -> str:
    """Return the verdict of an interval in words, with the reason if there is none."""
    interval = finding.interval
    if interval.seeds < FEWEST_SEEDS:
        return f"no verdict: {interval.seeds} seed{'' if interval.seeds == 1 else 's'}"
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
    label: str, first: str, second: str, score: str, sign: int = 1, paper: float | None = None, *, scale: float = 1.0
) -> Comparison:
    """Return the comparison ``first`` minus ``second``, times ``scale``."""
    return Comparison(label, ((first, scale), (second, -scale)), score, sign, paper)
