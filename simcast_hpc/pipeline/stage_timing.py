"""What a step of each stage takes on this machine: short runs of their own, on one another where they need one.

Stages that forecast with equal networks and batches are timed once, by the one of the longest horizon; a student as if
it were direct, since its stored pseudo-frames cost a read alone. An autoencoder is timed before its discriminator joins
and after. A denoiser stands on the timed autoencoder and forecast: what they learned means nothing, and their latents
take as long to learn from as any.
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

from .stage_process import start

logger = logging.getLogger(__name__)
_STEPS = 20
_INTERVAL = 5  # the first after a change pays for caches and allocations, and is not counted
_WHOLE_EVENT = 10**6  # a stride that leaves one window of each event: fewer latents to make, the same steps


class StepSeconds(NamedTuple):
    """Seconds of an optimizer step before a discriminator joins, and with it; where none does they are the same."""

    before: float
    after: float


def seconds_of_steps(config: PipelineConfig) -> dict[str, float]:
    """Return the seconds of an optimizer step of each stage, the mean over those that it was asked to take.

    What is made for it, in the folder ``timing`` of the pipeline's, is removed again.
    """
    folder = config.run_dir / "timing"
    shutil.rmtree(folder, ignore_errors=True)
    stages = {name: config.train_config(name) for name in config.stages}
    runs = short_runs(stages, folder)
    found: dict[Path, StepSeconds] = {}
    for run in runs.values():
        if run.run_dir not in found:
            start(run, "train", ranks=config.launch.ranks)
            found[run.run_dir] = step_seconds(read_metrics(RunDirectory(run.run_dir).metrics))
    shutil.rmtree(folder)
    return {name: mean_seconds(stage, found[runs[name].run_dir]) for name, stage in stages.items()}


def short_runs(stages: Mapping[str, TrainConfig], folder: Path) -> dict[str, TrainConfig]:
    """Return the short run that stands for each stage, in an order in which one can be run after the other."""
    found: dict[str, TrainConfig] = {}
    of_cost: dict[str, TrainConfig] = {}
    for name, stage in sorted(stages.items(), key=lambda pair: -pair[1].frames_out):
        if stage.stage in FORECASTING:
            kind = "direct" if stage.stage == "student" else stage.stage
            found[name] = of_cost.setdefault(_cost(stage), _short(stage, folder / name, stage=kind))
    found |= {
        name: _short_autoencoder(stage, folder / name) for name, stage in stages.items() if stage.stage == "autoencoder"
    }
    place_of = {stages[name].run_dir: run.run_dir for name, run in found.items()}
    return found | {
        name: _short_diffusion(stage, folder / name, place_of)
        for name, stage in stages.items()
        if stage.stage == "diffusion"
    }


def step_seconds(lines: Sequence[Mapping[str, Any]]) -> StepSeconds:
    """Return what the lines of a short run's metrics say of its steps."""
    seconds = {line["step"]: line["time/seconds_per_step"] for line in lines if "time/seconds_per_step" in line}
    before = fmean(each for step, each in seconds.items() if _INTERVAL < step <= _STEPS)
    after = [each for step, each in seconds.items() if step > _STEPS + _INTERVAL]
    return StepSeconds(before, fmean(after) if after else before)


def mean_seconds(stage: TrainConfig, seconds: StepSeconds) -> float:
    """Return the seconds of a step of ``stage``, the mean over all of them."""
    alone = min(1.0, stage.autoencoder.adversarial_start / stage.max_steps)
    return alone * seconds.before + (1.0 - alone) * seconds.after


def _cost(stage: TrainConfig) -> str:
    """Return what decides how long a step of a forecasting stage takes, but for its horizon."""
    whole = stage.model_copy(update={"data": stage.data.model_copy(update={"hold_out": None})})
    return whole.model_dump_json(include={"batch", "data", "engine", "ema", "model", "sequence"})


def _short(stage: TrainConfig, run_dir: Path, /, **changes: Any) -> TrainConfig:
    log = stage.log.model_copy(update={"every_steps": _INTERVAL})
    saved = stage.checkpoint.model_copy(update={"every_steps": 0})
    shared = {"run_dir": run_dir, "max_steps": _STEPS, "log": log, "checkpoint": saved}
    return stage.model_copy(update=shared | changes)


def _short_autoencoder(stage: TrainConfig, run_dir: Path) -> TrainConfig:
    begins, both = stage.autoencoder.adversarial_start, 0 < stage.autoencoder.adversarial_start < stage.max_steps
    chosen = stage.autoencoder.model_copy(update={"adversarial_start": _STEPS if begins else 0})
    data = stage.data.model_copy(update={"window_stride": _WHOLE_EVENT})
    return _short(stage, run_dir, max_steps=2 * _STEPS if both else _STEPS, autoencoder=chosen, data=data)


def _short_diffusion(stage: TrainConfig, run_dir: Path, place_of: Mapping[Path, Path]) -> TrainConfig:
    """Return a run on the short runs that stand for its own parts; parts from elsewhere it keeps."""
    below = stage.diffusion
    own = {"autoencoder": below.autoencoder, "student": below.student}
    parts = {part: place_of.get(path, path) for part, path in own.items() if path is not None}
    without = below.validation.model_copy(update={"every_steps": 0})
    fields = {**parts, "fold_students": None, "latents": "cached", "validation": without}
    chosen = below.model_copy(update=fields)
    data = stage.data.model_copy(update={"window_stride": _WHOLE_EVENT})
    return _short(stage, run_dir, diffusion=chosen, data=data)
