"""Stages in order, each a child process of its own; what stands is skipped, what was cut short goes on.

synthetic archive (if asked for) -> trained stages -> verification -> page. Markers decide, not memory: a stage is
done when its ``DONE.json`` names equal inputs; the pipeline's own ``DONE.json`` comes last.
"""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from simcast_hpc.config import (
    FORECASTING,
    ConfigError,
    DataConfig,
    PipelineConfig,
    SimcastError,
    TestSetConfig,
    TrainConfig,
    read_config,
    to_yaml,
)
from simcast_hpc.data.open import coded_as, open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.distributed.place import find_place
from simcast_hpc.forecast.ensemble import load_run
from simcast_hpc.forecast.load import forecast_device
from simcast_hpc.models import fitted_to, grid_of
from simcast_hpc.observe.log import set_up_logging
from simcast_hpc.observe.metrics import read_metrics
from simcast_hpc.observe.run_folder import RunFolder, refuse_another, write_whole
from simcast_hpc.report import write_page
from simcast_hpc.verification.evaluate import (
    TestSet,
    baseline_entry,
    evaluate,
    protocols_of,
    run_entry,
)

logger = logging.getLogger("simcast")
_TIMED_STEPS = 20
_FEWEST_STEPS = 20
_REFUSED = 2
_OWN_FOLDERS = {"archive", "page", "scores", "timing"}


class PipelineError(SimcastError, RuntimeError):
    """A stage's process failed; what it printed says why, and a restart goes on from there."""


def run_pipeline(asked: PipelineConfig) -> Path:
    """Run what ``asked`` describes to its end and return the page.

    Raises:
        ConfigError, DataError: the pipeline cannot begin; nothing was trained.
        PipelineError: a stage failed.
    """
    set_up_logging(0)
    if find_place(os.environ).world_size > 1:
        raise ConfigError("start the pipeline as one process and give the ranks of its stages by launch.ranks")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a stage ends with its pipeline
    config = _continue_or_refuse(asked)
    folder = RunFolder(config.run_dir)
    durations = Durations(config.run_dir / "durations.json")
    _check_names(config)
    folder.make()
    if config.synthesis is not None:
        with durations.of("archive"):
            _synthesise(config)
    _check_data(config)
    folder.prepare(config)
    if config.time_budget_minutes is not None and config.asked_steps is None:
        with durations.of("timing"):
            config = _fix_steps(config)
        folder.prepare(config)
    for name in config.stages:
        with durations.of(name):
            _train(config, name)
    with durations.of("verification"):
        _verify(config)
    page = write_page(config.run_dir)
    weights = {name: RunFolder(config.run_dir / name).done.read_text(encoding="utf-8") for name in config.stages}
    folder.finish(
        {"stages": {name: json.loads(text)["weights"] for name, text in weights.items()}}, page=str(page.name)
    )
    return page


class Durations:
    """Wall seconds of each part, added up over restarts."""

    def __init__(self, path: Path):
        self._path = path
        self._name = ""
        self._since = 0.0

    def of(self, name: str) -> "Durations":
        """Name the part that a ``with`` block runs."""
        self._name = name
        return self

    def __enter__(self) -> None:
        logger.info("-- %s", self._name)
        self._since = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        spent = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
        spent[self._name] = round(spent.get(self._name, 0.0) + time.perf_counter() - self._since, 1)
        write_whole(self._path, json.dumps(spent, indent=1))


def _continue_or_refuse(asked: PipelineConfig) -> PipelineConfig:
    """Return ``asked`` with the steps that an earlier start in the same folder fixed.

    Raises:
        ConfigError: the folder holds stages of another configuration: they stay as they are.
    """
    path = RunFolder(asked.run_dir).config
    begun = [name for name in asked.stages if (asked.run_dir / name / "checkpoints").is_dir()]
    if not path.is_file() or not begun:
        return asked
    before = read_config(PipelineConfig, path)
    original = before if before.asked_steps is None else _with_steps(before, before.asked_steps, asked=None)
    refuse_another(_science(original, begun), _science(asked, begun), where=asked.run_dir)
    if before.asked_steps is None or asked.stages.keys() != before.stages.keys():
        return asked
    fixed = {name: before.train_config(name).max_steps for name in before.stages}
    return _with_steps(asked, fixed, asked=before.asked_steps)


