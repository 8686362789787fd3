"""A hook that logs loss spikes with their windows."""

import json
import logging
import statistics
from collections import deque
from pathlib import Path

from simcast_hpc.config import WatchConfig

from .loop import StepReport

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
