"""Compute scores by key from sufficient statistics.

An undefined score is NaN unless the protocol says otherwise. A mean over thresholds or lead times with an undefined
term is undefined too, because dropping the term would reward a forecast that never predicts the event. Select
thresholds that are defined with :func:`supported_thresholds`.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .contingency import ContingencyTable, contingency, csi, table_scores
from .error_sums import CONDITIONS
from .neighbourhood import fss_scores
from .probabilistic_scores import crps_components, threshold_scores
from .protocols import ScoreProtocol
from .structure_amplitude_location import sal_scores
from .sufficient_statistics import TABLE, Statistics

# Share of the mean square below which a variance is rounding noise of float64 sums.
_CONSTANT = 1e-12
_HIGHER_IS_BETTER = (
    "csi", "pod", "hss", "ets", "peirce", "sedi", "f1", "fss", "fss_inside", "ssim", "psnr", "correlation", "roc_area",
    "crps_resolution", "brier_resolution",
)  # fmt: skip
_LOWER_IS_BETTER = (
    "far", "pofd", "mse", "rmse", "mae", "crps", "crps_standard", "brier", "balanced_mse", "balanced_mae",
    "twcrps", "twcrps_standard", "crps_reliability", "crps_potential", "brier_fair", "brier_reliability",
    *(f"sal_{name}{suffix}" for name in ("structure", "amplitude", "location") for suffix in ("", "_median")),
)  # fmt: skip
_SUFFIXES = re.compile(rf"_(pool|neighbourhood|({'|'.join(CONDITIONS)})$).*")


def is_higher_better(key: str) -> bool | None:
    """Return whether higher values of a score are better; None if neither is, as for biases, spread and coverage.

    Args:
        key: a key of :func:`scores`.
    """
    name = _SUFFIXES.sub("", key.partition("/")[0])
    return True if name in _HIGHER_IS_BETTER else False if name in _LOWER_IS_BETTER else None


def scores(
    statistics: Statistics, *, per_lead: bool = False, mean_over: Sequence[str] | None = None
) -> dict[str, float]:
    """Return every score by key, under the protocol of the statistics.

    Returns:
        ``csi pod far hss frequency_bias``, each as ``<score>/<threshold label>`` and ``<score>/mean``, and as
        ``<score>_<pool>/...`` for the pools of the protocol (``csi_pool4``, ``csi_pool16_avg``,
        ``csi_neighbourhood9``); ``mse rmse mae psnr`` of the [0, 1] fields over valid pixels; ``crps`` (fair) and
        ``crps_standard``, equal to the MAE for a single forecast; ``fss/<km>/<label>`` and ``ssim`` if the protocol
        has them; ``spread spread_skill brier/<label> roc_area/<label>`` of ensembles; ``coverage``, the fraction of
        valid observed pixels with a valid forecast. Additional scores of the protocol: ``ets pofd peirce sedi f1`` like
        ``csi``; ``mean_error`` and ``correlation``; ``mean_error mae rmse`` over the pixels of a condition, as
        ``<score>_<condition>/<label>`` with the conditions ``observed forecast either both``. ``twcrps
        twcrps_standard fss_inside/<km>`` with thresholds, ``crps_reliability crps_potential crps_resolution
        crps_uncertainty``, ``brier_fair brier_reliability brier_resolution brier_uncertainty`` with thresholds, and
        ``sal_structure sal_amplitude sal_location`` (see docs/reference/scores.md). With ``per_lead`` also
        ``<key>/lead/<k>``, k from 1.

    Raises:
        KeyError: ``mean_over`` has a threshold that the protocol does not have.
    """
    pooled, by_lead = scores_of(
        {name: sums.sum(0) for name, sums in statistics.sums.items()}, statistics.protocol, mean_over=mean_over
    )
    result = {key: float(value) for key, value in pooled.items()}
    if per_lead:
        for key, values in by_lead.items():
            result |= {f"{key}/lead/{lead}": value for lead, value in enumerate(values.tolist(), start=1)}
    return result


def scores_of(
    sums: Mapping[str, Tensor], protocol: ScoreProtocol, *, mean_over: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return scores of sums over events: by key ``[...]``, and by key and lead time ``[..., T]``.

    Args:
        sums: the sums of :class:`Statistics` by name, with any axes (such as resamples) in place of the events axis.
        protocol: defines how scores are computed from the sums.
        mean_over: labels of the thresholds in ``<score>/mean``; all by default.
    """
    rows = _rows(protocol, mean_over)
    overall: dict[str, Tensor] = {}
    by_lead: dict[str, Tensor] = {}

    def store(name: str, leads: Tensor, over_leads: Tensor) -> None:
        for row, label in enumerate(protocol.labels):
            by_lead[f"{name}/{label}"], overall[f"{name}/{label}"] = leads[..., row, :], over_leads[..., row]
        by_lead[f"{name}/mean"] = leads[..., rows, :].mean(-2)
        overall[f"{name}/mean"] = over_leads[..., rows].mean(-1)

    # 1. Contingency tables of pixels and pools
    tables = {"": torch.stack([sums[name] for name in TABLE], dim=-3)}
    tables |= {pool.key: sums[f"{pool.key}/table"] for pool in protocol.pools if f"{pool.key}/table" in sums}
    for pool, counts in tables.items():
        for name, (leads, over_leads) in _table_scores(pool, counts, sums, protocol).items():
            store(f"{name}_{pool}" if pool else name, leads, over_leads)
    # 2. Spatial and probabilistic scores
    fields, by_threshold = sal_scores(sums, protocol)
    for name, parts in (by_threshold | fss_scores(sums, protocol) | threshold_scores(sums, protocol)).items():
        store(name, *parts)
    for name, parts in (fields | crps_components(sums, protocol)).items():
        by_lead[name], overall[name] = parts
    # 3. Means over pixels or frames
    for name, (numerator, denominator) in _ratios(sums, protocol).items():
        by_lead[name] = _ratio(numerator.double(), denominator.double())
        pooled = _ratio(numerator.double().sum(-1), denominator.double().sum(-1))
        overall[name] = by_lead[name].mean(-1) if protocol.aggregation == "lead-mean" else pooled
    if "correlation" in protocol.scores:
        by_lead["correlation"] = _correlation(sums["moments"], sums["valid_pixels"])
        overall["correlation"] = _correlation(sums["moments"].sum(-2), sums["valid_pixels"].sum(-1))
    for scores_by_name in (overall, by_lead):
        _add_derived(scores_by_name, members=_members(sums))
        if protocol.comparison == "physical":
            del scores_by_name["psnr"]  # the peak of a physical quantity is not defined
    if protocol.aggregation == "lead-mean":
        for name in overall:
            if name in ("psnr", "correlation") or name.startswith("rmse"):
                overall[name] = by_lead[name].mean(-1)
    return overall, by_lead


