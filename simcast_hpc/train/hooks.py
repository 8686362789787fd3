"""What happens between optimizer steps: metrics, progress, checkpoints."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simcast_hpc.config import TrainConfig
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.monitoring.metrics import MetricsWriter

from .checkpoint import CheckpointWriter
from .ema import EMA
from .learning_rate import learning_rate
from .loop import StepReport
from .stage_engine import StageEngine


class MetricsHook:
    """Called after every step; writes the mean loss of an interval, the rate, and the speed, every so many.

    The losses stay on the device in between, so the loop waits for it once an interval.
    """

    def __init__(self, config: TrainConfig, ranks: TorchRanks, writer: MetricsWriter | None, engine: Any):
        self.config, self.ranks, self.writer, self.engine = config, ranks, writer, engine
        self._sum: torch.Tensor | None = None
        self._steps = 0
        self._since = time.perf_counter()

    def __call__(self, step: int, report: StepReport) -> None:
        """Take in one step."""
        self._sum = report.loss if self._sum is None else self._sum + report.loss
        self._steps += 1
        if step % self.config.log.every_steps and step != self.config.max_steps:
            return
        loss = self.ranks.mean(self._sum / self._steps).item()
        seconds = time.perf_counter() - self._since
        rate = learning_rate(step - 1, max_steps=self.config.max_steps, config=self.config.optimizer)
        numbers = {
            "loss": loss,
            "learning_rate": rate,
            "throughput/samples_per_second": self._steps * self.config.batch.global_size / seconds,
            "time/seconds_per_step": seconds / self._steps,
        }
        norm = self.engine.get_global_grad_norm()
        if norm is not None:
            numbers["gradient_norm"] = float(norm)
        if torch.cuda.is_available():
            numbers["memory/peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.writer is not None:
            self.writer.write(step, numbers)
        self._sum, self._steps, self._since = None, 0, time.perf_counter()


class ProgressHook:
    """A progress bar on rank 0: live in a terminal, a line every tenth of the run in a log file."""

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
        """Move the bar."""
        if step % self.config.log.every_steps == 0 or step == self.config.max_steps:
            self._bar.update(self._task, completed=step, loss=f"{report.loss.item():.5f}")
        if not self._live and (step % self._tenth == 0 or step == self.config.max_steps):
            each = (time.perf_counter() - self._began) / (step - self._first)
            total = self.config.max_steps
            loss = report.loss.item()
            print(f"{self.config.stage}: step {step} of {total}, loss {loss:.5f}, {each:.3f} s a step", flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


class CheckpointHook:
    """Saves the state after its step."""

    def __init__(
        self,
        writer: CheckpointWriter,
        engine: StageEngine,
        *,
        global_size: int,
        identity: Mapping[str, Any],
        ema: EMA | None = None,
    ):
        self.writer, self.engine, self.global_size, self.identity, self.ema = writer, engine, global_size, identity, ema

    def __call__(self, step: int, _report: StepReport) -> None:
        """Begin to write the checkpoint of ``step``."""
        self.writer.save(
            self.engine.engine,
            step=step,
            samples_seen=step * self.global_size,
            identity=self.identity,
            average=None if self.ema is None else self.ema.tensors,
            auxiliary=self.engine.auxiliary_state(),
        )


class WaitForWriterHook:
    """Holds training back where it has run so many steps ahead of a checkpoint that is still being written.

    Without it a slow disk would stretch what a kill costs to two intervals.
    """

    def __init__(self, writer: CheckpointWriter, *, ahead_steps: int):
        self.writer, self.ahead_steps = writer, ahead_steps

    def __call__(self, step: int, _report: StepReport) -> None:
        """Wait where the limit is reached.

        Raises:
            CheckpointError: on every rank; the checkpoint before stands.
        """
        if self.writer.under_way is not None and step - self.writer.under_way >= self.ahead_steps:
            self.writer.wait()


class WriteFailureHook:
    """Ends the run one step after a checkpoint could not be written, rather than when the next is due."""

    def __init__(self, writer: CheckpointWriter):
        self.writer = writer

    def __call__(self, _step: int, report: StepReport) -> None:
        """Look at what the ranks agreed on.

        Raises:
            CheckpointError: on every rank; the checkpoint before stands.
        """
        if report.status.write_failed:
            self.writer.wait()
