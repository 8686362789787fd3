"""What a run says of itself when something looks wrong: losses that leap, ranks that are slow."""

import json
import logging
import socket
import statistics
from collections import deque
from pathlib import Path

import torch

from simcast_hpc.config import WatchConfig
from simcast_hpc.distributed.process_group import TorchRanks

from .loop import StepReport
from .step_timing import StepTimer

logger = logging.getLogger(__name__)
_FEWEST = 10


class SpikeHook:
    """Logs a step whose highest loss is many times the median of those before, with the windows it was made from.

    The rank that holds the loss speaks, and appends a line to ``spikes.jsonl``. Nothing is read from the device but
    where there is a spike: the highest loss came with what the ranks agree on.
    """

    def __init__(self, config: WatchConfig, path: Path):
        self._factor, self._path = config.spike_factor, path
        self._before: deque[float] = deque(maxlen=config.spike_window)

    def __call__(self, step: int, report: StepReport) -> None:
        """Take in one step."""
        if self._factor is None:
            return
        highest = report.status.max_loss
        if len(self._before) >= _FEWEST:
            usual = statistics.median(self._before)
            if highest > self._factor * usual:
                self._say(step, report, usual)
        self._before.append(highest)

    def _say(self, step: int, report: StepReport, usual: float) -> None:
        highest = report.status.max_loss
        windows = report.windows([loss == highest for loss in report.losses.float().tolist()])
        if not windows:
            return
        logger.warning(
            "the loss of step %d is %.4g, the median of the steps before %.4g: made from %s",
            step, highest, usual, ", ".join(windows),
        )  # fmt: skip
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "loss": highest, "median": usual, "windows": windows}) + "\n")


class StragglerHook:
    """Names a rank that reads and computes much slower than the others; a collective where it is due."""

    def __init__(self, config: WatchConfig, ranks: TorchRanks, timer: StepTimer):
        self._factor, self._ranks, self._timer = config.straggler_factor, ranks, timer

    def __call__(self, step: int, _report: object) -> None:
        """Compare the ranks over the steps since the last call."""
        reading, forward = self._timer.take()
        if self._factor is None or self._ranks.size == 1:
            return
        own = torch.tensor([reading, forward])
        told = self._ranks.gather((socket.gethostname(), own.tolist()))
        usual = statistics.median(sum(seconds) for _, seconds in told)
        for rank, (node, seconds) in enumerate(told):
            if usual > 0 and sum(seconds) > self._factor * usual and self._ranks.is_first:
                logger.warning(
                    "up to step %d rank %d on %s took %.3g s to read and %.3g s to compute, where the median rank took "
                    "%.3g s for both: the others wait for it",
                    step, rank, node, *seconds, usual,
                )  # fmt: skip
