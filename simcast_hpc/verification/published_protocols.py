"""Published protocols by name: as described in a paper, and under ``-released`` as its published evaluator computes it.

A name without ``-released`` is the protocol as described: exact comparison at the threshold, undefined scores are NaN,
missing pixels are excluded. The protocol with the suffix ``-released`` reproduces the published evaluator and serves
only for comparison with published tables. docs/reference/scores.md lists the differences.
"""

import difflib
import math
from typing import Any

from .protocols import Pool, ScoreProtocol

SEVIR_THRESHOLDS = (16.0, 74.0, 133.0, 160.0, 181.0, 219.0)
_RAIN_LABELS = ("0.5", "2", "5", "10", "30")

_MAX_POOLS = (Pool(size=4), Pool(size=16))
_CASCAST_POOLS = (*_MAX_POOLS, Pool(size=4, kind="avg"), Pool(size=16, kind="avg"))
_FULL: dict[str, Any] = {"pools": _MAX_POOLS, "ssim": True, "fss_km": (4.0, 16.0, 64.0)}
_RELEASED: dict[str, Any] = {"comparison": "released", "missing_rule": "non-event", "epsilon": 1e-4}
_RELEASED_CASCAST: dict[str, Any] = {
    **_RELEASED,
    "pools": _CASCAST_POOLS,
    "oddities": ("bias_ln2", "crps_gaussian", "ssim_batch_range"),
}
_EARTHFORMER = "earth-forecasting-transformer 7732b03, src/earthformer/metrics/sevir.py, "
_CASCAST = "CasCast 487a68b, utils/metrics.py, SEVIRSkillScore mode 0"
_DIFFCAST = "DiffCast e934093, utils/metrics.py, Evaluator"
_CHALLENGE = "sevir_challenges 790e3cd, radar_nowcasting/RadarNowcastBenchmarks.ipynb and src/metrics/metrics.py"
_HKO = "HKO-7 57b987b, nowcasting/hko_evaluation.py (Shi et al. 2017, table 1)"


def _sevir(name: str, *, thresholds: tuple[float, ...] = SEVIR_THRESHOLDS, **rules: Any) -> ScoreProtocol:
    labels = tuple(f"{threshold:g}" for threshold in thresholds)
    return ScoreProtocol(name=name, thresholds=thresholds, labels=labels, **rules)


def _hko_code(rain_mm_h: float) -> float:
    """Return the encoded value of a rain rate R: dBZ = 10 log10(58.53) + 15.6 log10(R), value = 255 (dBZ + 10) / 70."""
    return 255.0 * (10.0 * math.log10(58.53) + 15.6 * math.log10(rain_mm_h) + 10.0) / 70.0


def _hko7() -> ScoreProtocol:
    return ScoreProtocol(
        name="hko7",
        thresholds=tuple(_hko_code(float(label)) for label in _RAIN_LABELS),
        labels=_RAIN_LABELS,
        unit="mm/h",
        aggregation="lead-mean",
        balance=(1.0, 1.0, 2.0, 5.0, 10.0, 30.0),
        source=_HKO + "; pixels of the exclusion mask are missing",
    )


def _meteonet(name: str, **rules: Any) -> ScoreProtocol:
    return ScoreProtocol(
        name=name,
        thresholds=(19.0, 28.0, 35.0, 40.0, 47.0),
        labels=("19", "28", "35", "40", "47"),
        unit="dBZ",
        scale=70.0,
        **rules,
    )


PROTOCOLS: dict[str, ScoreProtocol] = {
    protocol.name: protocol
    for protocol in (
        _sevir(
            "sevir-global", **_FULL, source="thresholds of SEVIR (Veillette et al. 2020); counts over all lead times"
        ),
        _sevir("sevir-lead-mean", **_FULL, aggregation="lead-mean", source="thresholds of SEVIR; mean over lead times"),
        _sevir("sevir-frame-mean", aggregation="frame-mean", source="thresholds of SEVIR; mean over frames"),
        _sevir("sevir-sample-mean", aggregation="sample-mean", source="thresholds of SEVIR; mean over windows"),
        _sevir("sevir-global-released", **_RELEASED, oddities=("bias_ln2",), source=_EARTHFORMER + "metrics mode 0"),
        _sevir(
            "sevir-lead-mean-released",
            **_RELEASED,
            oddities=("bias_ln2",),
            aggregation="lead-mean",
            source=_EARTHFORMER + "mode 2",
        ),
        _sevir("sevir-challenge", thresholds=(16.0, 74.0, 133.0), aggregation="lead-mean", source=_CHALLENGE),
        _sevir(
            "sevir-challenge-released",
            thresholds=(16.0, 74.0, 133.0),
            aggregation="lead-mean",
            missing_rule="non-event",
            epsilon=1e-6,
            epsilon_numerator=1e-6,
            source=_CHALLENGE,
        ),
        _sevir("cascast", pools=_CASCAST_POOLS, ssim=True, source=_CASCAST + "; mean of the members"),
        _sevir("cascast-released", **_RELEASED_CASCAST, source=_CASCAST),
        _sevir(
            "diffcast",
            pools=_MAX_POOLS,
            partial_blocks=True,
            aggregation="lead-mean",
            pool_aggregation="global",
            clip=True,
            ssim=True,
            source=_DIFFCAST,
        ),
        _sevir(
            "diffcast-released",
            pools=_MAX_POOLS,
            partial_blocks=True,
            aggregation="lead-mean",
            pool_aggregation="global",
            comparison="released-truncated",
            missing=None,
            clip=True,
            undefined="zero",
            ssim=True,
            source=_DIFFCAST,
        ),
        _sevir(
            "flowcast",
            strict=True,
            pools=_MAX_POOLS,
            source="FlowCast (Ribeiro and Faganeli Pucer 2025, arXiv 2511.09731), > as reported; no code found",
        ),
        _hko7(),
        _meteonet("meteonet-cascast", pools=_CASCAST_POOLS, ssim=True, source=_CASCAST + ", preprocess meteonet"),
        _meteonet("meteonet-cascast-released", **_RELEASED_CASCAST, source=_CASCAST + ", preprocess meteonet"),
        _sevir(
            "pysteps",
            strict=True,
            fss_km=(4.0, 16.0, 64.0),
            spectrum=True,
            source="pysteps 1.21 verification: det_cat_fct (value > threshold), fss, rapsd",
        ),
    )
}


def resolve_protocol(protocol: str | ScoreProtocol) -> ScoreProtocol:
    """Return the protocol of this name in ``PROTOCOLS``; a protocol is returned unchanged.

    Raises:
        KeyError: there is no protocol of this name; the message lists the valid names.
    """
    if isinstance(protocol, ScoreProtocol):
        return protocol
    if protocol not in PROTOCOLS:
        near = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KeyError(f"unknown verification protocol {protocol!r}; {hint}choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]
