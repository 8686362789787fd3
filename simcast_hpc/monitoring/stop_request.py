"""Requests to save and exit before the end: a signal from the batch system, or a STOP file written by the user."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_CHECK_SECONDS = 2.0


class StopReason(IntEnum):
    """Why a program is asked to exit; if ranks differ, the maximum applies."""

    NONE = 0
    PAUSE = 1
    STOP = 2


class StopRequest:
    """Collects signals and STOP files; a call costs next to nothing, so it can be made at every step.

    Args:
        folders: folders in which a file named ``STOP`` counts: the run directory, and its parent for all runs in it.
        checks_files: whether this rank looks for the files; one rank suffices, because the ranks reduce the answer.
    """

    def __init__(self, folders: Sequence[Path], *, checks_files: bool):
        self._folders = folders if checks_files else ()
        self._reason = StopReason.NONE
        self._checked = -_CHECK_SECONDS
        self.cause = ""

    def __call__(self) -> StopReason:
        """Return the strongest request so far; STOP files are checked at most every two seconds."""
        now = time.monotonic()
        if self._folders and now - self._checked >= _CHECK_SECONDS:
            self._checked = now
            if path := find_stop_file(self._folders):
                self._reason, self.cause = StopReason.STOP, f"{path} exists"
        return self._reason

    @contextmanager
    def handle_signals(self) -> Iterator["StopRequest"]:
        """Treat USR2 and TERM as requests to pause inside the block; restore the previous handlers after it."""
        previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # Nothing else happens here: a handler may interrupt a write, or need a lock that the main thread has taken.
        self._reason = max(self._reason, StopReason.PAUSE)
        self.cause = self.cause or f"signal {signal.Signals(number).name}"


def find_stop_file(folders: Sequence[Path]) -> Path | None:
    """Return the first file ``STOP`` in these folders, or None."""
    return next((path for folder in folders if (path := folder / "STOP").exists()), None)
