"""One training run, from its configuration to its weights: checked, resumed where it stopped, marked at its end."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from simcast_hpc.config import TrainConfig
from simcast_hpc.data.loader import MicroBatch, micro_batches, prefetch_to_device
from simcast_hpc.data.open_windows import description_hash, open_windows
from simcast_hpc.data.sample_order import draw
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.gradients import gradients_are_finite, leave_out_step
from simcast_hpc.distributed.named_tensors import write_state
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group
from simcast_hpc.distributed.ranks import find_rank
from simcast_hpc.monitoring.metrics import MetricsWriter
from simcast_hpc.monitoring.stop_request import StopReason, StopRequest
from simcast_hpc.storage.atomic_files import write_tensors
from simcast_hpc.storage.run_directory import RunDirectory, file_hash
from simcast_hpc.train.checkpoint import Checkpoint, CheckpointWriter, latest, newest_whole, reject_another_run
from simcast_hpc.train.ema import EMA
from simcast_hpc.train.hooks import CheckpointHook, MetricsHook, ProgressHook, WaitForWriterHook, WriteFailureHook
from simcast_hpc.train.loop import DeviceBatch, Every, Gradients, train
from simcast_hpc.train.watchdog import Watchdog

from .anomaly_hooks import SpikeHook, StragglerHook
from .learning_rate import learning_rate
from .preemption import raise_for, reject_stop_file
from .stages import AnyStage, make_stage, make_task
from .stages.base import ExtraState, Task
from .step_status import Agreement
from .step_timing import StepTimer

logger = logging.getLogger(__name__)
_PREFIX = "model."


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check that needs no device; its configuration names the grid of its data."""

    config: TrainConfig
    stage: AnyStage
    source: WindowSource
    task: Task
    folder: RunDirectory

    @property
    def identity(self) -> dict[str, Any]:
        """What the run's state belongs to: the science of its configuration, its data, its teacher."""
        return {
            **self.config.science(),
            "data description": description_hash(self.config.data),
            "data fingerprint": self.source.fingerprint,
            **self.stage.inputs,
        }


def plan(config: TrainConfig) -> Plan:
    """Check a run as far as that goes without a device.

    Raises:
        ConfigError: the configuration cannot be run here.
        DataError: the data cannot be used.
    """
    ranks = find_rank(os.environ).world_size
    config.batch.accumulation_steps(ranks)
    config.engine.reject_ranks(ranks)
    stage = make_stage(config)
    source = open_windows(config.data, split="train", frames=stage.sequence_frames)
    task = make_task(config, stage, source)
    return Plan(task.config, stage, source, task, RunDirectory(config.run_dir))


def run(config: TrainConfig, *, announce: Callable[[TrainConfig], None] | None = None) -> None:
    """Train one stage to its end, from its newest checkpoint where there is one.

    Args:
        config: of the run.
        announce: is given the configuration when every check is passed and training is about to begin.

    Raises:
        ConfigError, DataError: the run cannot begin.
        CheckpointError: a checkpoint is of another run, or cannot be written; or none of them is whole.
        NonFiniteLossError: the loss is no number any more; the last checkpoint stands.
        PausedError: a signal asked the run to leave; its state is saved.
        StoppedError: a STOP file keeps it from starting or from going on.
    """
    rank_info = find_rank(os.environ)
    request = StopRequest((config.run_dir, config.run_dir.parent), checks_files=rank_info.rank == 0)
    with request.handle_signals():
        _run(config, request, announce)


def _run(config: TrainConfig, request: StopRequest, announce: Callable[[TrainConfig], None] | None) -> None:
    ready = plan(config)
    done = ready.folder.finished(ready.identity)
    if done is not None:
        logger.info("%s is done after %d steps: nothing to do", config.run_dir, done["steps"])
        return
    reject_another_run(ready.folder.checkpoints, ready.identity)
    reject_stop_file((config.run_dir, config.run_dir.parent))
    if announce is not None:
        announce(ready.config)  # not before: a refusal under a hundred lines of configuration is not read
    if find_rank(os.environ).rank == 0:
        ready.folder.prepare(ready.config)  # only now: a refused run must not touch the configuration of what stands
    ranks = join_process_group(timeout_minutes=config.engine.timeout_minutes)
    try:
        _train(ready, ranks, request)
    finally:
        ranks.leave()


