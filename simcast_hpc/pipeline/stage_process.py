"""A stage as a process of its own, or several ranks of this machine; and what its end means for the pipeline."""

import sys

from simcast_hpc.config import ConfigError, SimcastError, TrainConfig, to_yaml
from simcast_hpc.distributed.launchers import child_environment, run_ranks
from simcast_hpc.monitoring.stop_request import SIGNALS
from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.storage.run_directory import RunDirectory
from simcast_hpc.train.preemption import RESTART_STATUS, STOPPED_STATUS, PausedError, StoppedError

_REJECTED = 2
_TOLD_BEFORE_IT_LISTENED = tuple(128 + number for number in SIGNALS)


class PipelineError(SimcastError, RuntimeError):
    """A stage's process failed; what it printed says why, and a restart goes on from there."""


def start(stage: TrainConfig, command: str, *, ranks: int, quiet: bool = False) -> None:
    """Run ``simcast <command>`` on a stage's configuration to its end, in processes of its own.

    Raises:
        ConfigError: it was refused.
        PausedError, StoppedError: it was asked to leave, and saved its state.
        PipelineError: it failed.
    """
    path = stage.run_dir / "asked.yaml"
    RunDirectory(stage.run_dir).create()
    write_text(path, to_yaml(stage))
    line = [sys.executable, "-m", "simcast_hpc", command, str(path), *(["--quiet"] if quiet else [])]
    code = run_ranks(line, ranks=ranks, environment=child_environment())
    said = f"`simcast {command} {path}`"
    if code == _REJECTED:
        raise ConfigError(f"{said} was refused: the reason stands above")
    if code == RESTART_STATUS or code in _TOLD_BEFORE_IT_LISTENED:
        raise PausedError(f"{said} was asked to leave; started again, the pipeline goes on from there")
    if code == STOPPED_STATUS:
        raise StoppedError(f"{said} was stopped by a file; the pipeline goes on where it is removed")
    if code != 0:
        raise PipelineError(f"{said} ended with status {code}; started again, it goes on from there")
