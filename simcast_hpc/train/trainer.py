"""One training run, from its configuration to its exported weights.

:func:`plan` does everything that needs no device; :func:`run` then joins the ranks, builds the engine, resumes, trains
and exports. What is trained is defined by the stage (``stages/``), how a step is taken by ``loop.py``.
"""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from simcast_hpc.config import TrainConfig
from simcast_hpc.data.crop_positions import CropPositions, training_grid
from simcast_hpc.data.dataset_spec import warn_about_name
from simcast_hpc.data.frame_share import frame_share
from simcast_hpc.data.importance_sampling import training_order
from simcast_hpc.data.loader import micro_batches, prefetch_to_device, warn_about_cores
from simcast_hpc.data.open_windows import description_hash, open_windows, source_spec, target_spec
from simcast_hpc.data.sample_order import SampleOrder, random_integer
from simcast_hpc.data.shared_reads import SharedReads, share_reads, shared_read
from simcast_hpc.data.window_source import ArraySource
from simcast_hpc.distributed.deterministic_algorithms import deterministic_algorithms
from simcast_hpc.distributed.engine import build_engine, deepspeed_config, set_learning_rate
from simcast_hpc.distributed.partitioned_init import build_partitioned
from simcast_hpc.distributed.partitions import write_fragments
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group, set_flight_recorder
from simcast_hpc.distributed.ranks import SINGLE_RANK, Ranks, find_rank
from simcast_hpc.distributed.row_shards import RowShards
from simcast_hpc.distributed.spatial_groups import join_spatial_groups
from simcast_hpc.models.fp32_precision import fp32_precision
from simcast_hpc.monitoring.device_memory import snapshot_on_out_of_memory
from simcast_hpc.monitoring.profiler import ProfileRequest, StepProfiler
from simcast_hpc.monitoring.stop_request import StopReason, StopRequest
from simcast_hpc.monitoring.trackers import require_tracker
from simcast_hpc.storage.atomic_files import write_tensors
from simcast_hpc.storage.directory_lock import DirectoryLock, hold_directory
from simcast_hpc.storage.run_directory import RunDirectory, file_hash

from .best_weights import BestWeights
from .checkpoint import Checkpoint, CheckpointError, CheckpointWriter, latest, newest_intact, reject_another_run
from .compiled_network import capture_network, compile_network
from .ema import EMA
from .forecast_validation import ForecastValidation, higher_is_better
from .hooks import CheckpointClock, CheckpointHook, TimedCheckpointHook, WaitForWriterHook, WriteFailureHook
from .learning_rate import adam_betas, learning_rate
from .loop import DeviceBatch, NonFiniteGuard, PeriodicHook, train
from .monitoring_hooks import monitoring_hooks
from .resumed_reduction import with_stored_reduction
from .stage_engine import StageEngine
from .stages import STAGES, Stage
from .step_status import StatusReduction
from .step_timing import StepTimer
from .stop_errors import raise_for, reject_stop_file
from .validation import Validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check that needs no device.

    Attributes:
        config: fitted to the grid of the data; the stage has the same one.
        stage: what is trained.
        directory: where the run writes.
        order: window of each sample.
        sampled_by: hash of the rain statistics that the order depends on; None for uniform sampling.
        validation: scores weights during training; None without validation.
        profile: steps and ranks that are profiled.
    """

    config: TrainConfig
    stage: Stage
    directory: RunDirectory
    order: SampleOrder
    sampled_by: str | None = None
    validation: Validation | None = None
    profile: ProfileRequest | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run: scientific configuration, data, weights of other runs."""
        return {
            **self.config.science(),
            "data description": description_hash(self.config.data),
            "data fingerprint": self.stage.source.fingerprint,
            **({} if self.sampled_by is None else {"data sampling": self.sampled_by}),
            **self.stage.inputs,
        }


def plan(config: TrainConfig) -> Plan:
    """Check a run as far as possible without a device.

    Raises:
        ConfigError: the configuration is invalid for these ranks or this data, or an input run is missing.
        DataError: the data cannot be read.
    """
    config = with_stored_reduction(config)
    deepspeed_config(config, world_size=find_rank(os.environ).world_size)  # rejects batch, ranks and options
    require_tracker(config.log.tracker)
    stage_type = STAGES[config.stage]
    source = open_windows(config.data, split="train", frames=stage_type.window_frames(config))
    config = stage_type.fit_config(config, training_grid(config.data, source.grid))
    stage = stage_type(config, source)
    stage.check_row_shards(config.parallel.spatial)
    order, sampled_by = shared_read(("order",), lambda: training_order(config.data, source, seed=config.seed))
    return Plan(config, stage, RunDirectory(config.run_dir), order, sampled_by, stage.open_validation())