def _train(ready: Plan, ranks: TorchRanks, request: StopRequest) -> None:
    config, folder = ready.config, ready.folder
    torch.manual_seed(config.seed)
    module = ready.task.module()
    ready.stage.initialise(module.get_submodule("model"))
    ready.stage.open(ready.source, ranks.device)  # after it was copied from: a teacher at work may be bf16
    engine = build_engine(module, config, ranks)
    learner = ready.task.learner(engine, ranks)
    beside = None if learner is engine else learner
    ema = EMA(config.ema, engine, ranks) if config.ema.decay is not None else None
    first_step = _resume(ready, engine, ranks, ema, beside)
    writer = CheckpointWriter(
        folder.checkpoints, keep=config.checkpoint.keep, ranks=ranks, timeout_minutes=config.engine.timeout_minutes
    )
    timer = StepTimer(ranks.device)
    watchdog = Watchdog(
        folder.path / "stacks", limit_minutes=config.watch.hang_minutes,
        rank=ranks.rank, ranks=ranks.size,
    )  # fmt: skip
    save = CheckpointHook(
        writer, engine, global_size=config.batch.global_size, identity=ready.identity, ema=ema, beside=beside
    )
    with watchdog, ExitStack() as closing:
        shown = _shown(ready, ranks, engine, timer, ema, first_step=first_step, closing=closing)
        averaged = [] if ema is None else [Every(1, ema)]
        saving = [
            Every(1, WriteFailureHook(writer)),
            Every(config.checkpoint.every_steps, save, on_leaving=True),
            Every(1, WaitForWriterHook(writer, ahead_steps=config.checkpoint.ahead_steps)),
        ]
        step, ask = train(
            learner,
            _prepared(ready, ranks, first_step=first_step),
            first_step=first_step,
            max_steps=config.max_steps,
            before=lambda step: set_learning_rate(
                engine, learning_rate(step, max_steps=config.max_steps, config=config.optimizer)
            ),
            agree=Agreement(ranks.maximum, ask=request, write_failed=writer.failed),
            gradients=Gradients(
                gradients_are_finite if beside is None else lambda _: beside.gradients_are_finite(),
                leave_out_step if beside is None else lambda _: beside.leave_out_step(),
                most_skipped=config.watch.most_skipped if config.watch.non_finite == "skip" else 0,
            ),
            timer=timer,
            after=[*averaged, *shown, Every(1, watchdog), *saving],
        )
    writer.wait()
    if ask != StopReason.NONE:
        cause = next(filter(None, ranks.gather(request.cause)))
        raise_for(ask, cause=cause, saved=f"saved at step {step}")
    checkpoint = latest(folder.checkpoints)
    assert checkpoint is not None, "the last step saves a checkpoint"
    beside_weights = ready.task.exported(checkpoint, ranks)
    with ranks.together():
        if ranks.is_first:
            _finish(ready, checkpoint, beside_weights)


def _shown(
    ready: Plan,
    ranks: TorchRanks,
    engine: Any,
    timer: StepTimer,
    ema: EMA | None,
    *,
    first_step: int,
    closing: ExitStack,
) -> list[Every]:
    """Return the hooks that tell how training goes; what they hold open is closed with ``closing``."""
    config, folder = ready.config, ready.folder
    writer = None
    hooks = [
        Every(1, SpikeHook(config.watch, folder.path / "spikes.jsonl")),
        Every(config.log.every_steps, StragglerHook(config.watch, ranks, timer)),
    ]
    if ranks.is_first:
        writer = MetricsWriter(folder.metrics, folder.events, first_step=first_step)
        progress = ProgressHook(config, first_step=first_step)
        closing.callback(writer.close)
        closing.callback(progress.close)
        hooks.append(Every(1, progress))
    validating = ready.task.hooks(engine, ranks, ema, writer)
    return [Every(1, MetricsHook(config, ranks, writer, engine)), *hooks, *validating]


def _prepared(ready: Plan, ranks: TorchRanks, *, first_step: int) -> Iterator[DeviceBatch]:
    config, source = ready.config, ready.task.prepare(ranks)
    batches = micro_batches(
        source,
        seed=config.seed,
        first_step=first_step,
        global_size=config.batch.global_size,
        micro_size=config.batch.micro_size,
        rank=ranks.rank,
        world_size=ranks.size,
        workers=config.data.workers,
        extension=ready.stage.extension,
    )

    def names(batch: MicroBatch) -> list[str]:
        return [str(source.key(index)) for index in batch.indices]

    for batch in prefetch_to_device(batches, ranks.device):
        # Dropout draws from torch's generator: begun anew for each micro batch, a resumed run meets the same masks.
        torch.manual_seed(draw(batch.positions[0], seed=config.seed, purpose="dropout", choices=2**63))
        yield DeviceBatch(ready.stage.sample(batch, ranks.device), lambda batch=batch: names(batch))


def _resume(ready: Plan, engine: Any, ranks: TorchRanks, ema: EMA | None, beside: ExtraState | None) -> int:
    """Put the newest checkpoint into the engine and return its step; 0 where there is none."""
    checkpoint = newest_whole(ready.folder.checkpoints, ranks)
    if checkpoint is None:
        return 0
    with ranks.together():
        checkpoint.require(ready.identity)
        checkpoint.check_names(engine)

    def warm_up() -> torch.Tensor:
        return ready.task.warm_up(engine, ranks.device)

    write_state(engine, checkpoint.tensors, step=checkpoint.step, warm_up=warm_up)
    if beside is not None:
        beside.restore(checkpoint.beside(), step=checkpoint.step)
    if ema is not None:
        ema.restore(checkpoint.average)
    logger.info("resumed from %s", checkpoint.path)
    return checkpoint.step


def _finish(ready: Plan, checkpoint: Checkpoint, beside: Mapping[str, str]) -> None:
    """Export the weights from the last checkpoint, with what stands ``beside`` them, and mark the run as done."""
    found = checkpoint.weights().items()
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in found if name.startswith(_PREFIX)}
    path = ready.folder.weights
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, weights, metadata=beside)
    ready.folder.finish(ready.identity, steps=checkpoint.step, weights=file_hash(path), **beside)
