"""Bootstrap confidence intervals of scores: over events, and over training seeds and events together.

Windows of one event share their weather, so whole events are resampled with replacement (Efron and Tibshirani 1993,
percentile interval). Two forecasts of the same events are compared resample by resample, which removes the variance
that they share. With several training seeds, seeds and events are resampled jointly (hierarchical bootstrap).
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .scores import scores_of
from .sufficient_statistics import Statistics

# Resamples are scored in blocks, because one block of all would hold resamples x events x thresholds x lead times.
_BLOCK = 100


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score and its confidence interval.

    Attributes:
        value: the score, or a difference of scores.
        low, high: bounds of the interval; NaN where there is none (one seed only, or an undefined score).
        above_zero: fraction of resamples above 0.
        defined: fraction of resamples in which the score is defined.
        seeds: number of training seeds that ``value`` averages over.
    """

    value: float
    low: float
    high: float
    above_zero: float = math.nan
    defined: float = 1.0
    seeds: int = 1

    @property
    def has_bounds(self) -> bool:
        """Whether both bounds are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclasses.dataclass(frozen=True)
class Resamples:
    """The scores of some statistics and of every resample of their events.

    Scoring the resamples takes most of the time; a forecast that is compared with several others needs it only once.
    """

    statistics: Statistics
    scores: dict[str, Tensor]
    resampled_scores: dict[str, Tensor]
    options: tuple[object, ...]

    def intervals(self, *, level: float = 0.95) -> dict[str, Interval]:
        """Return every score with its percentile interval of this confidence level."""
        return {key: _interval(self.scores[key], values, level) for key, values in self.resampled_scores.items()}

    def minus(self, other: "Resamples", *, level: float = 0.95) -> dict[str, Interval]:
        """Return the paired difference self - other of every score that both have.

        Raises:
            ValueError: the two have different events, protocols or resampling options.
        """
        _check_comparable(self.statistics, other.statistics)
        if self.options != other.options:
            raise ValueError(
                f"a paired difference requires the same resamples on both sides, got {self.options} and {other.options}"
            )
        return {
            key: _interval(self.scores[key] - other.scores[key], values - other.resampled_scores[key], level)
            for key, values in self.resampled_scores.items()
            if key in other.resampled_scores
        }


def resample(
    statistics: Statistics,
    *,
    draws: int = 1000,
    seed: int = 0,
    mean_over: Sequence[str] | None = None,
    per_lead: bool = False,
) -> Resamples:
    """Score resamples of the events.

    Args:
        statistics: one row per event.
        draws: number of resamples.
        seed: seed of the resampling; the resamples depend only on it and on the number of events.
        mean_over: labels of the thresholds in ``<score>/mean``.
        per_lead: whether to add ``<key>/lead/<k>``.

    Raises:
        ValueError: there are fewer than two events.
    """
    weights = _event_weights(statistics.events, draws=draws, seed=seed)
    resampled_scores = _score_weighted(statistics, weights, mean_over=mean_over, per_lead=per_lead)
    scores = _score_weighted(statistics, torch.ones_like(weights[:1]), mean_over=mean_over, per_lead=per_lead)
    labels = None if mean_over is None else tuple(mean_over)
    return Resamples(statistics, scores, resampled_scores, (draws, seed, labels, per_lead))


def bootstrap(statistics: Statistics, *, level: float = 0.95, **options: Any) -> dict[str, Interval]:
    """Return every score with its interval over events; ``options`` are those of :func:`resample`.

    Raises:
        ValueError: there are fewer than two events.
    """
    return resample(statistics, **options).intervals(level=level)


def paired_difference(
    first: Statistics, second: Statistics, *, level: float = 0.95, **options: Any
) -> dict[str, Interval]:
    """Return ``first - second`` of every score that both have, with intervals over the same resamples of events.

    Raises:
        ValueError: the two have different events or protocols, or fewer than two events.
    """
    return resample(first, **options).minus(resample(second, **options), level=level)


class SeedBootstrap:
    """Hierarchical bootstrap over training seeds and events.

    Seeds and events are resampled with replacement, jointly and identically for every model, so that a difference
    between two models is paired in both. In each resample the sums of a seed are added over the resampled events and
    scored; the scores are averaged over the resampled seeds.

    The interval is estimate -+ t s sqrt(n / (n - 1)), with s the standard deviation over the resamples, n the number of
    seeds and t the quantile of Student's distribution with n - 1 degrees of freedom. Percentiles of a bootstrap of
    five seeds would be too narrow by a third (Hesterberg, The American Statistician 69, 2015, section 4.1).
    """

    def __init__(self, events: int, *, draws: int = 2000, seed: int = 0):
        self.draws = draws
        generator = np.random.default_rng(seed)
        #: float64 ``[1 + draws, events]``: number of times each event is in a resample; row 0 is the sample.
        self.event_weights = np.vstack([np.ones(events), _multinomial(generator, events, draws)])
        self._state = generator.bit_generator.state

    def mean_over_seeds(self, scores: np.ndarray) -> np.ndarray:
        """Return ``[1 + draws, ...]``: scores ``[1 + draws, seeds, ...]`` averaged over the seeds of each resample."""
        seeds = scores.shape[1]
        generator = np.random.default_rng()
        generator.bit_generator.state = self._state  # the same resamples of seeds for every model
        weights = np.vstack([np.ones(seeds), _multinomial(generator, seeds, self.draws)]) / seeds
        weights = weights.reshape(*weights.shape, *[1] * (scores.ndim - 2))
        # An undefined score of a seed that is not in the resample must not make the resample undefined.
        return np.where(weights > 0, weights * scores, 0).sum(1)

    def interval(self, values: np.ndarray, *, seeds: int, level: float = 0.95) -> Interval:
        """Return the interval of ``values`` ``[1 + draws]``; without bounds for one seed or an undefined value."""
        estimate, resampled = float(values[0]), values[1:]
        above_zero, defined = float((resampled > 0).mean()), float(np.isfinite(resampled).mean())
        if seeds < 2 or not np.isfinite(values).all():
            return Interval(estimate, math.nan, math.nan, above_zero, defined, seeds)
        reach = student_t((1 + level) / 2, seeds - 1) * float(resampled.std()) * math.sqrt(seeds / (seeds - 1))
        return Interval(estimate, estimate - reach, estimate + reach, above_zero, defined, seeds)


def bootstrap_over_seeds(
    runs: Sequence[Statistics],
    *,
    reference: Sequence[Statistics] | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    mean_over: Sequence[str] | None = None,
    per_lead: bool = False,
) -> dict[str, Interval]:
    """Return every score averaged over training seeds, with its interval over seeds and events.

    Args:
        runs: statistics of one model on the same events, one per training seed.
        reference: statistics of another model with the same seeds in the same order. If given, the result is the
            paired difference ``runs - reference``.
        draws: number of resamples.
        seed: seed of the resampling.
        level: confidence level.
        mean_over: labels of the thresholds in ``<score>/mean``.
        per_lead: whether to add ``<key>/lead/<k>``.

    Raises:
        ValueError: events or protocols differ, ``reference`` has another number of seeds, or there are fewer than two
            events.
    """
    if not runs or (reference is not None and len(reference) != len(runs)):
        raise ValueError(
            f"got {len(runs)} runs and {len(reference or ())} of the reference; give one per training seed"
        )
    for statistics in [*runs[1:], *(reference or ())]:
        _check_comparable(runs[0], statistics)
    _check_events(runs[0].events, draws)
    resamples = SeedBootstrap(len(runs[0].events), draws=draws, seed=seed)
    weights = torch.from_numpy(resamples.event_weights)

    def averaged(group: Sequence[Statistics]) -> dict[str, np.ndarray]:
        scored = [_score_weighted(one, weights, mean_over=mean_over, per_lead=per_lead) for one in group]
        return {
            key: resamples.mean_over_seeds(np.stack([scores[key].numpy() for scores in scored], axis=1))
            for key in scored[0]
        }

    values = averaged(runs)
    if reference is not None:
        others = averaged(reference)
        values = {key: value - others[key] for key, value in values.items() if key in others}
    return {key: resamples.interval(value, seeds=len(runs), level=level) for key, value in values.items()}


@cache
def student_t(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution, by bisection of its integrated density."""
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        if _student_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_cdf(x: float, degrees: int) -> float:
    # With x = sqrt(degrees) tan(angle) the density becomes a power of a cosine over a finite range.
    angles = np.linspace(0.0, math.atan(x / math.sqrt(degrees)), 2001)
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return 0.5 + constant * float(np.trapezoid(np.cos(angles) ** (degrees - 1), angles))


