"""The 2 x 2 table and its scores (WWRP/WGNE Joint Working Group on Forecast Verification; Jolliffe and Stephenson).

A score is NaN where it is undefined (nothing observed, nothing forecast), never 0 or 1, unless an epsilon says
otherwise.
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
    """Counts of the 2 x 2 table, float64 (exact to 2**53), any one shape, usually ``[thresholds, leads]``."""

    hits: Tensor
    misses: Tensor
    false_alarms: Tensor
    correct_negatives: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> "ContingencyTable":
        """Return the table of int64 or float64 counts ``[..., 4, thresholds, leads]``, in the order of ``TABLE``."""
        return cls(**{name: counts[..., row, :, :].double() for row, name in enumerate(TABLE)})

    def over_leads(self) -> "ContingencyTable":
        """Return the table ``[thresholds]`` pooled over the leads, its last axis."""
        return ContingencyTable(
            hits=self.hits.sum(-1),
            misses=self.misses.sum(-1),
            false_alarms=self.false_alarms.sum(-1),
            correct_negatives=self.correct_negatives.sum(-1),
        )


def contingency(statistics: Statistics) -> ContingencyTable:
    """Return the table ``[thresholds, leads]`` pooled over events; integers are summed before they become floats."""
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
        epsilon: added to the denominator, as the released SEVIR evaluators do with 1e-4.

    Returns:
        The table's shape, in [0, 1]; NaN where no event was seen or forecast and epsilon is 0.

    Source: WWRP/WGNE, Forecast Verification methods; its 82/38/23/222 example gives 0.573426.
    """
    return table.hits / (table.hits + table.misses + table.false_alarms + epsilon)


def pod(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the probability of detection, hits / (hits + misses); NaN where no event was seen (see :func:`csi`)."""
    return table.hits / (table.hits + table.misses + epsilon)


def far(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the false alarm ratio, false_alarms / (hits + false_alarms); NaN where no event was forecast.

    With an epsilon it is 1 minus the released evaluators' success ratio, hits / (hits + false_alarms + epsilon).
    """
    return (table.false_alarms + epsilon) / (table.hits + table.false_alarms + epsilon)


def hss(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the Heidke skill score, 2 (hc - mf) / ((h + m)(m + c) + (h + f)(f + c)); at most 1, 0 without skill."""
    h, m, f, c = table.hits, table.misses, table.false_alarms, table.correct_negatives
    return 2 * (h * c - m * f) / ((h + m) * (m + c) + (h + f) * (f + c) + epsilon)


def frequency_bias(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return the frequency bias, (hits + false_alarms) / (hits + misses); 1 is unbiased, more is over-forecast.

    The released SEVIR evaluators return another quantity under the name ``bias``.
    """
    return (table.hits + table.false_alarms) / (table.hits + table.misses + epsilon)


def bias_ln2(table: ContingencyTable, *, epsilon: float = 0.0) -> Tensor:
    """Return what released SEVIR evaluators call ``bias``: ((h + f) / (h + m + epsilon) / ln 2)^2; no frequency bias.

    SEVIR's own code averages log2 of the bias and raises 2 to it; theirs divides by ln 2 and squares.
    """
    return ((table.hits + table.false_alarms) / (table.hits + table.misses + epsilon) / math.log(2.0)) ** 2


TABLE_SCORES: dict[str, Callable[..., Tensor]] = {
    "csi": csi,
    "pod": pod,
    "far": far,
    "hss": hss,
    "frequency_bias": frequency_bias,
}


def table_scores(table: ContingencyTable, protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return every score of the table by name, of the table's shape, as the protocol defines it where undefined."""
    found = {name: formula(table, epsilon=protocol.epsilon) for name, formula in TABLE_SCORES.items()}
    if protocol.epsilon_numerator:
        h, m, f, e = table.hits, table.misses, table.false_alarms, protocol.epsilon_numerator
        found["csi"] = (h + e) / (h + m + f + protocol.epsilon)
        found["pod"] = (h + e) / (h + m + protocol.epsilon)
        found["far"] = 1 - (h + e) / (h + f + protocol.epsilon)
        found["frequency_bias"] = (h + f + e) / (h + m + protocol.epsilon)
    if "bias_ln2" in protocol.oddities:
        found["bias_ln2"] = bias_ln2(table, epsilon=protocol.epsilon)
    return found if protocol.undefined == "nan" else {name: torch.nan_to_num(x) for name, x in found.items()}


def frame_scores(counts: dict[str, Tensor], protocol: ScoreProtocol) -> dict[str, Tensor]:
    """Return ``<pool>/frames/<score>`` for each pool and score, and ``<pool>/samples/<score>`` under ``sample-mean``.

    Args:
        counts: int64 ``[4, thresholds, T]`` of one window by pool, the pixels' under the empty name.
        protocol: epsilon and aggregation.

    Returns:
        float64 ``[2, thresholds, T]`` for frames and ``[2, thresholds]`` for samples: the sum of the score over those
        where it is defined, and how many they are.
    """
    sums: dict[str, Tensor] = {}
    for pool, table in counts.items():
        frames = ContingencyTable.of(table)
        found = {"frames": table_scores(frames, protocol)}
        if protocol.aggregation == "sample-mean":
            found["samples"] = table_scores(frames.over_leads(), protocol)
        for unit, by_name in found.items():
            for name, values in by_name.items():
                defined = ~torch.isnan(values)
                sums[f"{pool}/{unit}/{name}"] = torch.stack([torch.nan_to_num(values), defined.double()])
    return sums
