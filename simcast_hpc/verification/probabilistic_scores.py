"""Probabilistic scores from sums over events: Brier score, ROC area, threshold-weighted CRPS, decompositions."""

from collections.abc import Callable, Mapping

from torch import Tensor

from .crps_sums import climatological_crps, decompose_crps
from .diagram_statistics import brier, decompose_brier, fair_brier, roc_area
from .protocols import ScoreProtocol

_ENCODED = ("codes", "released", "released-truncated")
Scores = dict[str, tuple[Tensor, Tensor]]


def threshold_scores(sums: Mapping[str, Tensor], protocol: ScoreProtocol) -> Scores:
    """Return each score with thresholds by lead time ``[..., K, T]`` and over all lead times ``[..., K]``."""
    scores: Scores = {}
    # 1. Threshold-weighted CRPS; of a single forecast both forms are its mean absolute error after chaining
    if "twcrps" in protocol.scores:
        is_ensemble = "ranks" in sums
        for key, form in (("twcrps", "fair"), ("twcrps_standard", "standard")):
            part = sums[f"twcrps/{form}" if is_ensemble else "twcrps/absolute"]
            scores[key] = _mean(part, _pixels(sums, form))
    # 2. Scores of the probability of exceedance
    if "ranks" in sums:
        counts = (sums["probability/forecasts"], sums["probability/events"])
        pooled = tuple(count.sum(-2) for count in counts)
        formulas: dict[str, Callable[..., Tensor]] = {"brier": brier, "roc_area": roc_area}
        if "brier_fair" in protocol.scores:
            formulas["brier_fair"] = fair_brier
        scores |= {name: (formula(*counts), formula(*pooled)) for name, formula in formulas.items()}
        for key, form in (("brier", "standard"), ("brier_fair", "fair")):
            if key in scores and f"brier/{form}" in sums:  # the number of members differs between pixels
                scores[key] = _mean(sums[f"brier/{form}"], _pixels(sums, form))
        if "brier_decomposition" in protocol.scores:
            parts = zip(decompose_brier(*counts), decompose_brier(*pooled), strict=True)
            scores |= dict(zip(("brier_reliability", "brier_resolution", "brier_uncertainty"), parts, strict=True))
    return _aggregate(scores, protocol)


def crps_components(sums: Mapping[str, Tensor], protocol: ScoreProtocol) -> Scores:
    """Return the parts of the standard CRPS by lead time ``[..., T]`` and over all lead times ``[...]``."""
    if "crps_decomposition" not in protocol.scores or "ranks" not in sums:
        return {}
    parts = (sums["crps_bins/widths"], sums["crps_bins/pixels"], sums["observed_values"])
    leads = _components(*parts, scale=protocol.scale)
    pooled = _components(parts[0].sum(-3), parts[1].sum(-2), parts[2].sum(-2), scale=protocol.scale)
    # Observations are counted by encoded value, which physical values do not have.
    names = leads if protocol.comparison in _ENCODED else ("crps_reliability", "crps_potential")
    scores = {name: (leads[name], pooled[name]) for name in names}
    return _aggregate(scores, protocol)


def _components(widths: Tensor, pixels: Tensor, values: Tensor, *, scale: float) -> dict[str, Tensor]:
    reliability, potential = decompose_crps(widths, pixels)
    uncertainty = climatological_crps(values, scale)
    return {
        "crps_reliability": reliability,
        "crps_potential": potential,
        "crps_resolution": uncertainty - potential,
        "crps_uncertainty": uncertainty,
    }


def _pixels(sums: Mapping[str, Tensor], form: str) -> Tensor:
    """Return the number of pixels of a standard or fair form ``[..., T]``."""
    if form == "fair" and "crps/fair_pixels" in sums:
        return sums["crps/fair_pixels"]
    return sums["crps/pixels"] if "crps/pixels" in sums else sums["valid_pixels"]


def _mean(part: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    return part / pixels[..., None, :], part.sum(-1) / pixels.sum(-1)[..., None]


def _aggregate(scores: Scores, protocol: ScoreProtocol) -> Scores:
    if protocol.aggregation != "lead-mean":
        return scores
    return {name: (leads, leads.mean(-1)) for name, (leads, _) in scores.items()}
