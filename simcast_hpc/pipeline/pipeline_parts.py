"""The parts of a pipeline by name, and a single part run on all ranks of a launcher.

``prepare`` writes the synthetic archive, validates the data and fixes the steps. ``NAME:rollouts`` and ``NAME`` belong
to the stage ``NAME``. ``verify`` scores all stages, writes the report and marks the pipeline as complete. A batch
script runs the parts as job steps.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from simcast_hpc.config import ConfigError, PipelineConfig, SynthesisConfig, TrainConfig
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.distributed.process_group import join_ranks
from simcast_hpc.distributed.ranks import SINGLE_RANK, Ranks, find_rank
from simcast_hpc.evaluation import TestSet, baseline_entry, evaluate, run_entry, with_postprocessing
from simcast_hpc.inference.calibration import calibrate_run, is_calibrated
from simcast_hpc.inference.trained_ensemble import load_run
from simcast_hpc.inference.trained_model import forecast_device
from simcast_hpc.report import write_report
from simcast_hpc.storage.atomic_files import write_json
from simcast_hpc.storage.directory_lock import DirectoryLock, hold_directory
from simcast_hpc.storage.run_directory import RunDirectory
from simcast_hpc.train.precompute_rollouts import fill_rollouts
from simcast_hpc.train.stop_errors import raise_on_signal, reject_stop_file
from simcast_hpc.train.trainer import run

from .pipeline_checks import check_data, check_names, data_of_test_set, prepared_config, resumed_config
from .time_budget import fit_steps

logger = logging.getLogger(__name__)
Announce = Callable[[PipelineConfig], None] | None
_ROLLOUTS = ":rollouts"
_SCORING_MINUTES = 240.0  # a collective waits for the rank with the slowest windows, and for rank 0's report


def part_names(config: PipelineConfig) -> list[str]:
    """Return the names of the parts in their order."""
    stages = []
    for name in config.stages:
        stages += [name + _ROLLOUTS] if needs_rollouts(config.train_config(name)) else []
        stages.append(name)
    return ["prepare", *stages, "verify"]


def needs_rollouts(stage: TrainConfig) -> bool:
    """Return whether a stage trains on cached pseudo-frames, which ``simcast rollout`` computes first."""
    return stage.stage == "student" and stage.student.extension == "teacher" and stage.rollout_dir is not None


def run_part(requested: PipelineConfig, part: str, *, announce: Announce = None) -> None:
    """Run one part on all ranks of the launcher; a complete part is skipped.

    Args:
        requested: the configuration of the pipeline.
        part: a name of :func:`part_names`.
        announce: see :func:`prepare`; the other parts have their configuration in the run directory.

    Raises:
        ConfigError: the name is unknown, an earlier part is missing, or ``prepare`` has several processes.
        Others: those of the part.
    """
    rank_info = find_rank(os.environ)
    if part not in part_names(requested):
        raise ConfigError(f"--part {part}: unknown part; choose {', '.join(part_names(requested))}")
    reject_stop_file([requested.run_dir])
    purpose = f"part {part} of a pipeline"
    if part == "prepare":
        if rank_info.world_size > 1:
            raise ConfigError(
                f"--part {part} requires a single process, but {rank_info.launcher} started {rank_info.world_size}; "
                "run it without a launcher, or as one task"
            )
        with raise_on_signal(), hold_directory(requested.run_dir, purpose):
            prepare(requested, announce=announce)
        return
    if part == "verify":
        ranks = join_ranks(timeout_minutes=_SCORING_MINUTES)
        with raise_on_signal(), hold_directory(requested.run_dir, purpose, ranks=ranks) as lock:
            verify(prepared_config(requested), lock, ranks=ranks)
        ranks.leave()
        return
    stage = prepared_config(requested).train_config(part.removesuffix(_ROLLOUTS))
    if part.endswith(_ROLLOUTS):
        fill_rollouts(stage)
    else:
        run(stage)


def prepare(requested: PipelineConfig, *, announce: Announce = None) -> PipelineConfig:
    """Prepare a pipeline for training and return its configuration, with the steps fitted to the time budget.

    Args:
        requested: the configuration of the pipeline.
        announce: called with the configuration after names and data were validated.

    Raises:
        ConfigError, DataError: the pipeline is invalid; nothing was trained.
    """
    config = resumed_config(requested)
    folder, durations = RunDirectory(config.run_dir), Durations(config)
    check_names(config)
    folder.create()
    if config.synthesis is not None:
        with durations.measure("archive"):
            _synthesize(config, config.synthesis)
    check_data(config)
    if announce is not None:
        announce(config)
    folder.prepare(config)
    if config.time_budget_minutes is not None and config.fitted_steps is None:
        with durations.measure("timing"):
            config = fit_steps(config)
        folder.prepare(config)
    return config


def verify(config: PipelineConfig, lock: DirectoryLock, *, ranks: Ranks = SINGLE_RANK) -> Path:
    """Score all stages, write the HTML report, mark the pipeline as complete, and return the path of the report.

    The windows are distributed over the ranks, and rank 0 writes. A collective.

    Raises:
        ConfigError: a stage is not complete.
        LostLockError: another process took over the run directory.
    """
    lock.check()
    with Durations(config).measure("verification") if ranks.is_first else nullcontext():
        _score(config, ranks)
    report = config.run_dir
    with ranks.together():
        if ranks.is_first:
            lock.check()
            report = write_report(config.run_dir)
            markers = {name: RunDirectory(config.run_dir / name).marker() or {} for name in config.stages}
            weights = {name: marker.get("weights") for name, marker in markers.items()}
            RunDirectory(config.run_dir).finish({"stages": weights}, report=report.name)
    return ranks.broadcast(report)


class Durations:
    """Wall time of each part in seconds, summed over restarts, in ``durations.json`` of the run directory."""

    def __init__(self, config: PipelineConfig):
        self._path = config.run_dir / "durations.json"

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to that of part ``name``, also if it raises an error."""
        logger.info("-- %s", name)
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self._read()
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)
            write_json(self._path, seconds)

    def _read(self) -> dict[str, float]:
        """Return the stored times; a damaged file, which must not end a run, is replaced."""
        try:
            stored = read_json_file(self._path, error=ConfigError, what="the durations")
            return {str(name): float(value) for name, value in stored.items()}
        except (ConfigError, AttributeError, TypeError, ValueError) as error:
            if self._path.is_file():
                logger.warning("%s is damaged and is replaced: %s", self._path, error)
            return {}


