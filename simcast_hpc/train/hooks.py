"""Hooks between optimizer steps: metrics, progress, checkpoints."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simcast_hpc.config import TrainConfig
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.losses import ForecastLoss
from simcast_hpc.monitoring.metrics import MetricsWriter

from .best_weights import BestWeights
from .checkpoint import CheckpointWriter
from .ema import EMA
from .learning_rate import learning_rate
from .loop import StepReport
from .stage_engine import StageEngine


class MetricsHook:
    """Called after every step; writes mean loss and its terms, learning rate and throughput once per logging interval.

    In between, losses stay on the device, so the loop synchronizes with it once per interval.
    """

    def __init__(self, config: TrainConfig, ranks: TorchRanks, writer: MetricsWriter | None, engine: Any):
        self.config, self.ranks, self.writer, self.engine = config, ranks, writer, engine
        loss = getattr(getattr(engine, "module", None), "loss", None)
        self._loss = loss if isinstance(loss, ForecastLoss) else None
        if self._loss is not None:
            self._loss.take_terms()  # of a warm-up with zeros
        self._sum: torch.Tensor | None = None
        self._steps = 0
        self._since = time.perf_counter()

    def __call__(self, step: int, report: StepReport) -> None:
        """Accumulate one step; at the end of an interval, write its metrics. A collective."""
        self._sum = report.loss if self._sum is None else self._sum + report.loss
        self._steps += 1
        if step % self.config.log.every_steps and step != self.config.max_steps:
            return
        loss = self.ranks.mean(self._sum / self._steps).item()
        seconds = time.perf_counter() - self._since
        rate = learning_rate(step - 1, max_steps=self.config.max_steps, config=self.config.optimizer)
        metrics = {
            "loss": loss,
            "learning_rate": rate,
            "throughput/samples_per_second": self._steps * self.config.batch.global_size / seconds,
            "time/seconds_per_step": seconds / self._steps,
        }
        norm = self.engine.get_global_grad_norm()
        if norm is not None:
            metrics["gradient_norm"] = float(norm)
        if torch.cuda.is_available():
            metrics["memory/peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        terms = None if self._loss is None else self._loss.take_terms()
        if self._loss is not None and terms is not None:
            names = (f"loss/{name}" for name in self._loss.terms)
            metrics |= dict(zip(names, self.ranks.mean(terms).tolist(), strict=True))
        if self.writer is not None:
            self.writer.write(step, metrics)
        self._sum, self._steps, self._since = None, 0, time.perf_counter()


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


class CheckpointHook:
    """Saves a checkpoint."""

    def __init__(
        self,
        writer: CheckpointWriter,
        engine: StageEngine,
        *,
        global_size: int,
        identity: Mapping[str, Any],
        ema: EMA | None = None,
        best: BestWeights | None = None,
    ):
        self.writer, self.engine, self.global_size, self.identity = writer, engine, global_size, identity
        self.ema, self.best = ema, best

    def __call__(self, step: int, _report: StepReport) -> None:
        """Start writing the checkpoint of ``step``. A collective."""
        self.writer.save(
            self.engine.engine,
            step=step,
            samples_seen=step * self.global_size,
            identity=self.identity,
            average=None if self.ema is None else self.ema.tensors,
            auxiliary=self.engine.auxiliary_state(),
            validation=None if self.best is None else self.best.state(),
        )


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
