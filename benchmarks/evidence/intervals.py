"""Scores of the study's arms with intervals over seeds and blocks of events.

The resampling and the intervals are those of :class:`simcast_hpc.verification.bootstrap.SeedBootstrap`; this module
scores the sums that the study stores.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.evidence.unit_results import Evidence
from simcast_hpc.verification import PROTOCOLS
from simcast_hpc.verification.bootstrap import Interval, SeedBootstrap

LABELS = PROTOCOLS["sevir-global"].labels
TABLE_SCORES = ("csi", "pod", "far", "frequency_bias")
_SCALE = 255.0
_SEED = 20251


class Bootstrap:
    """Intervals of the scores of arms, over seeds and blocks of events."""

    def __init__(self, evidence: Evidence, *, draws: int = 2000):
        self.evidence = evidence
        any_arm = next(iter(evidence.by_arm.values()))
        blocks = len(next(iter(any_arm.values())).sums.pixels)
        self._resamples = SeedBootstrap(blocks, draws=draws, seed=_SEED)
        self._cache: dict[tuple[str, str, tuple[int, ...], bool], np.ndarray] = {}

    def seeds(self, arms: Sequence[str]) -> tuple[int, ...]:
        """Return the seeds with which all of ``arms`` were trained; persistence has only the first of the study."""
        return tuple(self.evidence.seeds(*arms)) or self.evidence.study.seeds[:1]

    def score(self, terms: Sequence[tuple[str, float]], score: str, *, by_lead: bool = False) -> list[Interval]:
        """Return the interval of a weighted sum of one score over arms: one, or one per lead time.

        Args:
            terms: arms and their weights; ``(("student-6", 1), ("direct", -1))`` is a paired difference.
            score: ``csi/219``, ``csi/mean``, and the same for ``pod far frequency_bias``; ``fss/<threshold>``; ``mae``
                (equal to the CRPS of a single forecast) and ``mse`` of fields in [0, 1]; ``jump/<threshold>/<k>``, the
                frequency bias at lead time k + 1 minus that at k, counted from 1; ``lead/<k>/<score>``, a score at
                lead time k.
            by_lead: score each lead time separately; otherwise sums are pooled over the lead times.
        """
        seeds = self.seeds([arm for arm, _ in terms])
        total = sum(weight * self._scores(arm, score, seeds, by_lead) for arm, weight in terms)
        return [self._resamples.interval(column, seeds=len(seeds)) for column in np.asarray(total).T]

    def one(self, terms: Sequence[tuple[str, float]], score: str) -> Interval:
        """Return the interval of a score pooled over lead times (see :meth:`score`)."""
        return self.score(terms, score)[0]

    def _scores(self, arm: str, score: str, seeds: tuple[int, ...], by_lead: bool) -> np.ndarray:
        """Return ``[1 + draws, lead times or 1]``: the score averaged over the seeds of each resample."""
        key = (arm, score, seeds, by_lead)
        if key not in self._cache:
            by_seed = np.stack([self._of_seed(arm, seed, score, by_lead) for seed in seeds], axis=1)
            self._cache[key] = self._resamples.mean_over_seeds(by_seed)
        return self._cache[key]

    def _of_seed(self, arm: str, seed: int, score: str, by_lead: bool) -> np.ndarray:
        sums = self.evidence.result(arm, seed).sums
        kind, _, label = score.partition("/")
        if kind == "lead":
            lead, _, own = label.partition("/")
            return self._of_seed(arm, seed, own, True)[:, int(lead) - 1, None]
        if kind == "jump":
            label, _, lead = label.partition("/")
            bias = self._of_seed(arm, seed, f"frequency_bias/{label}", True)
            return np.diff(bias)[:, int(lead) - 1, None]

        def pooled(array: np.ndarray) -> np.ndarray:
            array = array if by_lead else array.sum(-1, keepdims=True)
            return np.tensordot(self._resamples.event_weights, array.astype(np.float64), axes=(1, 0))

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
    raise KeyError(f"unknown score {kind!r}; choose from {', '.join(TABLE_SCORES)}, fss, mae, mse")