def run(
    config: TrainConfig,
    *,
    announce: Callable[[TrainConfig], None] | None = None,
    profile: ProfileRequest | None = None,
) -> None:
    """Train one stage to its last step, resuming from the newest checkpoint if there is one.

    Args:
        config: of the run.
        announce: called with the fitted configuration once every check has passed and training is about to start.
        profile: steps and ranks to profile; the traces are written to the folder ``profile`` of the run directory.

    Raises:
        ConfigError, DataError: the run cannot start, for example because another process trains in its directory.
        CheckpointError: the checkpoints belong to another run, are all damaged, or cannot be written, for example
            because the lock on the run directory was lost.
        NonFiniteLossError: the loss became NaN or infinite; the last checkpoint is kept.
        PausedError: a signal asked the run to exit; its state is saved.
        StoppedError: a STOP file keeps the run from starting or ends it; its state is saved.
    """
    rank_info = find_rank(os.environ)
    # 1. What needs no file, before the ranks join
    deepspeed_config(config, world_size=rank_info.world_size)
    stop_request = StopRequest((config.run_dir, config.run_dir.parent), checks_files=rank_info.rank == 0)
    # Settings of the process, restored for callers in Python
    settings = deterministic_algorithms(config.engine.deterministic), fp32_precision(tf32=config.engine.tf32)
    with stop_request.handle_signals(), settings[0], settings[1]:
        # 2. Checks; a rejected run changes nothing in its directory. One process joins its group only after them
        ranks = None
        try:
            if rank_info.world_size > 1:
                ranks = _join(config)
            planned, marker = _plan_together(config, SINGLE_RANK if ranks is None else ranks)
            planned = replace(planned, profile=profile)
            if marker is not None:
                logger.info("%s is finished after %d steps; nothing to do", config.run_dir, marker.get("steps"))
                return
            if rank_info.rank == 0:
                warn_about_name(config.name, target_spec(config.data))
                warn_about_cores(config.data.workers, cores=len(os.sched_getaffinity(0)))
            # 3. Announcement, only now: an error below a hundred lines of configuration is overlooked
            if announce is not None:
                announce(planned.config)
            # 4. Training; the lock comes before anything is written or removed
            (SINGLE_RANK if ranks is None else ranks).on_first(planned.directory.create)
            ranks = ranks or _join(config)
            with hold_directory(config.run_dir, f"training (stage {config.stage})", ranks=ranks) as lock:
                with ranks.together():
                    if ranks.is_first:
                        data = planned.config.data
                        own = source_spec(data) if data.dataset is None else None
                        planned.directory.prepare(planned.config, own)
                _train(planned, ranks, stop_request, lock)
        finally:
            if ranks is not None:
                ranks.leave()


def _join(config: TrainConfig) -> TorchRanks:
    set_flight_recorder(RunDirectory(config.run_dir).stacks)
    ranks = join_process_group(timeout_minutes=config.engine.timeout_minutes)
    if not ranks.is_first:  # rank 0 shows them for all; only now, because imports add filters of their own
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
    return ranks


def _plan_together(config: TrainConfig, ranks: Ranks) -> tuple[Plan, dict[str, Any] | None]:
    """Return the plan, equal on all ranks, and the marker of the run if it is finished. A collective.

    Rank 0 reads catalogs, indices and the run directory, and decides for all ranks. The others read what they need of
    the weights of other runs.
    """
    own: list[Plan] = []

    def on_first_rank() -> tuple[SharedReads, dict[str, Any] | None]:
        reads = SharedReads()
        with share_reads(reads):
            own.append(plan(config))
        if (validation := own[0].validation) is not None:
            _ = validation.source.fingerprint  # computed here, it is sent with the source, like that of the identity
        marker = own[0].directory.finished(own[0].identity)
        if marker is None:
            reject_another_run(own[0].directory.checkpoints, own[0].identity)
            reject_stop_file((config.run_dir, config.run_dir.parent))
        return reads, marker

    reads, marker = ranks.on_first(on_first_rank)
    with ranks.together(), share_reads(reads):
        return (own[0] if own else plan(config)), marker