def _multinomial(generator: np.random.Generator, count: int, draws: int) -> np.ndarray:
    return generator.multinomial(count, np.full(count, 1 / count), draws)


def _check_comparable(first: Statistics, second: Statistics) -> None:
    if first.protocol.hash != second.protocol.hash:
        raise ValueError(
            f"a difference requires one protocol, got {first.protocol.name!r} ({first.protocol.hash}) and "
            f"{second.protocol.name!r} ({second.protocol.hash})"
        )
    if first.events != second.events:
        unpaired = sorted(set(first.events) ^ set(second.events))
        raise ValueError(
            f"a paired difference requires the same events in the same order; {len(unpaired)} events occur only on one "
            f"side, for example {unpaired[:3]}; merge() orders them"
        )


def _check_events(events: Sequence[str], draws: int) -> None:
    if len(events) < 2:
        raise ValueError(f"a bootstrap requires at least 2 events, got statistics over {len(events)} event")
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1; 1000 is usual")


def _event_weights(events: Sequence[str], *, draws: int, seed: int) -> Tensor:
    """Return how often each event is in each resample, float64 ``[draws, events]``."""
    _check_events(events, draws)
    chosen = torch.randint(len(events), (draws, len(events)), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(draws, len(events), dtype=torch.float64)
    return weights.scatter_add_(1, chosen, torch.ones_like(weights))


def _score_weighted(
    statistics: Statistics, weights: Tensor, *, mean_over: Sequence[str] | None, per_lead: bool
) -> dict[str, Tensor]:
    """Return each score, float64 ``[draws]``, of event sums weighted by ``weights`` ``[draws, events]``."""
    flat = {name: sums.flatten(1).double().cpu() for name, sums in statistics.sums.items()}
    blocks: dict[str, list[Tensor]] = {}
    for block in weights.split(_BLOCK):
        # Integers below 2**53 are exact in float64, so weights of 1 give the score of the sample itself.
        sums = {
            name: (block @ flat[name]).view(len(block), *tensor.shape[1:]) for name, tensor in statistics.sums.items()
        }
        scores, by_lead = scores_of(sums, statistics.protocol, mean_over=mean_over)
        if per_lead:
            scores |= {
                f"{key}/lead/{lead}": values[..., lead - 1]
                for key, values in by_lead.items()
                for lead in range(1, values.shape[-1] + 1)
            }
        for key, values in scores.items():
            blocks.setdefault(key, []).append(values)
    return {key: torch.cat(values) for key, values in blocks.items()}


def _interval(value: Tensor, resampled: Tensor, level: float) -> Interval:
    """Return the percentile interval of the resamples in which the score is defined."""
    finite = resampled[torch.isfinite(resampled)]
    defined = len(finite) / len(resampled)
    if not len(finite):
        return Interval(float(value), math.nan, math.nan, math.nan, defined)
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(finite, edges).tolist()
    return Interval(float(value), low, high, float((finite > 0).double().mean()), defined)
