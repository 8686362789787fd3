"""The parts of a pipeline by name, and a single one of them run on all ranks of the launcher in use.

``prepare`` makes the archive, checks the data and fixes the steps; ``NAME:rollouts`` and ``NAME`` belong to a stage;
``verify`` scores, writes the page and marks the pipeline as done. A batch script runs them as job steps.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from simcast_hpc.config import ConfigError, PipelineConfig, TrainConfig
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.distributed.ranks import find_rank
from simcast_hpc.evaluation import TestSet, baseline_entry, evaluate, run_entry
from simcast_hpc.inference.ensemble import load_run
from simcast_hpc.inference.load import forecast_device
from simcast_hpc.report import write_report
from simcast_hpc.storage.run_directory import RunDirectory
from simcast_hpc.train.precompute_rollouts import fill_cache
from simcast_hpc.train.preemption import raise_on_signal, reject_stop_file
from simcast_hpc.train.trainer import run

from .durations import Durations
from .pipeline_checks import beside, check_data, check_names, continue_or_reject, prepared_or_reject
from .time_budget import fix_steps

logger = logging.getLogger(__name__)
Announce = Callable[[PipelineConfig], None] | None
_ROLLOUTS = ":rollouts"


def part_names(config: PipelineConfig) -> list[str]:
    """Return the parts in their order."""
    stages = []
    for name in config.stages:
        stages += [name + _ROLLOUTS] if needs_rollouts(config.train_config(name)) else []
        stages.append(name)
    return ["prepare", *stages, "verify"]


def needs_rollouts(stage: TrainConfig) -> bool:
    """Return whether a stage trains on stored pseudo-frames that another process makes before."""
    return stage.stage == "student" and stage.student.extension == "teacher" and stage.rollout_dir is not None


def run_part(asked: PipelineConfig, part: str, *, announce: Announce = None) -> None:
    """Run one part on the ranks that the launcher started; one that stands is passed over.

    ``announce`` is as :func:`prepare`'s; the other parts have its configuration in the run folder.

    Raises:
        ConfigError: no part is called so, parts before it are missing, or it wants a single process.
        Others: what the part raises.
    """
    rank_info = find_rank(os.environ)
    if part not in part_names(asked):
        raise ConfigError(f"--part {part}: no part is called so; the parts are {', '.join(part_names(asked))}")
    reject_stop_file([asked.run_dir])
    if part in ("prepare", "verify"):
        if rank_info.world_size > 1:
            raise ConfigError(
                f"--part {part} wants one process, {rank_info.launcher} started {rank_info.world_size}; start it "
                "without a launcher, or as one task"
            )
        with raise_on_signal():
            if part == "prepare":
                prepare(asked, announce=announce)
            else:
                verify(prepared_or_reject(asked))
        return
    stage = prepared_or_reject(asked).train_config(part.removesuffix(_ROLLOUTS))
    if part.endswith(_ROLLOUTS):
        fill_cache(stage)
    else:
        run(stage)


def prepare(asked: PipelineConfig, *, announce: Announce = None) -> PipelineConfig:
    """Make what the stages need, and return the configuration that they share.

    Args:
        asked: the pipeline.
        announce: is given the configuration when everything that is not trained yet was found in order.

    Raises:
        ConfigError, DataError: the pipeline cannot begin; nothing was trained.
    """
    config = continue_or_reject(asked)
    folder = RunDirectory(config.run_dir)
    durations = Durations(config.run_dir / "durations.json")
    check_names(config)
    folder.create()
    if config.synthesis is not None:
        with durations.of("archive"):
            _synthesise(config)
    check_data(config)
    if announce is not None:
        announce(config)
    folder.prepare(config)
    if config.time_budget_minutes is not None and config.fitted_steps is None:
        with durations.of("timing"):
            config = fix_steps(config)
        folder.prepare(config)
    return config


def verify(config: PipelineConfig) -> Path:
    """Score every stage, write the page, mark the pipeline as done, and return the page.

    Raises:
        ConfigError: a stage is not finished.
    """
    with Durations(config.run_dir / "durations.json").of("verification"):
        _score(config)
    page = write_report(config.run_dir)
    weights = {name: RunDirectory(config.run_dir / name).done.read_text(encoding="utf-8") for name in config.stages}
    RunDirectory(config.run_dir).finish(
        {"stages": {name: json.loads(text)["weights"] for name, text in weights.items()}}, page=str(page.name)
    )
    return page


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


def _score(config: PipelineConfig) -> None:
    # An autoencoder forecasts nothing, and what holds out a fold serves others: the ensemble on top of them counts.
    stages = {name: config.train_config(name) for name in config.stages}
    names = [name for name, one in stages.items() if one.stage != "autoencoder" and one.data.hold_out is None]
    models = [run_entry(name, load_run(config.run_dir / name, device=forecast_device())) for name in names]
    frames = config.sequence.frames_in + config.sequence.frames_out
    train_dates = open_windows(config.data, split="train", frames=frames).dates
    sets = [TestSet("test", config.data, config.evaluation.split)]
    sets += [TestSet(one.name, beside(config, one), one.split) for one in config.evaluation.also]
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
