"""Measure the seconds per step and per validation of each stage on this machine, with short runs.

Forecasting stages with equal networks and batches are timed once, by the stage of the longest horizon; a student is
timed as stage ``direct``, because reading its cached pseudo-frames costs little. An autoencoder is timed before and
after its discriminator is added. A denoiser is timed on the short runs of its autoencoder and student, because the
time of a step does not depend on their weights.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from simcast_hpc.config import FORECASTING, PipelineConfig, TrainConfig
from simcast_hpc.monitoring.metrics import read_metrics
from simcast_hpc.storage.run_directory import RunDirectory

from .stage_process import run_stage

logger = logging.getLogger(__name__)
_STEPS = 20
_INTERVAL = 5  # steps; the first interval after a change includes compilation and allocation and is not counted
_VALIDATION = "time/validation_seconds"
_WHOLE_EVENT = 10**6  # window stride that leaves one window per event: fewer latents, equal steps


class StepSeconds(NamedTuple):
    """Seconds per step before and after the discriminator is added (equal without one), and per validation."""

    before: float
    after: float
    validation: float = 0.0


class StageCost(NamedTuple):
    """Mean seconds per optimizer step, and seconds of the validations whose number does not depend on the steps."""

    step: float
    fixed: float = 0.0


def measure_costs(config: PipelineConfig) -> dict[str, StageCost]:
    """Return the cost of each stage, for its requested steps.

    The short runs are written to the folder ``timing`` of the run directory, which is removed.
    """
    folder = config.run_dir / "timing"
    shutil.rmtree(folder, ignore_errors=True)
    stages = {name: config.train_config(name) for name in config.stages}
    runs = short_runs(stages, folder)
    measured: dict[Path, StepSeconds] = {}
    for run in runs.values():
        if run.run_dir not in measured:
            run_stage(run, "train", ranks=config.launch.ranks, quiet=True)
            measured[run.run_dir] = step_seconds(read_metrics(RunDirectory(run.run_dir).metrics))
    shutil.rmtree(folder)
    return {name: stage_cost(stage, measured[runs[name].run_dir]) for name, stage in stages.items()}


def short_runs(stages: Mapping[str, TrainConfig], folder: Path) -> dict[str, TrainConfig]:
    """Return the short run that times each stage, in an order in which they can be run."""
    # 1. Forecasting stages; those of equal cost share the run of the longest horizon
    runs: dict[str, TrainConfig] = {}
    run_of_cost: dict[str, TrainConfig] = {}
    for name, stage in sorted(stages.items(), key=lambda pair: -pair[1].frames_out):
        if stage.stage in FORECASTING:
            kind = "direct" if stage.stage == "student" else stage.stage
            runs[name] = run_of_cost.setdefault(_cost(stage), _short(stage, folder / name, stage=kind))
    # 2. Autoencoders
    runs |= {
        name: _short_autoencoder(stage, folder / name) for name, stage in stages.items() if stage.stage == "autoencoder"
    }
    # 3. Diffusion, on the short runs above
    short_dir = {stages[name].run_dir: run.run_dir for name, run in runs.items()}
    return runs | {
        name: _short_diffusion(stage, folder / name, short_dir)
        for name, stage in stages.items()
        if stage.stage == "diffusion"
    }


def step_seconds(lines: Sequence[Mapping[str, Any]]) -> StepSeconds:
    """Return the mean seconds per step in the metrics of a short run, without the first interval after a change."""
    seconds = {line["step"]: line["time/seconds_per_step"] for line in lines if "time/seconds_per_step" in line}
    before = fmean(each for step, each in seconds.items() if _INTERVAL < step <= _STEPS)
    after = [each for step, each in seconds.items() if step > _STEPS + _INTERVAL]
    validation = [line[_VALIDATION] for line in lines if _VALIDATION in line]
    return StepSeconds(before, fmean(after) if after else before, fmean(validation) if validation else 0.0)


def stage_cost(stage: TrainConfig, seconds: StepSeconds) -> StageCost:
    """Return the cost of ``stage``.

    A fixed interval between validations adds to the time of a step; the default, a fraction of the steps, is a fixed
    number of validations.
    """
    share = min(1.0, stage.autoencoder.adversarial_start / stage.max_steps)
    step = share * seconds.before + (1.0 - share) * seconds.after
    if stage.stage not in FORECASTING:
        return StageCost(step)
    if stage.validation.every_steps is None:
        return StageCost(step, stage.validation.validations(stage.max_steps) * seconds.validation)
    interval = stage.validation.every_steps
    return StageCost(step + seconds.validation / interval if interval else step)


def _cost(stage: TrainConfig) -> str:
    """Return the fields that decide the time of a step of a forecasting stage, except its horizon."""
    all_events = stage.model_copy(update={"data": stage.data.model_copy(update={"hold_out": None})})
    return all_events.model_dump_json(include={"batch", "data", "engine", "ema", "model", "sequence", "validation"})


def _short(stage: TrainConfig, run_dir: Path, /, **changes: Any) -> TrainConfig:
    log = stage.log.model_copy(update={"every_steps": _INTERVAL})
    checkpoint = stage.checkpoint.model_copy(update={"every_steps": 0})
    shared = {"run_dir": run_dir, "max_steps": _STEPS, "log": log, "checkpoint": checkpoint}
    if stage.stage in FORECASTING and stage.validation.every_steps != 0:
        after_last_step = {"every_steps": _STEPS, "export": "last", "patience": None}
        shared["validation"] = stage.validation.model_copy(update=after_last_step)
    return stage.model_copy(update=shared | changes)


def _short_autoencoder(stage: TrainConfig, run_dir: Path) -> TrainConfig:
    start = stage.autoencoder.adversarial_start
    both = 0 < start < stage.max_steps
    autoencoder = stage.autoencoder.model_copy(update={"adversarial_start": _STEPS if start else 0})
    data = stage.data.model_copy(update={"window_stride": _WHOLE_EVENT})
    return _short(stage, run_dir, max_steps=2 * _STEPS if both else _STEPS, autoencoder=autoencoder, data=data)


def _short_diffusion(stage: TrainConfig, run_dir: Path, short_dir: Mapping[Path, Path]) -> TrainConfig:
    """Return a run on the short runs of this pipeline's autoencoder and student; runs from elsewhere are kept."""
    paths = {"autoencoder": stage.diffusion.autoencoder, "student": stage.diffusion.student}
    parts = {part: short_dir.get(path, path) for part, path in paths.items() if path is not None}
    validation = stage.diffusion.validation.model_copy(update={"every_steps": 0})
    fields = {**parts, "fold_students": None, "latents": "cached", "validation": validation}
    diffusion = stage.diffusion.model_copy(update=fields)
    data = stage.data.model_copy(update={"window_stride": _WHOLE_EVENT})
    return _short(stage, run_dir, diffusion=diffusion, data=data)
