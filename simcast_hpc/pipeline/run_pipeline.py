"""Run all parts of a pipeline in order on one machine, each stage in child processes.

Synthetic archive (if configured) -> trained stages -> verification -> HTML report. A stage is complete if its
``DONE.json`` names equal inputs; the pipeline's own ``DONE.json`` is written last.
"""

import os
from pathlib import Path

from simcast_hpc.config import ConfigError, PipelineConfig
from simcast_hpc.distributed.ranks import find_rank
from simcast_hpc.storage.directory_lock import hold_directory
from simcast_hpc.storage.run_directory import RunDirectory
from simcast_hpc.train.stop_errors import raise_on_signal, reject_stop_file

from .pipeline_parts import Announce, Durations, needs_rollouts, prepare, verify
from .stage_process import PipelineError, run_stage


def run_pipeline(requested: PipelineConfig, *, announce: Announce = None, quiet: bool = False) -> Path:
    """Run all parts of a pipeline and return the path of its HTML report.

    Args:
        requested: the configuration of the pipeline.
        announce: called with the configuration after it was validated; see :func:`.pipeline_parts.prepare`.
        quiet: let the stages print warnings and errors only.

    Raises:
        ConfigError, DataError: the pipeline is invalid or another process runs it; nothing was trained.
        PausedError, StoppedError: a signal or a STOP file ended it; the same command resumes it.
        PipelineError: a stage failed.
    """
    if find_rank(os.environ).world_size > 1:
        raise ConfigError(
            "a pipeline runs as one process; set launch.ranks for the ranks of its stages, "
            "or run each part on all ranks with --part"
        )
    reject_stop_file([requested.run_dir])
    with raise_on_signal(), hold_directory(requested.run_dir, "a pipeline") as lock:
        config = prepare(requested, announce=announce)
        durations = Durations(config)
        for name in config.stages:
            reject_stop_file([config.run_dir])
            lock.check()
            with durations.measure(name):
                _train(config, name, quiet=quiet)
        return verify(config, lock)


def _train(config: PipelineConfig, name: str, *, quiet: bool) -> None:
    stage = config.train_config(name)
    if needs_rollouts(stage):
        run_stage(stage, "rollout", ranks=config.launch.ranks, quiet=quiet)
    run_stage(stage, "train", ranks=config.launch.ranks, quiet=quiet)
    marker = RunDirectory(stage.run_dir).done
    if not marker.is_file():
        raise PipelineError(f"stage {name} ended without writing {marker}")
