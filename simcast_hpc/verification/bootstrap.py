"""Intervals by resampling events: how far a score would move had other storms been observed.

Windows of one event share their weather, so whole events are drawn, with replacement (Efron and Tibshirani 1993,
percentile interval). Two forecasts of the same events are compared draw by draw, which removes what they share.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .scores import scores_of
from .statistics import Statistics

# Draws are scored in blocks: a block of all of them would hold draws x events x thresholds x leads numbers.
_BLOCK = 100


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score, the bounds between which the given share of draws lies, and the share of draws above 0.

    ``defined`` is the share of draws in which the score was defined; the bounds are over those.
    """

    value: float
    low: float
    high: float
    above_zero: float
    defined: float


def bootstrap(
    statistics: Statistics,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    mean_over: Sequence[str] | None = None,
    per_lead: bool = False,
) -> dict[str, Interval]:
    """Return every score with an interval over draws of events.

    Args:
        statistics: per event.
        draws: resamples.
        seed: the draws depend on it and on the events alone.
        level: share of draws within the interval.
        mean_over: labels of the thresholds in ``<score>/mean``.
        per_lead: whether ``<key>/lead/<k>`` is given too.

    Raises:
        ValueError: fewer than two events.
    """
    weights = _weights(statistics.events, draws=draws, seed=seed)
    drawn = _scored(statistics, weights, mean_over=mean_over, per_lead=per_lead)
    whole = _scored(statistics, torch.ones_like(weights[:1]), mean_over=mean_over, per_lead=per_lead)
    return {key: _interval(whole[key], values, level) for key, values in drawn.items()}


def paired_difference(
    first: Statistics,
    second: Statistics,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    mean_over: Sequence[str] | None = None,
    per_lead: bool = False,
) -> dict[str, Interval]:
    """Return ``first - second`` of every score that both have, with intervals over the same draws of events for both.

    Raises:
        ValueError: the two are of different events or protocols, or of fewer than two events.
    """
    if first.protocol.hash != second.protocol.hash:
        raise ValueError(
            f"a difference wants one protocol, got {first.protocol.name!r} ({first.protocol.hash}) and "
            f"{second.protocol.name!r} ({second.protocol.hash})"
        )
    if first.events != second.events:
        other = sorted(set(first.events) ^ set(second.events))
        raise ValueError(
            f"a paired difference wants the same events on both sides, in one order; {len(other)} are on one side "
            f"only, such as {other[:3]}; merge() orders them"
        )
    weights = _weights(first.events, draws=draws, seed=seed)
    once = torch.ones_like(weights[:1])
    drawn = [_scored(side, weights, mean_over=mean_over, per_lead=per_lead) for side in (first, second)]
    whole = [_scored(side, once, mean_over=mean_over, per_lead=per_lead) for side in (first, second)]
    return {
        key: _interval(whole[0][key] - whole[1][key], values - drawn[1][key], level)
        for key, values in drawn[0].items()
        if key in drawn[1]
    }


def _weights(events: Sequence[str], *, draws: int, seed: int) -> Tensor:
    """Return how often each event is in each draw, float64 ``[draws, events]``."""
    if len(events) < 2:
        raise ValueError(f"a bootstrap over {len(events)} event says nothing; give statistics of several events")
    if draws < 1:
        raise ValueError(f"draws={draws} must be 1 or more, 1000 is usual")
    chosen = torch.randint(len(events), (draws, len(events)), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(draws, len(events), dtype=torch.float64)
    return weights.scatter_add_(1, chosen, torch.ones_like(weights))


def _scored(
    statistics: Statistics, weights: Tensor, *, mean_over: Sequence[str] | None, per_lead: bool
) -> dict[str, Tensor]:
    """Return each score in each draw, float64 ``[draws]``."""
    flat = {name: sums.flatten(1).double().cpu() for name, sums in statistics.sums.items()}
    found: dict[str, list[Tensor]] = {}
    for block in weights.split(_BLOCK):
        # Integers below 2**53 stay exact in float64, so a draw of every event once is the score itself.
        sums = {
            name: (block @ flat[name]).view(len(block), *tensor.shape[1:]) for name, tensor in statistics.sums.items()
        }
        whole, by_lead = scores_of(sums, statistics.protocol, mean_over=mean_over)
        if per_lead:
            whole |= {
                f"{key}/lead/{lead}": values[..., lead - 1]
                for key, values in by_lead.items()
                for lead in range(1, values.shape[-1] + 1)
            }
        for key, values in whole.items():
            found.setdefault(key, []).append(values)
    return {key: torch.cat(values) for key, values in found.items()}


def _interval(value: Tensor, drawn: Tensor, level: float) -> Interval:
    defined = drawn[torch.isfinite(drawn)]
    share = len(defined) / len(drawn)
    if not len(defined):
        return Interval(float(value), float("nan"), float("nan"), float("nan"), share)
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(defined, edges).tolist()
    return Interval(float(value), low, high, float((defined > 0).double().mean()), share)
