"""Metrics of training once per logging interval: loss, throughput, MFU, parts of a step, memory, slow ranks."""

import logging
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from simcast_hpc.config import TrainConfig
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.losses import ForecastLoss
from simcast_hpc.monitoring.device_memory import memory_metrics
from simcast_hpc.monitoring.metrics import MetricsWriter

from .learning_rate import learning_rate
from .loop import StepReport
from .step_timing import PARTS, StepTimer

logger = logging.getLogger(__name__)
_NAME_BYTES = 64


@dataclass(frozen=True)
class ComputeRate:
    """What is needed to compute FLOP/s and MFU (model FLOPs utilization).

    Attributes:
        flops_per_sample: of a forward and a backward pass of one sample.
        peak_flops: peak FLOP/s of a device in the precision of training; None if it is unknown.
    """

    flops_per_sample: float
    peak_flops: float | None

    def metrics(self, samples_per_second: float, ranks: int) -> dict[str, float]:
        """Return TFLOP/s per GPU, and MFU if the peak is known."""
        flops = samples_per_second * self.flops_per_sample / ranks
        rates = {"throughput/tflops_per_gpu": flops / 1e12}
        return rates if self.peak_flops is None else rates | {"throughput/mfu": flops / self.peak_flops}


class MetricsHook:
    """Called after every step; writes mean loss and its terms, learning rate and throughput once per logging interval.

    In between, losses stay on the device, so the loop synchronizes with it once per interval. Ranks are compared by one
    all-gather of a few numbers; names of hosts are exchanged once, at the start.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: TorchRanks,
        writer: MetricsWriter | None,
        engine: Any,
        timer: StepTimer,
        *,
        rate: ComputeRate | None = None,
    ):
        """Exchange the names of the hosts. A collective.

        Args:
            config: of the run.
            ranks: of the process group.
            writer: on rank 0.
            engine: DeepSpeed's engine.
            timer: of the parts of a step.
            rate: FLOPs for the compute rate; None writes no compute rate.
        """
        self.config, self.ranks, self.writer, self.engine, self.timer = config, ranks, writer, engine, timer
        self._rate = rate
        self._hosts = _host_names(ranks)
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
        # 1. Loss and throughput
        loss = self.ranks.mean(self._sum / self._steps).item()
        seconds = time.perf_counter() - self._since
        per_second = self._steps * self.config.batch.global_size / seconds
        metrics: dict[str, float | str] = {
            "loss": loss,
            "learning_rate": learning_rate(
                step - 1,
                max_steps=self.config.max_steps,
                config=self.config.optimizer,
                global_size=self.config.batch.global_size,
            ),
            "throughput/samples_per_second": per_second,
            "time/seconds_per_step": seconds / self._steps,
            "world_size": self.ranks.size,
        }
        if self._rate is not None:
            metrics |= self._rate.metrics(per_second, self.ranks.size)
        norm = self.engine.get_global_grad_norm()
        if norm is not None:
            metrics["gradient_norm"] = float(norm)
        terms = None if self._loss is None else self._loss.take_terms()
        if self._loss is not None and terms is not None:
            names = (f"loss/{name}" for name in self._loss.terms)
            metrics |= dict(zip(names, self.ranks.mean(terms).tolist(), strict=True))
        # 2. Parts of a step, memory, slow ranks
        parts = self.timer.take()
        metrics |= {f"time/{name}_seconds": parts[name] / self._steps for name in PARTS}
        metrics["time/data_wait_share"] = parts["reading"] / seconds
        metrics |= memory_metrics()
        metrics |= self._slowest_rank(step, parts)
        if self.writer is not None:
            self.writer.write(step, metrics)
        self._sum, self._steps, self._since = None, 0, time.perf_counter()

    def _slowest_rank(self, step: int, parts: dict[str, float]) -> dict[str, float | str]:
        """Return the rank that took longest to read and compute, and log it if it is much slower than the median."""
        factor = self.config.watch.straggler_factor
        if self.ranks.size == 1 or factor is None:
            return {}
        table = self.ranks.table([parts["reading"], parts["forward"]])
        if self.writer is None:
            return {}
        totals = table.sum(1)
        median, slowest = statistics.median(totals.tolist()), int(totals.argmax())
        for rank in (totals > factor * median).nonzero().flatten().tolist() if median > 0 else ():
            logger.warning(
                "slow rank up to step %d: rank %d on %s took %.3g s to read and %.3g s for forward passes; the median "
                "rank took %.3g s for both",
                step, rank, self._hosts(rank), *table[rank].tolist(), median,
            )  # fmt: skip
        ratio = float(totals[slowest]) / median if median > 0 else 1.0
        return {"slowest_rank": slowest, "slowest_rank/host": self._hosts(slowest), "slowest_rank/ratio": ratio}


def _host_names(ranks: TorchRanks) -> Callable[[int], str]:
    """Return a function from a rank to the name of its host. A collective."""
    if ranks.size == 1:
        return lambda _rank: socket.gethostname()
    own = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
    table = ranks.table([float(byte) for byte in own]).to(torch.uint8)
    return lambda rank: bytes(table[rank].tolist()).rstrip(b"\0").decode(errors="replace")
