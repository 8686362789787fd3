"""The hooks that observe a training run: metrics, progress, validation, profiler, watchdog."""

import logging
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch

from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.monitoring.metrics import MetricsWriter
from simcast_hpc.monitoring.profiler import StepProfiler
from simcast_hpc.monitoring.trackers import open_tracker
from simcast_hpc.planning.flops import training_flops
from simcast_hpc.planning.training_cost import device_peak_flops

from .best_weights import BestWeights
from .ema import EMA
from .heartbeats import STORE_SECONDS, Heartbeats
from .hooks import ProgressHook
from .loop import PeriodicHook
from .metrics_hook import ComputeRate, MetricsHook
from .spike_hook import SpikeHook
from .stage_engine import StageEngine
from .stages import Stage
from .step_timing import StepTimer
from .validation import ValidationHook
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .trainer import Plan

logger = logging.getLogger(__name__)


def monitoring_hooks(
    planned: "Plan",
    ranks: TorchRanks,
    engine: StageEngine,
    timer: StepTimer,
    ema: EMA | None,
    best: BestWeights | None,
    profiler: StepProfiler | None,
    *,
    first_step: int,
    resources: ExitStack,
) -> list[PeriodicHook]:
    """Return the hooks that observe training; ``resources`` closes their files and ends the watchdog. A collective."""
    config, directory = planned.config, planned.directory
    # 1. Files, tracker and progress bar of rank 0
    writer, rate, progress = None, None, []
    if ranks.is_first:
        directory.stacks.mkdir(exist_ok=True)  # NCCL's flight recorder writes there and creates no folder
        tracker = open_tracker(
            config.log.tracker,
            project=config.log.project,
            name=config.name,
            folder=directory.path,
            settings=config.science(),
        )
        writer = MetricsWriter(directory.metrics, directory.events, first_step=first_step, tracker=tracker)
        resources.callback(writer.close)
        rate = compute_rate(planned.stage, ranks.device)
        bar = ProgressHook(config, first_step=first_step)
        resources.callback(bar.close)
        progress = [PeriodicHook(1, bar)]
    # 2. Validation, watchdog, profiler
    validation = []
    if planned.validation is not None:
        hook = ValidationHook(planned.validation, engine.engine, ranks, ema, writer, best)
        validation = [PeriodicHook(planned.validation.every_steps, hook, part="validation")]
    heartbeats = None
    if ranks.size > 1:
        heartbeats = Heartbeats(
            partial(ranks.connect_to_store, timeout_seconds=STORE_SECONDS), rank=ranks.rank, ranks=ranks.size
        )
    watchdog = resources.enter_context(
        Watchdog(
            directory.stacks,
            limit_minutes=config.watch.hang_minutes,
            rank=ranks.rank,
            ranks=ranks.size,
            heartbeats=heartbeats,
        )
    )
    profiling = []
    if profiler is not None:
        resources.callback(profiler.close)
        profiling = [PeriodicHook(1, profiler)]
    return [
        PeriodicHook(1, MetricsHook(config, ranks, writer, engine.engine, timer, rate=rate)),
        PeriodicHook(1, SpikeHook(config.watch, directory.path / "spikes.jsonl")),
        *progress,
        *planned.stage.hooks(engine.engine, ranks, ema, writer),
        *validation,
        PeriodicHook(1, watchdog),
        *profiling,
    ]


def compute_rate(stage: Stage, device: torch.device) -> ComputeRate | None:
    """Return what turns throughput into FLOP/s and MFU on a GPU; None on a CPU.

    The FLOPs are those of the network and the loss that DeepSpeed trains, counted on the meta device: not those of a
    teacher that is rolled out online, of a discriminator or of the encoder of a diffusion run.
    """
    if device.type != "cuda":
        return None
    config = stage.config
    with torch.device("meta"):
        module, sample = stage.module(), stage.example_sample(config.batch.micro_size, torch.device("meta"))
    # A peak of TF32 is not in the table; IEEE fp32 would give an MFU above 1.
    name, precision = torch.cuda.get_device_name(device), config.engine.precision
    peak = None if config.engine.tf32 else device_peak_flops(name, precision)
    if peak is None:
        logger.info("the peak FLOP/s of %s in %s is unknown: metrics contain no MFU", name, precision)
    return ComputeRate(training_flops(module, *sample) / config.batch.micro_size, peak)
