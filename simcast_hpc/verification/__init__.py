"""Verification: scores as sufficient statistics under named, hashed protocols.

``score(observation, forecast, protocol="sevir-global")`` answers for fields that fit into memory; ``Accumulator``
streams batches, and ``merge`` joins ranks.
"""

from .counting import Accumulator, count
from .protocols import PROTOCOLS, ScoreProtocol, protocol_for, resolve_protocol
from .scores import (
    ContingencyTable,
    contingency,
    csi,
    far,
    frequency_bias,
    hss,
    mean_csi,
    pod,
    score,
    scores,
    supported_thresholds,
)
from .statistics import Statistics, merge

__all__ = [
    "PROTOCOLS",
    "Accumulator",
    "ContingencyTable",
    "ScoreProtocol",
    "Statistics",
    "contingency",
    "count",
    "csi",
    "far",
    "frequency_bias",
    "hss",
    "mean_csi",
    "merge",
    "pod",
    "protocol_for",
    "resolve_protocol",
    "score",
    "scores",
    "supported_thresholds",
]
