"""Scores that are computed only if a protocol requests them, by name (``ScoreProtocol.scores``).

A score whose sums are always counted can be requested for stored statistics too (``Statistics.under``). Other scores
need additional sums: these are part of the counting hash, and of no other hash, because they change no other number.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class OptionalScore:
    """A score or a group of scores.

    Attributes:
        title: name in tables.
        needs: name of the sums that it needs beyond the contingency tables and the errors; empty for none.
        is_table: whether it is a score of the contingency table, which frame and sample means sum per frame.
    """

    title: str
    needs: str = ""
    is_table: bool = False


OPTIONAL_SCORES: dict[str, OptionalScore] = {
    "ets": OptionalScore("ETS", is_table=True),
    "pofd": OptionalScore("POFD", is_table=True),
    "peirce": OptionalScore("Peirce skill score", is_table=True),
    "sedi": OptionalScore("SEDI", is_table=True),
    "f1": OptionalScore("F1", is_table=True),
    "mean_error": OptionalScore("Mean error", needs="moments"),
    "correlation": OptionalScore("Correlation", needs="moments"),
    "conditional_errors": OptionalScore("Conditional errors", needs="conditional"),
    "twcrps": OptionalScore("Threshold-weighted CRPS", needs="twcrps"),
    "crps_decomposition": OptionalScore("Decomposition of the CRPS", needs="crps_bins"),
    "fss_inside": OptionalScore("FSS of windows within the frame", needs="fss_inside"),
    "sal": OptionalScore("SAL", needs="sal"),
    "sal_thresholds": OptionalScore("SAL per threshold", needs="sal_thresholds"),
    "brier_fair": OptionalScore("Fair Brier score"),
    "brier_decomposition": OptionalScore("Decomposition of the Brier score"),
}
ALL = "all"


def requested_scores(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names without repetition, in the order of ``OPTIONAL_SCORES``; ``all`` requests every one.

    Raises:
        ValueError: a name is unknown; the message lists the valid names.
    """
    given = [names] if isinstance(names, str) else list(names)
    for name in given:
        if name not in OPTIONAL_SCORES and name != ALL:
            near = difflib.get_close_matches(str(name), OPTIONAL_SCORES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown score {name!r}; {hint}choose from {', '.join((*OPTIONAL_SCORES, ALL))}")
    return tuple(name for name in OPTIONAL_SCORES if ALL in given or name in given)


def additional_sums(names: Iterable[str], *, scores_frames: bool) -> tuple[str, ...]:
    """Return what must be counted for these scores in addition to the tables and errors; part of the counting hash.

    Args:
        names: names in ``OPTIONAL_SCORES``.
        scores_frames: whether table scores are summed over frames or windows.
    """
    needs = {OPTIONAL_SCORES[name].needs for name in names} - {""}
    frames = {name for name in names if scores_frames and OPTIONAL_SCORES[name].is_table}
    return tuple(sorted(needs | frames))