def _synthesize(config: PipelineConfig, synthesis: SynthesisConfig) -> None:
    if config.data.root is None:
        raise ConfigError("section synthesis requires data.root, the folder to write the archive to")
    written = write_archive(
        config.data.root,
        seed=synthesis.seed,
        events={"train": synthesis.train_events, "val": synthesis.val_events, "test": synthesis.test_events},
        size=synthesis.size,
        frames_per_event=synthesis.frames_per_event,
    )
    logger.info("synthetic archive %s in %s", "written" if written else "already exists", config.data.root)


def _score(config: PipelineConfig, ranks: Ranks) -> None:
    # 1. Models: autoencoders do not forecast, and models that held out a fold only forecast conditions
    stages = {name: config.train_config(name) for name in config.stages}
    scored = [name for name, one in stages.items() if one.stage != "autoencoder" and one.data.hold_out is None]
    runs = {name: load_run(config.run_dir / name, device=forecast_device()) for name in scored}
    if "quantile-mapping" in config.evaluation.postprocess:
        for name, model in runs.items():
            if not is_calibrated(config.run_dir / name, model, config.data):
                size = config.evaluation.batch_size
                calibrate_run(config.run_dir / name, model, config.data, batch_size=size, ranks=ranks)
    entries = [
        row
        for name, model in runs.items()
        for row in with_postprocessing(
            run_entry(name, model), config.evaluation.postprocess, config.data, run=(config.run_dir / name, model)
        )
    ]
    # 2. Test sets; events on dates of the training data are reported
    frames = config.sequence.frames_in + config.sequence.frames_out
    train_dates = open_windows(config.data, split="train", frames=frames).dates
    test_sets = [TestSet("test", config.data, config.evaluation.split)]
    test_sets += [TestSet(one.name, data_of_test_set(config, one), one.split) for one in config.evaluation.also]
    # 3. Scores
    for test_set in test_sets:
        baselines = [baseline_entry(name, test_set.data) for name in config.evaluation.compared_baselines]
        evaluate(
            test_set,
            [*baselines, *entries],
            sequence=config.sequence,
            settings=config.evaluation,
            folder=config.run_dir / "scores",
            train_dates=train_dates,
            ranks=ranks,
        )
        logger.info("verified on %s", test_set.name)
