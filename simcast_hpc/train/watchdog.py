"""A watchdog per rank that turns a hang into an error within minutes.

A rank that waits for another one dumps the stacks of all its threads and exits. A rank that is stopped, or whose node
is lost, cannot do so; the others name it, because its heartbeat file is old.
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
HUNG_STATUS = 86
_HEARTBEATS_PER_LIMIT = 10
_MAX_INTERVAL_SECONDS = 5.0


class Watchdog:
    """Ends this process if an optimizer step takes longer than a limit, from the first step to the end of the block.

    Args:
        folder: for stacks and heartbeats, one file per rank; shared by the ranks.
        limit_minutes: maximum time between two steps; None disables the watchdog.
        rank: this rank.
        ranks: number of ranks.
    """

    def __init__(self, folder: Path, *, limit_minutes: float | None, rank: int, ranks: int):
        self._folder, self._rank, self._ranks = folder, rank, ranks
        self._limit = None if limit_minutes is None else limit_minutes * 60
        self._step, self._since = 0, time.monotonic()
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        if self._limit is None:
            return self
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for stale in (self._stacks, self._heartbeat):
                stale.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._folder} cannot be written: {error}") from error
        return self

    def __exit__(self, *_error: object) -> None:
        self._finished.set()
        if self._thread is not None:
            self._thread.join()

    def __call__(self, step: int, _report: object) -> None:
        """Record a step. The first one starts the watchdog, because it may take long."""
        self._step, self._since = step, time.monotonic()
        if self._thread is None and self._limit is not None:
            self._thread = threading.Thread(target=self._watch, args=(self._limit,), daemon=True)
            self._thread.start()

    @property
    def _stacks(self) -> Path:
        return self._folder / f"rank-{self._rank:05d}.txt"

    @property
    def _heartbeat(self) -> Path:
        return self._folder / f"rank-{self._rank:05d}.alive"

    def _watch(self, limit: float) -> None:
        interval = min(limit / _HEARTBEATS_PER_LIMIT, _MAX_INTERVAL_SECONDS)
        while not self._finished.wait(interval):
            self._write_heartbeat()
            if time.monotonic() - self._since > limit:
                self._report(limit, interval)
                os._exit(HUNG_STATUS)  # the main thread may never return from its collective

    def _write_heartbeat(self) -> None:
        try:
            self._heartbeat.write_text(f"{self._step}\n", encoding="utf-8")
        except OSError as error:  # a full disk is reported by the writers that need the space
            logger.debug("cannot write the heartbeat: %s", error)

    def _report(self, limit: float, interval: float) -> None:
        stale = self._stale_ranks(4 * interval)
        named = f"; no heartbeat from rank {', '.join(map(str, stale))}" if stale else ""
        message = (
            f"[rank {self._rank}] {socket.gethostname()}, process {os.getpid()}: no optimizer step for {limit:.0f} s "
            f"after step {self._step}{named}; the stacks of this rank follow and are written to {self._stacks}"
        )
        print(message, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        try:
            with self._stacks.open("w", encoding="utf-8") as file:
                file.write(message + "\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"{self._stacks} cannot be written: {error}", file=sys.stderr, flush=True)

    def _stale_ranks(self, seconds: float) -> list[int]:
        """Return the ranks whose heartbeat is older than this, by the clock of the shared file system."""
        ranks: list[int] = []
        try:
            now = self._heartbeat.stat().st_mtime
        except OSError:
            return ranks
        for rank in range(self._ranks):
            heartbeat = self._folder / f"rank-{rank:05d}.alive"
            if not heartbeat.is_file() or now - heartbeat.stat().st_mtime > seconds:
                ranks.append(rank)
        return ranks
