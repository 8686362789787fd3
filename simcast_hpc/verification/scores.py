"""Scores from sufficient statistics, by the keys under which they are printed.

A score is NaN where it is undefined, unless the protocol says otherwise; a mean over thresholds or leads with an
undefined member is undefined too, because dropping the member would reward a forecast for never trying. Choose
thresholds that are defined with :func:`supported_thresholds`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .contingency import ContingencyTable, contingency, csi, table_scores
from .counting import count
from .diagram_statistics import brier, roc_area
from .protocols import ScoreProtocol
from .published_protocols import resolve_protocol
from .sufficient_statistics import TABLE, Statistics


def score(
    observation: Tensor | np.ndarray,
    forecast: Tensor | np.ndarray,
    *,
    protocol: str | ScoreProtocol = "sevir-global",
    events: Sequence[str] | None = None,
    valid: Tensor | np.ndarray | None = None,
    per_lead: bool = False,
    mean_over: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score a forecast that fits into memory.

    Args:
        observation: ``[N, T, H, W]``, uint8 codes or floats in [0, 1]; missing is 255 (the protocol's code) or NaN.
        forecast: of the same shape, or members ``[N, M, T, H, W]``, uint8 codes or floats; neither clipped nor rounded
            unless the protocol says so.
        protocol: a name in ``PROTOCOLS`` or a protocol of :func:`~simcast_hpc.verification.protocols.protocol_for`.
        events: the event of each window; it moves no pooled score.
        valid: boolean, broadcastable; False pixels count as missing.
        per_lead: whether every key is also given as ``<key>/lead/<k>``, k from 1.
        mean_over: labels of the thresholds in ``<score>/mean``; all by default.

    Returns:
        The keys of :func:`scores`.

    Raises:
        KeyError: unknown protocol, or a label in ``mean_over`` that the protocol does not have.
        ValueError: shapes differ, or floats are not [0, 1] fields.
        TypeError: fields are neither uint8 nor floating.
    """
    statistics = count(observation, forecast, protocol=resolve_protocol(protocol), events=events, valid=valid)
    return scores(statistics, per_lead=per_lead, mean_over=mean_over)


def scores(
    statistics: Statistics, *, per_lead: bool = False, mean_over: Sequence[str] | None = None
) -> dict[str, float]:
    """Return every score by name, under the protocol of the statistics.

    Returns:
        ``csi pod far hss frequency_bias``, each as ``<score>/<threshold label>`` and ``<score>/mean``, and as
        ``<score>_<pool>/...`` for the protocol's pools (``csi_pool4``, ``csi_pool16_avg``, ``csi_neighbourhood9``);
        ``mse mae psnr`` of the [0, 1] fields over valid pixels; ``crps`` (fair) and ``crps_standard``, which are the
        MAE where there is one forecast; ``fss/<km>/<label>`` and ``ssim`` where the protocol has them;
        ``spread spread_skill brier/<label> roc_area/<label>`` of ensembles; ``coverage``, the fraction of observed
        pixels that the forecast gives a value for (a forecast below 1 chose its pixels). With ``per_lead`` also
        ``<key>/lead/<k>``, k from 1.

    Raises:
        KeyError: ``mean_over`` names a threshold that the protocol does not have.
    """
    whole, by_lead = scores_of(
        {name: sums.sum(0) for name, sums in statistics.sums.items()}, statistics.protocol, mean_over=mean_over
    )
    result = {key: float(value) for key, value in whole.items()}
    if per_lead:
        for key, values in by_lead.items():
            result |= {f"{key}/lead/{lead}": value for lead, value in enumerate(values.tolist(), start=1)}
    return result


