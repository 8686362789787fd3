"""Scores from sufficient statistics: the 2 x 2 table, its scores, and the errors, by threshold and lead time.

A score is NaN where it is undefined (nothing observed, nothing forecast), never 0 or 1, unless the protocol's epsilon
says otherwise; a mean over thresholds or leads with an undefined member is undefined too, because dropping the member
would reward a forecast for never trying. Choose thresholds that are defined with :func:`supported_thresholds`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .counting import count
from .protocols import ScoreProtocol, resolve_protocol
from .statistics import Statistics


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ContingencyTable:
    """Counts of the 2 x 2 table, float64 (exact to 2**53), any one shape, usually ``[thresholds, leads]``."""

    hits: Tensor
    misses: Tensor
    false_alarms: Tensor
    correct_negatives: Tensor

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


TABLE_SCORES: dict[str, Callable[..., Tensor]] = {
    "csi": csi,
    "pod": pod,
    "far": far,
    "hss": hss,
    "frequency_bias": frequency_bias,
}


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
        forecast: of the same shape, uint8 codes or floats, scored as it is: neither clipped nor rounded.
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
        ``csi pod far hss frequency_bias``, each as ``<score>/<threshold label>`` and ``<score>/mean``; ``mse`` and
        ``mae`` of the [0, 1] fields over valid pixels; ``coverage``, the fraction of observed pixels that the forecast
        gives a value for (a forecast below 1 chose its pixels). With ``per_lead`` also ``<key>/lead/<k>``, k from 1.

    Raises:
        KeyError: ``mean_over`` names a threshold that the protocol does not have.
    """
    protocol = statistics.protocol
    rows = _rows(protocol, mean_over)
    lead_mean = protocol.aggregation == "lead-mean"
    by_lead: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    table = contingency(statistics)
    for name, formula in TABLE_SCORES.items():
        leads = formula(table, epsilon=protocol.epsilon)
        pooled = leads.mean(-1) if lead_mean else formula(table.over_leads(), epsilon=protocol.epsilon)
        for row, label in enumerate(protocol.labels):
            by_lead[f"{name}/{label}"], whole[f"{name}/{label}"] = leads[row], pooled[row]
        by_lead[f"{name}/mean"], whole[f"{name}/mean"] = leads[rows].mean(0), pooled[rows].mean()
    valid, observed = statistics.valid_pixels.sum(0), statistics.observed_pixels.sum(0)
    ratios = {
        "mse": (statistics.squared_error.sum(0), valid),
        "mae": (statistics.absolute_error.sum(0), valid),
        "coverage": (valid, observed),
    }
    for name, (sums, pixels) in ratios.items():
        by_lead[name] = sums.double() / pixels.double()
        whole[name] = by_lead[name].mean() if lead_mean else sums.sum().double() / pixels.sum().double()
    result = {key: float(value) for key, value in whole.items()}
    if per_lead:
        for key, values in by_lead.items():
            result |= {f"{key}/lead/{lead}": value for lead, value in enumerate(values.tolist(), start=1)}
    return result


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