def _train(planned: Plan, ranks: TorchRanks, stop_request: StopRequest, lock: DirectoryLock) -> None:
    config, stage, directory = planned.config, planned.stage, planned.directory
    # 1. Network: initial weights are a function of the seed; other runs are loaded before and draw no random numbers
    torch.manual_seed(config.seed)
    shards, unit = join_spatial_groups(config.parallel.spatial, device=ranks.device)
    module = build_partitioned(stage.module, config, ranks, unit=unit)
    stage.initialize(module.get_submodule("model"))
    stage.shard_rows(module, shards)
    # 2. Windows and engine
    windows = stage.prepare(ranks)
    if planned.validation is not None:
        planned.validation.prepare(ranks)
    engine = stage.wrap_engine(build_engine(module, config, ranks, unit=unit), ranks)
    if config.engine.compile:
        compile_network(module)
    if config.engine.cuda_graph:
        capture_network(module)
    ema = EMA(config.ema, engine.engine, ranks) if config.ema.decay is not None else None
    # 3. Resume
    best = _best_weights(planned, ranks, lock)
    first_step = _resume(planned, engine, ranks, ema, best)
    # 4. Train
    writer = CheckpointWriter(
        directory.checkpoints,
        keep=config.checkpoint.keep,
        ranks=ranks,
        timeout_minutes=config.engine.timeout_minutes,
        check_owner=lock.check,
    )
    clock = CheckpointClock(config.checkpoint.every_minutes, is_first=ranks.is_first)
    timer = StepTimer(ranks.device, nvtx=config.log.nvtx)
    profiler = None
    if planned.profile is not None:
        profiler = StepProfiler(planned.profile, directory.profile, rank=ranks.rank, first_step=first_step)

    def before_step(step: int) -> None:
        set_learning_rate(
            engine.engine,
            learning_rate(
                step, max_steps=config.max_steps, config=config.optimizer, global_size=config.batch.global_size
            ),
            betas=adam_betas(step, max_steps=config.max_steps, config=config.optimizer),
        )
        if profiler is not None:
            profiler.before_step(step)

    snapshot = snapshot_on_out_of_memory(directory.memory, rank=ranks.rank, history=config.log.memory_history)
    with snapshot, ExitStack() as resources:
        step, reason = train(
            engine,
            _device_batches(planned, windows, ranks, shards, first_step=first_step),
            first_step=first_step,
            max_steps=config.max_steps,
            before_step=before_step,
            reduce_status=StatusReduction(
                ranks.maximum, stop_request=stop_request, write_failed=writer.failed, save_due=clock.due
            ),
            guard=NonFiniteGuard(config.watch.most_skipped if config.watch.non_finite == "skip" else 0),
            timer=timer,
            hooks=[
                PeriodicHook(1, WriteFailureHook(writer)),
                *([] if ema is None else [PeriodicHook(1, ema)]),
                *monitoring_hooks(
                    planned, ranks, engine, timer, ema, best, profiler, first_step=first_step, resources=resources
                ),
                *_checkpoint_hooks(planned, writer, engine, ema, best, clock),
            ],
            ended=lambda: best is not None and best.stopped,
        )
    writer.wait()
    if reason != StopReason.NONE:
        cause = next(filter(None, ranks.gather(stop_request.cause)))
        raise_for(reason, cause=cause, saved=f"saved at step {step}")
    # 5. Export
    checkpoint = latest(directory.checkpoints, ranks)
    assert checkpoint is not None, "the last step saves a checkpoint"
    metadata = stage.export_metadata(checkpoint, ranks)
    with ranks.together():
        if ranks.is_first:
            lock.check()
            _export(planned, checkpoint, metadata, best)


def _best_weights(planned: Plan, ranks: TorchRanks, lock: DirectoryLock) -> BestWeights | None:
    """Return the choice of the best weights, which the forecasting stages have."""
    if not isinstance(planned.validation, ForecastValidation):
        return None
    return BestWeights(
        planned.directory.best,
        planned.config.validation,
        higher_is_better=higher_is_better(planned.config.validation.score),
        checkpoints=planned.directory.checkpoints,
        fingerprint=planned.validation.fingerprint,
        ranks=ranks,
        check_owner=lock.check,
    )


