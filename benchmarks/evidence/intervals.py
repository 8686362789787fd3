"""Scores of arms with intervals over seeds and events: a hierarchical bootstrap of the stored sums.

Seeds and blocks of events are drawn with replacement, both at once and the same for every arm, so that a difference of
two arms is paired in both. In a draw, a seed's sums are added over the drawn blocks and scored, and the scores are
averaged over the drawn seeds.

An interval is the estimate -+ t * s * sqrt(n / (n - 1)): s the standard deviation of the draws, n the number of seeds,
t the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom. Percentiles of a bootstrap of five
seeds would be too narrow by a third (Hesterberg, The American Statistician 69, 2015, section 4.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.verification import PROTOCOLS

LABELS = PROTOCOLS["sevir-global"].labels
TABLE_SCORES = ("csi", "pod", "far", "frequency_bias")
_SCALE = 255.0
_DRAW_SEED = 20251


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; NaN bounds where there is none (one seed, or an undefined score)."""

    estimate: float
    low: float
    high: float
    seeds: int

    @property
    def defined(self) -> bool:
        """Whether the interval has bounds."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def half_width(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2


class Bootstrap:
    """Draws of seeds and blocks of events, and the scores of arms under them."""

    def __init__(self, evidence: Evidence, *, draws: int = 2000):
        """Draw; the first draw is the study as it was made."""
        self.evidence, self.draws = evidence, draws
        any_arm = next(iter(evidence.by_arm.values()))
        blocks = len(next(iter(any_arm.values())).sums.pixels)
        random = np.random.default_rng(_DRAW_SEED)
        self._blocks = np.vstack([np.ones(blocks), random.multinomial(blocks, np.full(blocks, 1 / blocks), draws)])
        self._random_state = random.bit_generator.state
        self._cache: dict[tuple[str, str, tuple[int, ...], bool], np.ndarray] = {}

    def seeds(self, arms: Sequence[str]) -> tuple[int, ...]:
        """Return the seeds with which all of ``arms`` were trained; persistence alone has the first of the study."""
        return tuple(self.evidence.seeds(*arms)) or self.evidence.study.seeds[:1]

    def score(self, terms: Sequence[tuple[str, float]], score: str, *, by_lead: bool = False) -> list[Interval]:
        """Return the interval of a weighted sum of one score over arms: one, or one a lead.

        Args:
            terms: arms and their weights; ``(("student-6", 1), ("direct", -1))`` is a paired difference.
            score: ``csi/219``, ``csi/mean``, likewise ``pod far frequency_bias``; ``fss/<threshold>``; ``mae``
                (equal to the CRPS of a single forecast) and ``mse`` of fields in [0, 1]; ``jump/<threshold>/<k>``, the
                frequency bias at lead k + 1 less that at lead k, leads counted from 1.
            by_lead: score every lead for itself; otherwise sums are pooled over the leads.
        """
        seeds = self.seeds([arm for arm, _ in terms])
        total = sum(weight * self._scores(arm, score, seeds, by_lead) for arm, weight in terms)
        return [self._interval(column, seeds) for column in np.asarray(total).T]

    def one(self, terms: Sequence[tuple[str, float]], score: str) -> Interval:
        """Return the interval of a score pooled over leads (see :meth:`score`)."""
        return self.score(terms, score)[0]

    def _interval(self, values: np.ndarray, seeds: tuple[int, ...]) -> Interval:
        estimate, drawn, count = float(values[0]), values[1:], len(seeds)
        if count < 2 or not np.isfinite(values).all():
            return Interval(estimate, math.nan, math.nan, count)
        reach = student_t(0.975, count - 1) * float(drawn.std()) * math.sqrt(count / (count - 1))
        return Interval(estimate, estimate - reach, estimate + reach, count)

    def _scores(self, arm: str, score: str, seeds: tuple[int, ...], by_lead: bool) -> np.ndarray:
        """Return ``[1 + draws, leads or 1]``: the score averaged over the seeds of each draw."""
        key = (arm, score, seeds, by_lead)
        if key not in self._cache:
            each = np.stack([self._of_seed(arm, seed, score, by_lead) for seed in seeds], axis=1)
            weights = self._seed_weights(len(seeds))[:, :, None]
            # An undefined score of a seed that was not drawn says nothing about the draw.
            self._cache[key] = np.where(weights > 0, weights * each, 0).sum(1)
        return self._cache[key]

    def _seed_weights(self, count: int) -> np.ndarray:
        random = np.random.default_rng()
        random.bit_generator.state = self._random_state
        return np.vstack([np.ones(count), random.multinomial(count, np.full(count, 1 / count), self.draws)]) / count

    def _of_seed(self, arm: str, seed: int, score: str, by_lead: bool) -> np.ndarray:
        sums = self.evidence.result(arm, seed).sums
        kind, _, label = score.partition("/")
        if kind == "jump":
            label, _, lead = label.partition("/")
            bias = self._of_seed(arm, seed, f"frequency_bias/{label}", True)
            return np.diff(bias)[:, int(lead) - 1, None]

        def pooled(array: np.ndarray) -> np.ndarray:
            array = array if by_lead else array.sum(-1, keepdims=True)
            return np.tensordot(self._blocks, array.astype(np.float64), axes=(1, 0))

        with np.errstate(invalid="ignore", divide="ignore"):
            if kind in ("mae", "mse"):
                power = 1 if kind == "mae" else 2
                error = sums.absolute_error if kind == "mae" else sums.squared_error
                return pooled(error) / pooled(sums.pixels) / _SCALE**power
            if kind == "fss":
                row = self.evidence.study.scoring.fss_thresholds.index(int(label))
                parts = (sums.fss_difference, sums.fss_forecast, sums.fss_observed)
                difference, forecast, observed = (pooled(part[:, row]) for part in parts)
                return 1 - difference / (forecast + observed)
            rows = list(range(len(LABELS))) if label == "mean" else [LABELS.index(label)]
            tables = (pooled(part[:, rows]) for part in (sums.hits, sums.forecast, sums.observed))
            return _table_score(kind, *tables).mean(1)


def _table_score(kind: str, hits: np.ndarray, forecast: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return a score of the 2 x 2 table from hits and marginals; NaN where undefined (see ``verification.scores``)."""
    if kind == "csi":
        return hits / (forecast + observed - hits)
    if kind == "pod":
        return hits / observed
    if kind == "far":
        return (forecast - hits) / forecast
    if kind == "frequency_bias":
        return forecast / observed
    raise KeyError(f"no score {kind!r}; known: {', '.join(TABLE_SCORES)}, fss, mae, mse")


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
