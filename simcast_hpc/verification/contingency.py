"""Contingency tables and their scores (WWRP/WGNE Forecast Verification methods; Jolliffe and Stephenson).

A score is NaN where it is undefined (nothing observed, nothing forecast), unless the protocol has an epsilon.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .protocols import ScoreProtocol
from .sufficient_statistics import TABLE, Statistics


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ContingencyTable:
    """Counts of the 2 x 2 table, float64 (exact to 2**53), all of one shape, usually ``[thresholds, leads]``."""

    hits: Tensor
    misses: Tensor
    false_alarms: Tensor
    correct_negatives: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> "ContingencyTable":
        """Return the table of int64 or float64 counts ``[..., 4, thresholds, leads]``, in the order of ``TABLE``."""
        return cls(**{name: counts[..., row, :, :].double() for row, name in enumerate(TABLE)})

    def over_leads(self) -> "ContingencyTable":
        """Return the table ``[thresholds]`` pooled over the lead times, its last axis."""
        return ContingencyTable(
            hits=self.hits.sum(-1),
            misses=self.misses.sum(-1),
            false_alarms=self.false_alarms.sum(-1),
            correct_negatives=self.correct_negatives.sum(-1),
        )


def contingency(statistics: Statistics) -> ContingencyTable:
    """Return the table ``[thresholds, leads]`` pooled over events; integers are summed before conversion to float."""
    return ContingencyTable(
        hits=statistics.hits.sum(0).double(),
        misses=statistics.misses.sum(0).double(),
        false_alarms=statistics.false_alarms.sum(0).double(),
        correct_negatives=statistics.correct_negatives.sum(0).double(),
    )


def csi(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the critical success index, hits / (hits + misses + false_alarms).

    Args:
        table: counts of any shape.
        epsilon: added to the denominator; the published SEVIR evaluators use 1e-4.

    Returns:
        The table's shape, in [0, 1]; NaN where no event was observed or forecast and epsilon is 0.

    Source: WWRP/WGNE, Forecast Verification methods; its 82/38/23/222 example gives 0.573426.
    """
    return table.hits / (table.hits + table.misses + table.false_alarms + epsilon)


