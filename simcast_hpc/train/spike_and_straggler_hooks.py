"""Hooks that log anomalies: loss spikes and slow ranks."""

import json
import logging
import socket
import statistics
from collections import deque
from pathlib import Path

from simcast_hpc.config import WatchConfig
from simcast_hpc.distributed.process_group import TorchRanks

from .loop import StepReport
from .step_timing import StepTimer

logger = logging.getLogger(__name__)
_MIN_STEPS = 10


class SpikeHook:
    """Logs a step whose maximum loss is a multiple of the median of the steps before, with its windows.

    The rank with that loss logs it and appends a line to ``spikes.jsonl``. The device is read only on a spike, because
    the maximum loss is part of the step's reduced status.
    """

    def __init__(self, config: WatchConfig, path: Path):
        self._factor, self._path = config.spike_factor, path
        self._recent: deque[float] = deque(maxlen=config.spike_window)

    def __call__(self, step: int, report: StepReport) -> None:
        """Compare one step with those before."""
        if self._factor is None:
            return
        highest = report.status.max_loss
        if len(self._recent) >= _MIN_STEPS:
            median = statistics.median(self._recent)
            if highest > self._factor * median:
                self._log(step, report, median)
        self._recent.append(highest)

    def _log(self, step: int, report: StepReport, median: float) -> None:
        highest = report.status.max_loss
        windows = report.windows([loss == highest for loss in report.losses.float().tolist()])
        if not windows:
            return
        logger.warning(
            "loss spike at step %d: %.4g, median of the steps before %.4g; windows %s",
            step, highest, median, ", ".join(windows),
        )  # fmt: skip
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "loss": highest, "median": median, "windows": windows}) + "\n")


class StragglerHook:
    """Logs a rank that reads and computes much slower than the median. A collective."""

    def __init__(self, config: WatchConfig, ranks: TorchRanks, timer: StepTimer):
        self._factor, self._ranks, self._timer = config.straggler_factor, ranks, timer

    def __call__(self, step: int, _report: object) -> None:
        """Compare the ranks over the steps since the last call."""
        reading, forward = self._timer.take()
        if self._factor is None or self._ranks.size == 1:
            return
        timings = self._ranks.gather((socket.gethostname(), [reading, forward]))
        median = statistics.median(sum(seconds) for _, seconds in timings)
        for rank, (node, seconds) in enumerate(timings):
            if median > 0 and sum(seconds) > self._factor * median and self._ranks.is_first:
                logger.warning(
                    "slow rank up to step %d: rank %d on %s took %.3g s to read and %.3g s for forward passes; the "
                    "median rank took %.3g s for both",
                    step, rank, node, *seconds, median,
                )  # fmt: skip