def _science(config: PipelineConfig, names: list[str]) -> dict[str, object]:
    """Return what decides the results of some stages, by dotted key."""
    made: dict[str, object] = {}
    if config.synthesis is not None:
        made |= {f"synthesis.{key}": value for key, value in config.synthesis.model_dump(mode="json").items()}
    for name in names:
        if name in config.stages:
            made |= {f"{name}: {key}": value for key, value in config.train_config(name).science().items()}
    return made


def _with_steps(config: PipelineConfig, steps: dict[str, int], *, asked: dict[str, int] | None) -> PipelineConfig:
    stages = {name: {**fields, "max_steps": steps[name]} for name, fields in config.stages.items()}
    return config.model_copy(update={"stages": stages, "asked_steps": asked})


def _check_names(config: PipelineConfig) -> None:
    """Refuse what names something that does not exist, before anything is made."""
    spec = coded_as(config.data)
    protocols_of(spec, config.evaluation.protocols)
    for name in config.evaluation.baselines:
        baseline_entry(name, config.data)
    taken = sorted(_OWN_FOLDERS & config.stages.keys())
    if taken:
        raise ConfigError(f"stages.{taken[0]}: the run folder has a {taken[0]} of its own; give the stage another name")
    kinds = {config.train_config(name).stage for name in config.stages}
    if config.time_budget_minutes is not None and not kinds & {"direct", "teacher"}:
        raise ConfigError("time_budget_minutes wants a stage of kind direct or teacher, whose steps can be timed")
    names = ["test", *(one.name for one in config.evaluation.also)]
    if len(set(names)) != len(names):
        raise ConfigError(f"evaluation.also repeats a name, or uses 'test': {names[1:]}; give each its own")


def _synthesise(config: PipelineConfig) -> None:
    wanted = config.synthesis
    assert wanted is not None
    if config.data.root is None:
        raise ConfigError("synthesis needs data.root, the folder that the archive is written to")
    events = {"train": wanted.train_events, "val": wanted.val_events, "test": wanted.test_events}
    made = write_archive(
        config.data.root,
        seed=wanted.seed,
        events=events,
        size=wanted.size,
        frames_per_event=wanted.frames_per_event,
    )
    logger.info("%s in %s", "synthetic archive written" if made else "synthetic archive stands", config.data.root)


def _check_data(config: PipelineConfig) -> None:
    """Open every data set once and hold its grid against the models, before anything is trained."""
    frames = config.sequence.frames_in + config.sequence.frames_out
    grids = {}
    for split in ("train", config.evaluation.split):
        source = open_windows(config.data, split=split, frames=frames)
        grids[f"the split {split}"] = source.grid
        logger.info("%s: %d windows of %d frames on %d dates", split, len(source), frames, len(source.dates))
    for one in config.evaluation.also:
        grids[f"evaluation.also {one.name}"] = open_windows(_beside(config, one), split=one.split, frames=frames).grid
    trained_on = grids["the split train"]
    for name in config.stages:
        if config.train_config(name).stage not in FORECASTING:
            continue  # they are held against the data when they begin
        model = config.train_config(name).model
        try:
            takes = grid_of(fitted_to(model, trained_on))
        except ValueError as error:
            raise ConfigError(f"stage {name}: the model does not fit: {error}") from error
        for where, grid in grids.items():
            if takes not in (None, grid):
                raise ConfigError(
                    f"stage {name}: model.kind={model.kind} is made for the grid that it is trained on, "
                    f"{takes[0]} x {takes[1]} pixels, and {where} has {grid[0]} x {grid[1]}; leave that data out, or "
                    "match it by block_mean"
                )


def _beside(config: PipelineConfig, one: TestSetConfig) -> DataConfig:
    """Return the data of a further test set; it stands under the same root unless it names its own."""
    return one.data if one.data.root is not None else one.data.model_copy(update={"root": config.data.root})


def _fix_steps(config: PipelineConfig) -> PipelineConfig:
    """Time some steps of a stage that needs no other once, and scale all stages so that training fits the budget.

    The direct model's steps are timed where there is one, since they have the long horizon; making roll-outs is not
    part of the budget.
    """
    assert config.time_budget_minutes is not None
    asked = {name: config.train_config(name).max_steps for name in config.stages}
    kinds = {config.train_config(name).stage: name for name in config.stages}
    name = kinds.get("direct") or kinds["teacher"]
    seconds = _seconds_per_step(config, name)
    steps = scaled_steps(asked, seconds_per_step=seconds, budget_seconds=config.time_budget_minutes * 60)
    said = ", ".join(f"{name} {count}" for name, count in steps.items())
    logger.info("%.3f s a step; steps that fit %.1f minutes: %s", seconds, config.time_budget_minutes, said)
    return _with_steps(config, steps, asked=asked)


