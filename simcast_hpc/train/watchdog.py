"""A watchdog per rank that turns a hang into an error within minutes.

A rank that waits for another one reports the hang and exits. A rank that is stopped, or whose node is lost, cannot do
so; the others name it, because its heartbeat is missing (``heartbeats``). The report is bounded at any number of ranks:
one line with the ranks concerned first, then the stacks of a few ranks. Everything that can block, on the store, on the
file system or on stderr, runs in threads that the exit does not wait for.
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

from .heartbeats import HangSummary, Heartbeats, heartbeat_interval, spread_ranks

logger = logging.getLogger(__name__)
HUNG_STATUS = 86
_REPORT_SECONDS = 45.0
_SUMMARY_SECONDS = 15.0
_LINGER_SECONDS = 15.0
_POLL_SECONDS = 1.0


class Watchdog:
    """Ends this process if an optimizer step takes longer than a limit, from the first step to the end of the block.

    Args:
        folder: for the stacks, one file per rank that writes them; shared by the ranks.
        limit_minutes: maximum time between two steps; None disables the watchdog.
        rank: this rank.
        ranks: number of ranks.
        heartbeats: of the ranks; None for a single rank.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit_minutes: float | None,
        rank: int,
        ranks: int,
        heartbeats: Heartbeats | None = None,
    ):
        self._folder, self._rank, self._ranks = folder, rank, ranks
        self._limit = None if limit_minutes is None else limit_minutes * 60
        self._heartbeats = heartbeats
        self._step, self._since = 0, time.monotonic()
        self._finished = threading.Event()
        self._suspected = -1
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        """Remove the stacks of an earlier hang, on rank 0 for all ranks.

        Raises:
            ConfigError: the folder cannot be written.
        """
        if self._limit is None or self._rank != 0:
            return self
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for stale in (*self._folder.glob("rank-*.txt"), *self._folder.glob("rank-*.alive")):
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
        if self._heartbeats is not None:
            self._heartbeats.record(step)
        if self._thread is None and self._limit is not None:
            self._thread = threading.Thread(target=self._watch, args=(self._limit,), name="watchdog", daemon=True)
            self._thread.start()
            if self._heartbeats is not None:
                threading.Thread(
                    target=self._beat, args=(self._heartbeats, self._limit), name="heartbeats", daemon=True
                ).start()

    @property
    def _stacks(self) -> Path:
        return self._folder / f"rank-{self._rank:05d}.txt"

    def _watch(self, limit: float) -> None:
        """Look at the clock, and at nothing else that could block."""
        while not self._finished.wait(min(limit / 20, _POLL_SECONDS)):
            if time.monotonic() - self._since > limit:
                report = threading.Thread(target=self._report, args=(limit,), name="hang report", daemon=True)
                report.start()
                report.join(_REPORT_SECONDS)
                os._exit(HUNG_STATUS)  # the main thread may never return from its collective

    def _beat(self, heartbeats: Heartbeats, limit: float) -> None:
        """Write heartbeats, and read those of all ranks when half of the limit has passed without a step."""
        while True:
            try:
                waits = time.monotonic() - self._since > limit / 2
                heartbeats.write(waits=waits)
                if waits and self._suspected != self._step:
                    self._suspected = self._step
                    heartbeats.suspect(self._step)
            except (RuntimeError, OSError) as error:  # torch's DistError; rank 0 has ended or does not answer
                logger.debug("cannot write the heartbeat: %s", error)
            if self._finished.wait(heartbeat_interval(limit, self._ranks)):
                return

    def _report(self, limit: float) -> None:
        step = self._step
        summary = self._summary(step)
        if self._rank in (spread_ranks(self._ranks) if summary is None else summary.stacks):
            self._write_stacks(limit, step, summary)
        if self._rank == 0 and summary is not None:
            self._wait_for_readers(step, summary.alive)

    def _write_stacks(self, limit: float, step: int, summary: HangSummary | None) -> None:
        named = ""
        if summary is not None:
            named = f"; {summary.text}" if summary.text else ""
        elif self._heartbeats is not None:
            named = "; no heartbeats can be read: rank 0, which serves them, is stopped, has ended or lost its node"
        message = (
            f"[rank {self._rank}] {socket.gethostname()}, process {os.getpid()}: no optimizer step for {limit:.0f} s "
            f"after step {step}{named}; the stacks of this rank follow and are written to {self._stacks}"
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

    def _wait_for_readers(self, step: int, alive: int) -> None:
        """Serve the store until the other ranks have read the summary, for a bounded time."""
        assert self._heartbeats is not None
        deadline = time.monotonic() + _LINGER_SECONDS
        try:
            while not self._heartbeats.all_summarized(step, alive) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS / 5)
        except (RuntimeError, OSError) as error:
            logger.debug("cannot read the heartbeats: %s", error)

    def _summary(self, step: int) -> HangSummary | None:
        """Return the summary of the heartbeats; None if they cannot be read in time."""
        heartbeats, found = self._heartbeats, []
        if heartbeats is None:
            return None

        def read() -> None:
            try:
                found.append(heartbeats.summarize(step))
            except (RuntimeError, OSError, ValueError) as error:
                logger.debug("cannot read the heartbeats: %s", error)

        reader = threading.Thread(target=read, name="heartbeat reader", daemon=True)
        reader.start()
        reader.join(_SUMMARY_SECONDS)
        return found[0] if found else None
