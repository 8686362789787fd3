"""What asks a run to save and leave before its end: a signal from the batch system, or a file from its owner."""

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType

from simcast_hpc.config import SimcastError

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
START_AGAIN, STOPPED = 85, 75
_LOOK_SECONDS = 2.0


class StopReason(IntEnum):
    """What a run is asked for; where ranks differ the greater counts."""

    NONE = 0
    PAUSE = 1
    STOP = 2


class PausedError(SimcastError, RuntimeError):
    """The run saved its state and left when it was asked to; started again, it goes on."""

    exit_status = START_AGAIN


class StoppedError(SimcastError, RuntimeError):
    """A STOP file keeps the run from going on; what it had is saved."""

    exit_status = STOPPED


class StopRequest:
    """Signals that came and STOP files that stand; reading it is cheap enough for every step.

    Args:
        folders: where a file ``STOP`` counts: the run folder, and the one above for all runs in it.
        looks: whether this rank looks for the file; one rank is enough, since the ranks agree on the answer.
    """

    def __init__(self, folders: Sequence[Path], *, looks: bool):
        self._files = _stop_files(folders) if looks else []
        self._asked = StopReason.NONE
        self._looked = -_LOOK_SECONDS
        self.why = ""

    def __call__(self) -> StopReason:
        """Return what is asked of the run."""
        now = time.monotonic()
        if self._files and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            if found := next((path for path in self._files if path.exists()), None):
                self._asked, self.why = StopReason.STOP, f"{found} is there"
        return self._asked

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take USR2 and TERM as a request for as long as the block runs; what they did before comes back after."""
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        # Nothing else happens here: a handler may interrupt a write or hold a lock that it would need itself.
        self._asked = max(self._asked, StopReason.PAUSE)
        self.why = self.why or f"signal {signal.Signals(number).name}"


def reject_to_start(folders: Sequence[Path]) -> None:
    """Refuse to begin, or to go on, where a STOP file stands.

    Raises:
        StoppedError: names the file.
    """
    if found := next((path for path in _stop_files(folders) if path.exists()), None):
        raise StoppedError(f"{found} is there: nothing done. Remove it to go on")


def _stop_files(folders: Sequence[Path]) -> list[Path]:
    return [folder / "STOP" for folder in folders]


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Leave the block at USR2 or TERM: for what is short and can be made again.

    Raises:
        PausedError: out of whatever runs.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise PausedError(f"signal {signal.Signals(number).name}; started again, it goes on")

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
