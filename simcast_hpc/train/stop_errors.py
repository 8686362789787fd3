"""Errors that end a run early with its state saved, raised on signals and STOP files."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from simcast_hpc.config import SimcastError
from simcast_hpc.monitoring.stop_request import SIGNALS, StopReason, find_stop_file

RESTART_STATUS, STOPPED_STATUS = 85, 75  # exit statuses that slurm/job.sh distinguishes


class PausedError(SimcastError, RuntimeError):
    """The run was asked to pause and has saved its state; it resumes when it is started again."""

    exit_status = RESTART_STATUS


class StoppedError(SimcastError, RuntimeError):
    """A STOP file ends the run or keeps it from starting; its state is saved."""

    exit_status = STOPPED_STATUS


def raise_for(reason: StopReason, *, cause: str, saved: str) -> NoReturn:
    """Raise the error of a stop reason other than NONE.

    Args:
        reason: of the stop.
        cause: what asked for it, such as ``signal USR2``.
        saved: what is saved, such as ``saved at step 40``.

    Raises:
        StoppedError: for STOP.
        PausedError: for PAUSE.
    """
    if reason == StopReason.STOP:
        raise StoppedError(f"{cause}: {saved}; remove the file and start again to resume")
    raise PausedError(f"{cause}: {saved}; start again to resume")


def reject_stop_file(folders: Sequence[Path]) -> None:
    """Raise an error if one of these folders contains a STOP file.

    Raises:
        StoppedError: names the file.
    """
    if path := find_stop_file(folders):
        raise StoppedError(f"{path} exists: nothing was started; remove it and start again")


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Leave the block at once on USR2 or TERM: for short work that is repeated after a restart.

    Raises:
        PausedError: from wherever the block is.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise PausedError(f"signal {signal.Signals(number).name}; start again to resume")

    previous = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