def pod(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the probability of detection, hits / (hits + misses); NaN where no event was observed."""
    return table.hits / (table.hits + table.misses + epsilon)


def far(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the false alarm ratio, false_alarms / (hits + false_alarms); NaN where no event was forecast.

    With an epsilon it is 1 minus the success ratio of the published evaluators, hits / (hits + false_alarms + epsilon).
    """
    return (table.false_alarms + epsilon) / (table.hits + table.false_alarms + epsilon)


def hss(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the Heidke skill score, 2 (hc - mf) / ((h + m)(m + c) + (h + f)(f + c)); at most 1, 0 without skill."""
    h, m, f, c = table.hits, table.misses, table.false_alarms, table.correct_negatives
    return 2 * (h * c - m * f) / ((h + m) * (m + c) + (h + f) * (f + c) + epsilon)


def frequency_bias(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the frequency bias, (hits + false_alarms) / (hits + misses); 1 is unbiased, above 1 is over-forecast.

    The published SEVIR evaluators return another quantity under the name ``bias`` (see :func:`bias_ln2`).
    """
    return (table.hits + table.false_alarms) / (table.hits + table.misses + epsilon)


def ets(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the equitable threat score (Gilbert skill score), (h - r) / (h + m + f - r), at most 1, 0 without skill.

    r = (h + m)(h + f) / (h + m + f + c) are the hits of a random forecast with the same number of events. NaN where
    every pixel has the event in both fields, or none in either.
    """
    h, m, f, c = table.hits, table.misses, table.false_alarms, table.correct_negatives
    random = (h + m) * (h + f) / (h + m + f + c)
    return (h - random) / (h + m + f - random + epsilon)


def pofd(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the probability of false detection, f / (f + c); NaN where the event was observed everywhere."""
    return table.false_alarms / (table.false_alarms + table.correct_negatives + epsilon)


def peirce(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the Peirce skill score (Hanssen-Kuipers discriminant), POD - POFD; NaN where either is undefined."""
    return pod(table, epsilon=epsilon) - pofd(table, epsilon=epsilon)


def sedi(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the symmetric extremal dependence index (Ferro and Stephenson 2011, eq. 14), with H = POD and F = POFD.

    (ln F - ln H - ln(1 - F) + ln(1 - H)) / (ln F + ln H + ln(1 - F) + ln(1 - H)), in [-1, 1]. NaN where H or F is 0
    or 1, that is without hits, misses, false alarms or correct negatives.
    """
    hit, false = pod(table, epsilon=epsilon), pofd(table, epsilon=epsilon)
    no_hit, no_false = torch.log1p(-hit), torch.log1p(-false)
    numerator = false.log() - hit.log() - no_false + no_hit
    index = numerator / (false.log() + hit.log() + no_false + no_hit)
    defined = (hit > 0) & (hit < 1) & (false > 0) & (false < 1)
    return index.where(defined, torch.nan)


def f1(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the F1 score, 2 h / (2 h + m + f); NaN where no event was observed or forecast."""
    return 2 * table.hits / (2 * table.hits + table.misses + table.false_alarms + epsilon)


def bias_ln2(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return what the published SEVIR evaluators call ``bias``: ((h + f) / (h + m + epsilon) / ln 2)^2.

    It is not the frequency bias: SEVIR's own code averages log2 of the bias and raises 2 to the result; the published
    evaluators divide by ln 2 and square.
    """
    return ((table.hits + table.false_alarms) / (table.hits + table.misses + epsilon) / math.log(2.0)) ** 2


TABLE_SCORES: dict[str, Callable[..., Tensor]] = {
    "csi": csi,
    "pod": pod,
    "far": far,
    "hss": hss,
    "frequency_bias": frequency_bias,
}
# Computed if a protocol requests them, see OPTIONAL_SCORES
REQUESTED_TABLE_SCORES: dict[str, Callable[..., Tensor]] = {
    "ets": ets,
    "pofd": pofd,
    "peirce": peirce,
    "sedi": sedi,
    "f1": f1,
}


def table_scores(table: ContingencyTable, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return every score of the table by name, of the table's shape, with the protocol's value where undefined."""
    scores = {name: formula(table, epsilon=protocol.epsilon) for name, formula in TABLE_SCORES.items()}
    requested = {name: formula for name, formula in REQUESTED_TABLE_SCORES.items() if name in protocol.scores}
    scores |= {name: formula(table, epsilon=protocol.epsilon) for name, formula in requested.items()}
    if protocol.epsilon_numerator:
        h, m, f, e = table.hits, table.misses, table.false_alarms, protocol.epsilon_numerator
        scores["csi"] = (h + e) / (h + m + f + protocol.epsilon)
        scores["pod"] = (h + e) / (h + m + protocol.epsilon)
        scores["far"] = 1 - (h + e) / (h + f + protocol.epsilon)
        scores["frequency_bias"] = (h + f + e) / (h + m + protocol.epsilon)
    if "bias_ln2" in protocol.oddities:
        scores["bias_ln2"] = bias_ln2(table, epsilon=protocol.epsilon)
    return scores if protocol.undefined == "nan" else {name: torch.nan_to_num(x) for name, x in scores.items()}


def frame_scores(counts: dict[str, Tensor], protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return sums of scores of single frames and windows, which means over frames or windows require.

    Args:
        counts: int64 ``[4, thresholds, T]`` of one window by pool; the empty name is the table of pixels.
        protocol: epsilon and aggregation.

    Returns:
        ``<pool>/frames/<score>``, float64 ``[2, thresholds, T]``, for each pool and score: the sum of the score over
        the frames where it is defined, and the number of those frames. Under ``sample-mean`` also
        ``<pool>/samples/<score>``, float64 ``[2, thresholds]``.
    """
    sums: dict[str, Tensor] = {}
    for pool, table in counts.items():
        frames = ContingencyTable.of(table)
        scores = {"frames": table_scores(frames, protocol)}
        if protocol.aggregation == "sample-mean":
            scores["samples"] = table_scores(frames.over_leads(), protocol)
        for unit, by_name in scores.items():
            for name, values in by_name.items():
                defined = ~torch.isnan(values)
                sums[f"{pool}/{unit}/{name}"] = torch.stack([torch.nan_to_num(values), defined.double()])
    return sums