def scaled_steps(asked: dict[str, int], *, seconds_per_step: float, budget_seconds: float) -> dict[str, int]:
    """Return the steps of each stage scaled by one factor, at most 1, so that all together fit the budget.

    A stage that was asked to take as many steps as teacher and student together still does: equal optimizer steps
    are what makes the comparison fair.
    """
    factor = min(1.0, budget_seconds / (seconds_per_step * sum(asked.values())))
    steps = {name: min(count, max(_FEWEST_STEPS, math.floor(count * factor))) for name, count in asked.items()}
    pair = ("teacher", "student")
    if all(name in asked for name in pair):
        total = sum(asked[name] for name in pair)
        steps |= {name: sum(steps[one] for one in pair) for name, count in asked.items() if count == total}
    return steps


def _seconds_per_step(config: PipelineConfig, name: str) -> float:
    folder = RunFolder(config.run_dir / "timing")
    shutil.rmtree(folder.path, ignore_errors=True)
    every = _TIMED_STEPS // 4
    timed = config.train_config(name).model_copy(
        update={
            "run_dir": folder.path,
            "max_steps": _TIMED_STEPS,
            "log": config.log.model_copy(update={"every_steps": every}),
        }
    )
    _start(timed, "train", ranks=config.launch.ranks)
    lines = read_metrics(folder.metrics)[1:]  # the first interval pays for caches and allocations
    shutil.rmtree(folder.path)
    return sum(line["time/seconds_per_step"] for line in lines) / len(lines)


def _train(config: PipelineConfig, name: str) -> None:
    stage = config.train_config(name)
    if stage.stage == "student" and stage.student.extension == "teacher" and stage.rollout_dir is not None:
        _start(stage, "rollout", ranks=config.launch.ranks)
    _start(stage, "train", ranks=config.launch.ranks)
    if not RunFolder(stage.run_dir).done.is_file():
        raise PipelineError(f"stage {name} ended without its marker {RunFolder(stage.run_dir).done}")


def _start(stage: TrainConfig, command: str, *, ranks: int) -> None:
    """Run ``simcast <command>`` on a stage's configuration, in a process of its own (several ranks by torchrun)."""
    path = stage.run_dir / "asked.yaml"
    RunFolder(stage.run_dir).make()
    write_whole(path, to_yaml(stage))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    line = [sys.executable, *launcher, "-m", "simcast_hpc", command, str(path), "--quiet"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if "OMP_WAIT_POLICY" not in environment:
        # By default a waiting CPU thread spins for milliseconds: steps get several times slower as soon as anything
        # else runs. A short spin is as fast on an idle machine, which none at all is not.
        environment.setdefault("GOMP_SPINCOUNT", "20000")
    process = subprocess.Popen(line, env=environment)
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code == _REFUSED:
        raise ConfigError(f"`simcast {command} {path}` was refused: the reason stands above")
    if code != 0:
        raise PipelineError(
            f"`simcast {command} {path}` ended with status {code}; started again, it goes on from there"
        )


def _verify(config: PipelineConfig) -> None:
    # An autoencoder forecasts nothing; the ensemble that stands on it does.
    names = [name for name in config.stages if config.train_config(name).stage != "autoencoder"]
    models = [run_entry(name, load_run(config.run_dir / name, device=forecast_device())) for name in names]
    frames = config.sequence.frames_in + config.sequence.frames_out
    train_dates = open_windows(config.data, split="train", frames=frames).dates
    sets = [TestSet("test", config.data, config.evaluation.split)]
    sets += [TestSet(one.name, _beside(config, one), one.split) for one in config.evaluation.also]
    for test_set in sets:
        baselines = [baseline_entry(name, test_set.data) for name in config.evaluation.baselines]
        evaluate(
            test_set,
            [*baselines, *models],
            sequence=config.sequence,
            settings=config.evaluation,
            folder=config.run_dir / "scores",
            train_dates=train_dates,
        )
        logger.info("verified on %s", test_set.name)
