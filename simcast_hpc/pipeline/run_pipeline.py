"""All parts of a pipeline in order, each stage a child process of its own.

synthetic archive (if asked for) -> trained stages -> verification -> page. Markers decide, not memory: a stage is
done when its ``DONE.json`` names equal inputs; the pipeline's own ``DONE.json`` comes last.
"""

import os
from pathlib import Path

from simcast_hpc.config import ConfigError, PipelineConfig
from simcast_hpc.distributed.ranks import find_rank
from simcast_hpc.storage.run_directory import RunDirectory
from simcast_hpc.train.preemption import raise_on_signal, reject_stop_file

from .durations import Durations
from .stage_process import PipelineError, start
from .stages import Announce, needs_rollouts, prepare, verify


def run_pipeline(asked: PipelineConfig, *, announce: Announce = None, quiet: bool = False) -> Path:
    """Run what ``asked`` describes to its end and return the page; ``announce`` is as :func:`.parts.prepare`'s.

    Raises:
        ConfigError, DataError: the pipeline cannot begin; nothing was trained.
        PausedError, StoppedError: it was asked to leave; started again, it goes on.
        PipelineError: a stage failed.
    """
    if find_rank(os.environ).world_size > 1:
        raise ConfigError(
            "start the pipeline as one process and give the ranks of its stages by launch.ranks; "
            "or start its parts one by one on all ranks, by --part"
        )
    reject_stop_file([asked.run_dir])
    with raise_on_signal():
        config = prepare(asked, announce=announce)
        durations = Durations(config.run_dir / "durations.json")
        for name in config.stages:
            reject_stop_file([config.run_dir])
            with durations.of(name):
                _train(config, name, quiet=quiet)
        return verify(config)


def _train(config: PipelineConfig, name: str, *, quiet: bool) -> None:
    stage = config.train_config(name)
    if needs_rollouts(stage):
        start(stage, "rollout", ranks=config.launch.ranks, quiet=quiet)
    start(stage, "train", ranks=config.launch.ranks, quiet=quiet)
    if not RunDirectory(stage.run_dir).done.is_file():
        raise PipelineError(f"stage {name} ended without its marker {RunDirectory(stage.run_dir).done}")
