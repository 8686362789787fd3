"""Intervals by resampling events: how far a score would move had other storms been observed.

Windows of one event share their weather, so whole events are drawn, with replacement (Efron and Tibshirani 1993,
percentile interval). Two forecasts of the same events are compared draw by draw, which removes what they share.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .scores import scores_of
from .sufficient_statistics import Statistics

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


@dataclasses.dataclass(frozen=True)
class Resampled:
    """Every score of some statistics as it is, and in each draw of their events: what intervals are read from.

    Scoring the draws is what takes the time; a forecast that is compared with several others needs it once.
    """

    statistics: Statistics
    whole: dict[str, Tensor]
    drawn: dict[str, Tensor]
    how: tuple[object, ...]

    def intervals(self, *, level: float = 0.95) -> dict[str, Interval]:
        """Return every score with its interval; ``level`` is the share of draws within."""
        return {key: _interval(self.whole[key], values, level) for key, values in self.drawn.items()}

    def minus(self, other: "Resampled", *, level: float = 0.95) -> dict[str, Interval]:
        """Return the difference of every score that both have, draw by draw.

        Raises:
            ValueError: the two are of different events or protocols, or were drawn in another way.
        """
        first, second = self.statistics, other.statistics
        if first.protocol.hash != second.protocol.hash:
            raise ValueError(
                f"a difference wants one protocol, got {first.protocol.name!r} ({first.protocol.hash}) and "
                f"{second.protocol.name!r} ({second.protocol.hash})"
            )
        if first.events != second.events:
            apart = sorted(set(first.events) ^ set(second.events))
            raise ValueError(
                f"a paired difference wants the same events on both sides, in one order; {len(apart)} are on one side "
                f"only, such as {apart[:3]}; merge() orders them"
            )
        if self.how != other.how:
            raise ValueError(f"a paired difference wants the same draws on both sides, got {self.how} and {other.how}")
        return {
            key: _interval(self.whole[key] - other.whole[key], values - other.drawn[key], level)
            for key, values in self.drawn.items()
            if key in other.drawn
        }


def resampled(
    statistics: Statistics,
    *,
    draws: int = 1000,
    seed: int = 0,
    mean_over: Sequence[str] | None = None,
    per_lead: bool = False,
) -> Resampled:
    """Return every score over draws of events.

    Args:
        statistics: per event.
        draws: resamples.
        seed: the draws depend on it and on the events alone.
        mean_over: labels of the thresholds in ``<score>/mean``.
        per_lead: whether ``<key>/lead/<k>`` is given too.

    Raises:
        ValueError: fewer than two events.
    """
    weights = _weights(statistics.events, draws=draws, seed=seed)
    drawn = _scored(statistics, weights, mean_over=mean_over, per_lead=per_lead)
    whole = _scored(statistics, torch.ones_like(weights[:1]), mean_over=mean_over, per_lead=per_lead)
    labels = None if mean_over is None else tuple(mean_over)
    return Resampled(statistics, whole, drawn, (draws, seed, labels, per_lead))


def bootstrap(statistics: Statistics, *, level: float = 0.95, **options: Any) -> dict[str, Interval]:
    """Return every score with an interval over draws of events; ``options`` as of :func:`resampled`.

    Raises:
        ValueError: fewer than two events.
    """
    return resampled(statistics, **options).intervals(level=level)


def paired_difference(
    first: Statistics, second: Statistics, *, level: float = 0.95, **options: Any
) -> dict[str, Interval]:
    """Return ``first - second`` of every score that both have, with intervals over the same draws of events for both.

    Raises:
        ValueError: the two are of different events or protocols, or of fewer than two events.
    """
    return resampled(first, **options).minus(resampled(second, **options), level=level)


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
