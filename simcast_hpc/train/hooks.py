"""Hooks between optimizer steps: progress, checkpoints."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simcast_hpc.config import TrainConfig

from .best_weights import BestWeights
from .checkpoint import CheckpointWriter
from .ema import EMA
from .loop import StepReport
from .stage_engine import StageEngine


class ProgressHook:
    """A progress bar on rank 0: live in a terminal, otherwise a line per tenth of the run."""

    def __init__(self, config: TrainConfig, *, first_step: int):
        self.config = config
        self._live = sys.stderr.isatty()
        self._tenth = max(1, config.max_steps // 10)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self._live,
        )
        self._task = self._bar.add_task(config.stage, total=config.max_steps, completed=first_step, loss="-")
        self._began, self._first = time.perf_counter(), first_step
        self._bar.start()

    def __call__(self, step: int, report: StepReport) -> None:
        """Advance the bar."""
        if step % self.config.log.every_steps == 0 or step == self.config.max_steps:
            self._bar.update(self._task, completed=step, loss=f"{report.loss.item():.5f}")
        if not self._live and (step % self._tenth == 0 or step == self.config.max_steps):
            each = (time.perf_counter() - self._began) / (step - self._first)
            total = self.config.max_steps
            loss = report.loss.item()
            print(f"{self.config.stage}: step {step} of {total}, loss {loss:.5f}, {each:.3f} s/step", flush=True)

    def close(self) -> None:
        """Stop updating the bar."""
        self._bar.stop()


class CheckpointClock:
    """Asks for a checkpoint a number of minutes after the last one, on rank 0 only: the status of a step tells all."""

    def __init__(self, minutes: float | None, *, is_first: bool):
        self._seconds = minutes * 60 if minutes is not None and is_first else None
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._since = time.monotonic()

    def due(self) -> bool:
        """Return whether the interval is over."""
        return self._seconds is not None and time.monotonic() - self._since >= self._seconds


class CheckpointHook:
    """Saves a checkpoint, and begins a new interval of the clock."""

    def __init__(
        self,
        writer: CheckpointWriter,
        engine: StageEngine,
        *,
        global_size: int,
        identity: Mapping[str, Any],
        ema: EMA | None = None,
        best: BestWeights | None = None,
        clock: CheckpointClock | None = None,
    ):
        self.clock = clock
        self._saved: int | None = None
        self.writer, self.engine, self.global_size, self.identity = writer, engine, global_size, identity
        self.ema, self.best = ema, best

    def __call__(self, step: int, _report: StepReport) -> None:
        """Start writing the checkpoint of ``step``, unless it was started already. A collective."""
        if step == self._saved:
            return
        self._saved = step
        if self.clock is not None:
            self.clock.restart()
        self.writer.save(
            self.engine.engine,
            step=step,
            samples_seen=step * self.global_size,
            identity=self.identity,
            average=None if self.ema is None else self.ema.tensors,
            auxiliary=self.engine.auxiliary_state(),
            validation=None if self.best is None else self.best.state(),
        )


class TimedCheckpointHook:
    """Saves a checkpoint if the clock of rank 0 asked for one."""

    def __init__(self, save: CheckpointHook):
        self._save = save

    def __call__(self, step: int, report: StepReport) -> None:
        """Save if it is due. A collective then."""
        if report.status.save_due:
            self._save(step, report)


class WaitForWriterHook:
    """Limits how many steps training runs ahead of a checkpoint that is still being written.

    Without the limit, a kill could lose two checkpoint intervals on a slow disk.
    """

    def __init__(self, writer: CheckpointWriter, *, ahead_steps: int):
        self.writer, self.ahead_steps = writer, ahead_steps

    def __call__(self, step: int, _report: StepReport) -> None:
        """Wait for the writer if the limit is reached.

        Raises:
            CheckpointError: on every rank; the previous checkpoint is kept.
        """
        if self.writer.pending_step is not None and step - self.writer.pending_step >= self.ahead_steps:
            self.writer.wait()


class WriteFailureHook:
    """Ends the run one step after writing a checkpoint failed, not only when the next one is due."""

    def __init__(self, writer: CheckpointWriter):
        self.writer = writer

    def __call__(self, _step: int, report: StepReport) -> None:
        """Raise the writer's error if any rank reports one.

        Raises:
            CheckpointError: on every rank; the previous checkpoint is kept.
        """
        if report.status.write_failed:
            self.writer.wait()
