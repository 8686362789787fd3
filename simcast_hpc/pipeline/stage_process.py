"""Run a stage in child processes, one per rank, and raise an error according to its exit status."""

import sys

from simcast_hpc.config import ConfigError, SimcastError, TrainConfig, to_yaml
from simcast_hpc.distributed.launchers import child_environment, run_ranks
from simcast_hpc.monitoring.stop_request import SIGNALS
from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.storage.run_directory import RunDirectory
from simcast_hpc.train.stop_errors import RESTART_STATUS, STOPPED_STATUS, PausedError, StoppedError

_INVALID_STATUS = 2
_KILLED_BY_SIGNAL = tuple(128 + number for number in SIGNALS)  # before the process installed its handlers


class PipelineError(SimcastError, RuntimeError):
    """The process of a stage failed; its output gives the reason, and the same command resumes the pipeline."""


def run_stage(stage: TrainConfig, command: str, *, ranks: int, quiet: bool = False) -> None:
    """Run ``simcast <command>`` on the configuration of a stage in child processes and wait for its end.

    Raises:
        ConfigError: the configuration or the data are invalid.
        PausedError, StoppedError: a signal or a STOP file ended it, and it saved its state.
        PipelineError: it failed.
    """
    path = stage.run_dir / "requested.yaml"
    RunDirectory(stage.run_dir).create()
    write_text(path, to_yaml(stage))
    line = [sys.executable, "-m", "simcast_hpc", command, str(path), *(["--quiet"] if quiet else [])]
    status = run_ranks(line, ranks=ranks, environment=child_environment())
    call = f"`simcast {command} {path}`"
    if status == _INVALID_STATUS:
        raise ConfigError(f"{call} rejected its input; its message is above")
    if status == RESTART_STATUS or status in _KILLED_BY_SIGNAL:
        raise PausedError(f"{call} was interrupted by a signal; run the pipeline again to resume")
    if status == STOPPED_STATUS:
        raise StoppedError(f"{call} was stopped by a STOP file; remove the file and run the pipeline again to resume")
    if status != 0:
        raise PipelineError(f"{call} failed with status {status}; run the pipeline again to resume")
