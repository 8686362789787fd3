"""Metrics over the steps of a run: one JSON line per logging interval, and the same values for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from simcast_hpc.storage.atomic_files import write_text


class MetricsWriter:
    """Appends metrics to ``metrics.jsonl`` and to TensorBoard events; only rank 0 has one.

    Keys contain the unit, if there is one: ``throughput/samples_per_second``.
    """

    def __init__(self, path: Path, events: Path, *, first_step: int):
        """Append after ``first_step``; lines of later steps, which an interrupted run wrote, are removed."""
        if path.is_file():
            kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= first_step]
            write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(events), purge_step=first_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of one step."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for key, value in metrics.items():
            self._events.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.jsonl``; an incomplete last line, which a kill can leave, is ignored."""
    return [json.loads(line) for line in _complete_lines(path)] if path.is_file() else []


def _complete_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    return lines if text.endswith("\n") else lines[:-1]