def _table_scores(
    pool: str, counts: Tensor, sums: Mapping[str, Tensor], protocol: ScoreProtocol
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each score of a table ``[..., 4, K, T]`` by lead time ``[..., K, T]`` and overall ``[..., K]``."""
    aggregation = protocol.pool_aggregation if pool and protocol.pool_aggregation else protocol.aggregation
    table = ContingencyTable.of(counts)
    leads = table_scores(table, protocol)
    if aggregation == "global":
        pooled = table_scores(table.over_leads(), protocol)
    elif aggregation == "lead-mean":
        pooled = {name: values.mean(-1) for name, values in leads.items()}
    else:
        frames = {name: sums[f"{pool}/frames/{name}"] for name in leads}
        leads = {name: _ratio(part[..., 0, :, :], part[..., 1, :, :]) for name, part in frames.items()}
        if aggregation == "sample-mean":
            frames = {name: sums[f"{pool}/samples/{name}"][..., None] for name in leads}
        pooled = {name: _ratio(*part.sum(-1).unbind(-2)) for name, part in frames.items()}
    return {name: (leads[name], pooled[name]) for name in leads}


def _ratios(sums: Mapping[str, Tensor], protocol: ScoreProtocol) -> dict[str, tuple[Tensor, Tensor]]:
    """Return numerator and denominator of each score that is a mean over pixels or frames."""
    valid = sums["valid_pixels"]
    ratios = {
        "mse": (sums["squared_error"], valid),
        "mae": (sums["absolute_error"], valid),
        "crps": (sums["absolute_error"], valid),
        "crps_standard": (sums["absolute_error"], valid),
        "coverage": (valid, sums["observed_pixels"]),
    }
    if "mean_error" in protocol.scores:
        ratios["mean_error"] = (sums["moments"][..., 0], valid)
    if "conditional_errors" in protocol.scores:
        ratios |= _conditional_ratios(sums, protocol)
    pixels = sums.get("crps/pixels", valid)
    if "ranks" in sums:
        ratios["crps_standard"] = (sums["crps/standard"], pixels)
        names = {"crps": "crps/fair"} | {name: name for name in sums if name.startswith("spread/")}
        ratios |= {key: (sums[name], sums.get("crps/fair_pixels", pixels)) for key, name in names.items()}
    if "crps_gaussian" in sums:
        ratios["crps_gaussian"] = (sums["crps_gaussian"], pixels)
    for name in ("ssim", "ssim_batch_range"):
        if f"{name}/sum" in sums:
            ratios[name] = (sums[f"{name}/sum"], sums[f"{name}/frames"])
    if "balanced/frames" in sums:
        ratios["balanced_mse"] = (sums["balanced/squared"], sums["balanced/frames"])
        ratios["balanced_mae"] = (sums["balanced/absolute"], sums["balanced/frames"])
    return ratios


def _conditional_ratios(sums: Mapping[str, Tensor], protocol: ScoreProtocol) -> dict[str, tuple[Tensor, Tensor]]:
    ratios = {}
    for column, (condition, rows) in enumerate(CONDITIONS.items()):
        pixels = torch.stack([sums[row] for row in rows]).sum(0)
        for kind, name in enumerate(("mean_error", "mae", "mse")):
            for row, label in enumerate(protocol.labels):
                errors = sums["conditional"][..., kind, column, row]
                ratios[f"{name}_{condition}/{label}"] = (errors, pixels[..., row, :])
    return ratios


def _correlation(moments: Tensor, pixels: Tensor) -> Tensor:
    """Return Pearson's correlation of sums ``[..., 6]`` (see ``error_sums``) over ``pixels``; NaN for constant fields.

    A field counts as constant if its standard deviation is within rounding, 1e-6 of its root mean square.
    """
    _, x, y, xx, yy, xy = moments.double().unbind(-1)
    count = pixels.double()
    variance_x, variance_y = xx - x.square() / count, yy - y.square() / count
    defined = (variance_x > _CONSTANT * xx) & (variance_y > _CONSTANT * yy)
    correlation = (xy - x * y / count) / (variance_x.sqrt() * variance_y.sqrt())
    return correlation.clamp(-1, 1).where(defined, torch.nan)


def _add_derived(scores: dict[str, Tensor], *, members: int) -> None:
    """Add scores derived from means: RMSE, PSNR of a [0, 1] field, spread, ratio of spread to the error of the mean.

    With the factor sqrt((M + 1) / M) the ratio is 1 if M members and the observation have the same distribution
    (Fortin et al. 2014, eq. 15).
    """
    scores["psnr"] = -10 * torch.log10(scores["mse"])
    scores["rmse"] = scores["mse"].sqrt()
    for name in [name for name in scores if name.startswith("mse_")]:
        scores[name.replace("mse_", "rmse_", 1)] = scores.pop(name).sqrt()
    if "spread/variance" in scores:
        variance, error = scores.pop("spread/variance"), scores.pop("spread/error")
        scores["spread"] = variance.sqrt()
        total = ((members + 1) / members) ** 0.5 * variance.sqrt()
        if "spread/total" in scores:  # the number of members differs between pixels
            total = scores.pop("spread/total").sqrt()
        scores["spread_skill"] = total / error.sqrt()


def _members(sums: Mapping[str, Tensor]) -> int:
    return sums["ranks"].shape[-1] - 1 if "ranks" in sums else 1


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator  # 0 / 0 is NaN: undefined


def supported_thresholds(statistics: Statistics, *, min_pixels: int = 1000, min_events: int = 5) -> tuple[str, ...]:
    """Return the labels of thresholds that were observed often enough for a mean over thresholds.

    The result depends only on the observations as long as the forecasts cover the same pixels, so that one set of
    thresholds can be used for all lead times and all forecasts.

    Args:
        statistics: one or more rows per event; rows of equal key are one event.
        min_pixels: minimum number of observed pixels (hits + misses) over all lead times and events.
        min_events: minimum number of events with at least one such pixel.
    """
    observed = (statistics.hits + statistics.misses).sum(-1)
    row_of = {key: row for row, key in enumerate(dict.fromkeys(statistics.events))}
    rows = torch.tensor([row_of[key] for key in statistics.events], dtype=torch.int64, device=observed.device)
    by_event = observed.new_zeros(len(row_of), observed.shape[1]).index_add_(0, rows, observed)
    is_supported = (by_event.sum(0) >= min_pixels) & ((by_event > 0).sum(0) >= min_events)
    return tuple(label for label, keep in zip(statistics.protocol.labels, is_supported.tolist(), strict=True) if keep)


def mean_csi(statistics: Statistics, *, thresholds: Sequence[str] | None = None) -> Tensor:
    """Return the mean CSI over thresholds for each lead time, pooled over events, float64 ``[leads]``.

    Args:
        statistics: statistics of a forecast.
        thresholds: labels to average over, usually :func:`supported_thresholds`; all by default.

    Raises:
        KeyError: the protocol does not have one of the labels.
        ValueError: the list of labels is empty.
    """
    by_lead = csi(contingency(statistics), epsilon=statistics.protocol.epsilon)
    return by_lead[_rows(statistics.protocol, thresholds)].mean(0)


def _rows(protocol: ScoreProtocol, labels: Sequence[str] | None) -> list[int]:
    if labels is None:
        return list(range(len(protocol.labels)))
    if isinstance(labels, str) or not labels:
        raise ValueError(
            f"a mean over thresholds requires a non-empty list of labels, got {labels!r}; choose from "
            f"{', '.join(protocol.labels)}"
        )
    unknown = [label for label in labels if label not in protocol.labels]
    if unknown:
        raise KeyError(
            f"protocol {protocol.name!r} has no threshold {unknown[0]!r}; its labels are {', '.join(protocol.labels)}"
        )
    return [protocol.labels.index(label) for label in labels]
