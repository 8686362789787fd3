"""Metrics over the steps of a run: one JSON line per logging interval, and the same values for TensorBoard."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from simcast_hpc.config import ConfigError
from simcast_hpc.config.text_files import read_text_file
from simcast_hpc.storage.atomic_files import write_text

from .trackers import Tracker


class MetricsWriter:
    """Appends metrics to ``metrics.jsonl``, to TensorBoard events and to a tracker; only rank 0 has one.

    Keys contain the unit, if there is one: ``throughput/samples_per_second``.
    """

    def __init__(self, path: Path, events: Path, *, first_step: int, tracker: Tracker | None = None):
        """Append after ``first_step``; lines of later steps, which an interrupted run wrote, are removed."""
        if path.is_file():
            kept = [line for line in read_metrics(path) if line["step"] <= first_step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(events), purge_step=first_step + 1)
        self._tracker = tracker

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """Write the metrics of one step and the time; text, such as the name of a host, only to ``metrics.jsonl``."""
        line = {"step": step, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **metrics}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        numbers = {key: value for key, value in metrics.items() if not isinstance(value, str)}
        for key, value in numbers.items():
            self._events.add_scalar(key, value, step)
        if self._tracker is not None:
            self._tracker.log(step, numbers)

    def close(self) -> None:
        """Flush and close the files and finish the tracked run."""
        self._file.close()
        self._events.close()
        if self._tracker is not None:
            self._tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.jsonl``; an incomplete last line, which a kill can leave, is ignored.

    Raises:
        ConfigError: a line (named) is damaged.
    """
    if not path.is_file():
        return []
    text = read_text_file(path, error=ConfigError, what="the metrics")
    metrics = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            values = json.loads(line)
            metrics.append(values | {"step": int(values["step"])})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number} is damaged ({error!r}); remove the line") from error
    return metrics
