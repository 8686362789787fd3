"""A rank that stands still says where, and ends: a hang becomes a failure with a reason, and costs minutes, not days.

Every rank has a watchdog of its own. A rank that waits for another dumps the stacks of all its threads; one that is
stopped, or whose node is gone, cannot, and is named by the others, who see no sign of life from it.
"""

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path

from simcast_hpc.config import ConfigError

logger = logging.getLogger(__name__)
HUNG = 86
_SIGNS_PER_LIMIT = 10
_LONGEST_PAUSE_SECONDS = 5.0


class Watchdog:
    """Ends this process where no step has been taken for too long, from the first step to the end of the block.

    Args:
        folder: where stacks and signs of life are kept, one file a rank; shared by the ranks.
        limit_minutes: the longest time without a step; None watches nothing.
        rank: this rank.
        ranks: how many there are.
    """

    def __init__(self, folder: Path, *, limit_minutes: float | None, rank: int, ranks: int):
        self._folder, self._rank, self._ranks = folder, rank, ranks
        self._limit = None if limit_minutes is None else limit_minutes * 60
        self._step, self._since = 0, time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        if self._limit is None:
            return self
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in (self._stacks, self._sign):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._folder} cannot be written: {error}") from error
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def __call__(self, step: int, _report: object) -> None:
        """Take note of a step: the hook of every step. The first begins the watch: it may take long."""
        self._step, self._since = step, time.monotonic()
        if self._thread is None and self._limit is not None:
            self._thread = threading.Thread(target=self._watch, args=(self._limit,), daemon=True)
            self._thread.start()

    @property
    def _stacks(self) -> Path:
        return self._folder / f"rank-{self._rank:05d}.txt"

    @property
    def _sign(self) -> Path:
        return self._folder / f"rank-{self._rank:05d}.alive"

    def _watch(self, limit: float) -> None:
        pause = min(limit / _SIGNS_PER_LIMIT, _LONGEST_PAUSE_SECONDS)
        while not self._over.wait(pause):
            self._give_sign()
            if time.monotonic() - self._since > limit:
                self._report(limit, pause)
                os._exit(HUNG)  # the main thread may never come back from where it waits

    def _give_sign(self) -> None:
        try:
            self._sign.write_text(f"{self._step}\n", encoding="utf-8")
        except OSError as error:  # a full disk is told by what needs the file
            logger.debug("no sign of life: %s", error)

    def _report(self, limit: float, pause: float) -> None:
        silent = self._silent(4 * pause)
        named = f"; no sign of life from rank {', '.join(map(str, silent))}" if silent else ""
        said = (
            f"[rank {self._rank}] {socket.gethostname()}, process {os.getpid()}: no optimizer step for {limit:.0f} s "
            f"after step {self._step}{named}; the stacks of this rank stand below and in {self._stacks}"
        )
        print(said, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        try:
            with self._stacks.open("w", encoding="utf-8") as file:
                file.write(said + "\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"{self._stacks} cannot be written: {error}", file=sys.stderr, flush=True)

    def _silent(self, seconds: float) -> list[int]:
        """Return the ranks whose last sign of life is older than that; by the clock of the shared file system."""
        found = []
        try:
            now = self._sign.stat().st_mtime
        except OSError:
            return found
        for rank in range(self._ranks):
            sign = self._folder / f"rank-{rank:05d}.alive"
            if not sign.is_file() or now - sign.stat().st_mtime > seconds:
                found.append(rank)
        return found
