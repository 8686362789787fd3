"""Numbers over the steps of a run: one JSON line an interval, and the same for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from simcast_hpc.storage.atomic_files import write_text


class MetricsWriter:
    """Appends metrics to ``metrics.jsonl`` and to TensorBoard events. Rank 0 alone holds one.

    Keys carry their unit where they have one: ``throughput/samples_per_second``.
    """

    def __init__(self, path: Path, events: Path, *, first_step: int):
        """Continue after ``first_step``; lines of later steps, left by a run that was cut short, are dropped."""
        if path.is_file():
            kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= first_step]
            write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(events), purge_step=first_step + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write the numbers of one step."""
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        for key, value in numbers.items():
            self._events.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.jsonl``; a half line at the end, left by a kill, is passed over."""
    return [json.loads(line) for line in _whole_lines(path)] if path.is_file() else []


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    return lines if text.endswith("\n") else lines[:-1]
