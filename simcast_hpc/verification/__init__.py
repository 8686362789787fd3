"""Verification: scores from sufficient statistics under named, hashed protocols.

``score(observation, forecast, protocol="sevir-global")`` scores fields that fit into memory. ``Accumulator`` streams
batches, ``merge`` combines ranks, and ``bootstrap`` returns confidence intervals.
"""

from .bootstrap import Interval, bootstrap, bootstrap_over_seeds, paired_difference
from .contingency import ContingencyTable, bias_ln2, contingency, csi, far, frequency_bias, hss, pod
from .counting import Accumulator, count
from .diagram_statistics import heavy_rain_panel, power_spectra, rank_histogram, reliability, roc_area, roc_curve
from .optional_scores import OPTIONAL_SCORES
from .physical_values import physical_protocol
from .protocols import Pool, ScoreProtocol, protocol_for
from .published_protocols import PROTOCOLS, resolve_protocol
from .score_fields import score
from .scores import mean_csi, scores, supported_thresholds
from .similarity import ssim
from .spectrum import radial_power
from .structure_amplitude_location import sal
from .sufficient_statistics import Statistics, merge

__all__ = [
    "OPTIONAL_SCORES",
    "PROTOCOLS",
    "Accumulator",
    "ContingencyTable",
    "Interval",
    "Pool",
    "ScoreProtocol",
    "Statistics",
    "bias_ln2",
    "bootstrap",
    "bootstrap_over_seeds",
    "contingency",
    "count",
    "csi",
    "far",
    "frequency_bias",
    "heavy_rain_panel",
    "hss",
    "mean_csi",
    "merge",
    "paired_difference",
    "physical_protocol",
    "pod",
    "power_spectra",
    "protocol_for",
    "radial_power",
    "rank_histogram",
    "reliability",
    "resolve_protocol",
    "roc_area",
    "roc_curve",
    "sal",
    "score",
    "scores",
    "ssim",
    "supported_thresholds",
]