def scores_of(
    sums: Mapping[str, Tensor], protocol: ScoreProtocol, *, mean_over: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return scores of sums whose events have been added up: by key ``[...]``, and by key and lead ``[..., T]``.

    Args:
        sums: the sums of :class:`Statistics` by name, with any axes (such as bootstrap draws) in the events' place.
        protocol: how they are turned into scores.
        mean_over: labels of the thresholds in ``<score>/mean``; all by default.
    """
    rows = _rows(protocol, mean_over)
    whole: dict[str, Tensor] = {}
    by_lead: dict[str, Tensor] = {}

    def keep(name: str, leads: Tensor, over_leads: Tensor) -> None:
        for row, label in enumerate(protocol.labels):
            by_lead[f"{name}/{label}"], whole[f"{name}/{label}"] = leads[..., row, :], over_leads[..., row]
        by_lead[f"{name}/mean"], whole[f"{name}/mean"] = leads[..., rows, :].mean(-2), over_leads[..., rows].mean(-1)

    tables = {"": torch.stack([sums[name] for name in TABLE], dim=-3)}
    tables |= {pool.key: sums[f"{pool.key}/table"] for pool in protocol.pools if f"{pool.key}/table" in sums}
    for pool, counts in tables.items():
        for name, (leads, over_leads) in _table_scores(pool, counts, sums, protocol).items():
            keep(f"{name}_{pool}" if pool else name, leads, over_leads)
    for km in (km for km in protocol.fss_km if f"fss/{km:g}" in sums):
        parts = sums[f"fss/{km:g}"].double()
        pooled = 1 - _ratio(parts.sum(-1)[..., 0, :], parts.sum(-1)[..., 1:, :].sum(-2))
        leads = 1 - _ratio(parts[..., 0, :, :], parts[..., 1:, :, :].sum(-3))
        keep(f"fss/{km:g}", leads, leads.mean(-1) if protocol.aggregation == "lead-mean" else pooled)
    if "ranks" in sums:
        for name, formula in (("brier", brier), ("roc_area", roc_area)):
            leads = formula(sums["probability/forecasts"], sums["probability/events"])
            pooled = formula(sums["probability/forecasts"].sum(-2), sums["probability/events"].sum(-2))
            keep(name, leads, leads.mean(-1) if protocol.aggregation == "lead-mean" else pooled)
    for name, (numerator, denominator) in _ratios(sums).items():
        by_lead[name] = _ratio(numerator.double(), denominator.double())
        pooled = _ratio(numerator.double().sum(-1), denominator.double().sum(-1))
        whole[name] = by_lead[name].mean(-1) if protocol.aggregation == "lead-mean" else pooled
    _derive(whole, members=_members(sums))
    _derive(by_lead, members=_members(sums))
    if protocol.aggregation == "lead-mean":
        whole["psnr"] = by_lead["psnr"].mean(-1)
    return whole, by_lead


def _table_scores(
    pool: str, counts: Tensor, sums: Mapping[str, Tensor], protocol: ScoreProtocol
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each score of a table ``[..., 4, K, T]`` by lead ``[..., K, T]`` and over the leads ``[..., K]``."""
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


def _ratios(sums: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return numerator and denominator of each score that is a mean over pixels or frames."""
    valid = sums["valid_pixels"]
    found = {
        "mse": (sums["squared_error"], valid),
        "mae": (sums["absolute_error"], valid),
        "crps": (sums["absolute_error"], valid),
        "crps_standard": (sums["absolute_error"], valid),
        "coverage": (valid, sums["observed_pixels"]),
    }
    pixels = sums.get("crps/pixels", valid)
    if "ranks" in sums:
        found["crps"] = (sums["crps/fair"], pixels)
        found["crps_standard"] = (sums["crps/standard"], pixels)
        found["spread/variance"] = (sums["spread/variance"], pixels)
        found["spread/error"] = (sums["spread/error"], pixels)
    if "crps_gaussian" in sums:
        found["crps_gaussian"] = (sums["crps_gaussian"], pixels)
    for name in ("ssim", "ssim_batch_range"):
        if f"{name}/sum" in sums:
            found[name] = (sums[f"{name}/sum"], sums[f"{name}/frames"])
    if "balanced/frames" in sums:
        found["balanced_mse"] = (sums["balanced/squared"], sums["balanced/frames"])
        found["balanced_mae"] = (sums["balanced/absolute"], sums["balanced/frames"])
    return found


def _derive(found: dict[str, Tensor], *, members: int) -> None:
    """Add what follows from means: PSNR of a [0, 1] field, spread and its ratio to the error of the mean.

    The factor sqrt((M + 1) / M) makes the ratio 1 for M members and an observation out of one law (Fortin et al.
    2014, eq. 15).
    """
    found["psnr"] = -10 * torch.log10(found["mse"])
    if "spread/variance" in found:
        variance, error = found.pop("spread/variance"), found.pop("spread/error")
        found["spread"] = variance.sqrt()
        found["spread_skill"] = ((members + 1) / members) ** 0.5 * variance.sqrt() / error.sqrt()


def _members(sums: Mapping[str, Tensor]) -> int:
    return sums["ranks"].shape[-1] - 1 if "ranks" in sums else 1


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator  # 0 / 0 is NaN: undefined


def supported_thresholds(statistics: Statistics, *, min_pixels: int = 1000, min_events: int = 5) -> tuple[str, ...]:
    """Return the labels of thresholds that were observed often enough to be averaged over.

    One set serves all leads and all forecasts of the same observations: it depends on the observations alone as long
    as the forecasts cover the same pixels.

    Args:
        statistics: per event; rows of equal key are one event.
        min_pixels: observed pixels (hits + misses) needed over all leads and events.
        min_events: events needed that hold at least one such pixel.
    """
    observed = (statistics.hits + statistics.misses).sum(-1)
    places = {key: row for row, key in enumerate(dict.fromkeys(statistics.events))}
    rows = torch.tensor([places[key] for key in statistics.events], dtype=torch.int64, device=observed.device)
    by_event = observed.new_zeros(len(places), observed.shape[1]).index_add_(0, rows, observed)
    enough = (by_event.sum(0) >= min_pixels) & ((by_event > 0).sum(0) >= min_events)
    return tuple(label for label, keep in zip(statistics.protocol.labels, enough.tolist(), strict=True) if keep)


def mean_csi(statistics: Statistics, *, thresholds: Sequence[str] | None = None) -> Tensor:
    """Return the mean CSI over thresholds for each lead, float64 ``[leads]``.

    Args:
        statistics: pooled over their events here.
        thresholds: labels to average over, usually :func:`supported_thresholds`; all by default.

    Raises:
        KeyError: a label that the protocol does not have.
        ValueError: no label is given.
    """
    by_lead = csi(contingency(statistics), epsilon=statistics.protocol.epsilon)
    return by_lead[_rows(statistics.protocol, thresholds)].mean(0)


def _rows(protocol: ScoreProtocol, labels: Sequence[str] | None) -> list[int]:
    if labels is None:
        return list(range(len(protocol.labels)))
    if isinstance(labels, str) or not labels:
        raise ValueError(
            f"a mean over thresholds wants a non-empty list of labels, out of {', '.join(protocol.labels)}; "
            f"got {labels!r}"
        )
    unknown = [label for label in labels if label not in protocol.labels]
    if unknown:
        raise KeyError(
            f"protocol {protocol.name!r} has no threshold {unknown[0]!r}; its labels are {', '.join(protocol.labels)}"
        )
    return [protocol.labels.index(label) for label in labels]