def _device_batches(
    planned: Plan, windows: ArraySource, ranks: TorchRanks, shards: RowShards, *, first_step: int
) -> Iterator[DeviceBatch]:
    """Yield this rank's micro-batches after ``first_step`` steps, on the device, each with its seed for dropout.

    The ranks of a spatial group read each window together, if they can.
    """
    config, stage = planned.config, planned.stage
    crops = None
    if config.data.cropping is not None:
        crops = CropPositions(config.data, target_spec(config.data), seed=config.seed)
    share = frame_share(windows, crops, rank=shards.rank, size=shards.size)
    batches = micro_batches(
        windows if share is None else share,
        seed=config.seed,
        first_step=first_step,
        global_size=config.batch.global_size,
        micro_size=config.batch.micro_size,
        rank=ranks.rank // config.parallel.spatial,
        world_size=config.parallel.groups(ranks.size),
        workers=config.data.workers,
        extension=stage.extension,
        order=planned.order,
        crops=crops,
    )
    for batch in prefetch_to_device(batches, ranks.device):
        if share is not None:
            batch = batch._replace(windows=share.complete(batch.windows, shards.gather_rows))
        yield DeviceBatch(
            stage.sample(batch),
            names=lambda batch=batch: [str(windows.key(index)) for index in batch.indices],
            seed=random_integer(batch.positions[0], seed=config.seed, purpose="dropout", choices=2**63),
        )


def _checkpoint_hooks(
    planned: Plan,
    writer: CheckpointWriter,
    engine: StageEngine,
    ema: EMA | None,
    best: BestWeights | None,
    clock: CheckpointClock,
) -> list[PeriodicHook]:
    config, size = planned.config.checkpoint, planned.config.batch.global_size
    save = CheckpointHook(writer, engine, global_size=size, identity=planned.identity, ema=ema, best=best, clock=clock)
    return [
        PeriodicHook(1, TimedCheckpointHook(save), part="checkpoint"),
        PeriodicHook(config.every_steps, save, before_exit=True, part="checkpoint"),
        PeriodicHook(1, WaitForWriterHook(writer, ahead_steps=config.ahead_steps), part="checkpoint"),
    ]


def _resume(planned: Plan, engine: StageEngine, ranks: TorchRanks, ema: EMA | None, best: BestWeights | None) -> int:
    """Restore the newest intact checkpoint and return its step; 0 if there is none."""
    checkpoint = newest_intact(planned.directory.checkpoints, ranks)
    if best is not None:
        best.restore(checkpoint)
    if checkpoint is None:
        return 0
    with ranks.together():
        checkpoint.require(planned.identity)
        checkpoint.check_names(engine.engine)

    def warm_up() -> torch.Tensor:
        return planned.stage.warm_up(engine.engine, ranks.device)

    write_fragments(engine.engine, checkpoint.read, ranks, step=checkpoint.step, warm_up=warm_up)
    with ranks.together(CheckpointError):
        auxiliary = checkpoint.auxiliary()
        if ema is not None:
            ema.restore(functools.partial(checkpoint.read, "ema"))
    engine.restore_auxiliary(auxiliary, step=checkpoint.step)
    checkpoint.close()
    read, opened = checkpoint.bytes_read / 2**20, checkpoint.opened
    logger.info("resumed from %s (%d files opened, %.1f MiB read by this rank)", checkpoint.path, opened, read)
    return checkpoint.step


def _export(planned: Plan, checkpoint: Checkpoint, metadata: Mapping[str, str], best: BestWeights | None) -> None:
    """Export the weights of a checkpoint, or the best ones, with their metadata, and mark the run as finished."""
    path = planned.directory.weights
    path.parent.mkdir(exist_ok=True)
    results: dict[str, Any] = {"steps": checkpoint.step, **metadata}
    weights = checkpoint.model_weights() if best is None else best.exported(checkpoint)
    if best is not None:
        results["validation"] = best.description(checkpoint)
    write_tensors(path, weights, metadata=metadata)
    planned.directory.finish(planned.identity, weights=file_hash(path), **results)
