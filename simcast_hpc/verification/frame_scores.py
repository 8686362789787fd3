"""Scores of single frames and windows, summed: what an average of scores needs, since sums of counts forget frames."""

import torch
from torch import Tensor

from .contingency import ContingencyTable, table_scores
from .protocols import ScoreProtocol


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
