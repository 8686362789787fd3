"""Contingency counts of persistence by lead time: how long the data set is predictable without a model."""

from dataclasses import dataclass, field

import numpy as np

from simcast_hpc.data.encoding import MISSING_CODE

LEAD_STEPS = (1, 2, 3, 4, 6, 8, 12, 18, 24, 36)
# Pairs of frames per event and lead time. All pairs would take longer than everything else.
_PAIRS = 4


@dataclass
class PersistenceCounts:
    """Joint counts of the levels (thresholds reached) of a frame and of a later one, by lead time in steps.

    Attributes:
        thresholds: positions on the code axis, ascending.
        joint: int64 ``[levels, levels]`` by lead time, rows of the earlier frame.
        absolute_error: sum of absolute differences of codes, and number of valid pixels, by lead time.
    """

    thresholds: tuple[float, ...]
    joint: dict[int, np.ndarray] = field(default_factory=dict)
    absolute_error: dict[int, list[int]] = field(default_factory=dict)

    def add(self, codes: np.ndarray, *, seed: int) -> None:
        """Add pairs of frames of an event, uint8 ``[T, H, W]``; ``seed`` chooses the pairs of a long event."""
        levels = np.searchsorted(self.thresholds, np.arange(MISSING_CODE + 1), side="right").astype(np.uint8)
        size = len(self.thresholds) + 1
        for lead in LEAD_STEPS:
            starts = len(codes) - lead
            if starts < 1:
                break
            chosen = np.random.default_rng(seed).permutation(starts)[:_PAIRS]
            joint = self.joint.setdefault(lead, np.zeros((size, size), np.int64))
            error = self.absolute_error.setdefault(lead, [0, 0])
            for start in chosen.tolist():
                before, after = codes[start], codes[start + lead]
                valid = (before != MISSING_CODE) & (after != MISSING_CODE)
                first, second = before[valid], after[valid]
                pairs = levels[first].astype(np.int64) * size + levels[second]
                joint += np.bincount(pairs, minlength=size * size).reshape(size, size)
                error[0] += int(np.abs(first.astype(np.int16) - second).sum(dtype=np.int64))
                error[1] += int(valid.sum())

    def csi(self) -> dict[int, list[float]]:
        """Return the critical success index of each threshold by lead time in steps; NaN where undefined."""
        result = {}
        for lead, joint in self.joint.items():
            at_least = joint[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1]
            hits = at_least.diagonal()[1:].astype(np.float64)
            union = at_least[1:, 0] + at_least[0, 1:] - hits
            with np.errstate(invalid="ignore", divide="ignore"):
                result[lead] = (hits / union).tolist()
        return result

    def mae(self) -> dict[int, float]:
        """Return the mean absolute error of the [0, 1] field by lead time in steps, as in evaluations."""
        return {lead: total / 255 / count for lead, (total, count) in self.absolute_error.items() if count}
