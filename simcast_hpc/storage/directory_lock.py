"""A lock on an output directory: one process, or one group of ranks, writes there at a time.

The lock is a lease (``leases``) in the hidden file ``.simcast.lease``, which a thread renews. A second process is
rejected. A lock whose owner is dead is taken over: at once if that can be determined, otherwise when its lease expires.
An owner that loses its lock, because it was suspended for longer than the limit, gets an error before it writes again.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.parse import quote

from simcast_hpc.config import ConfigError, SimcastError
from simcast_hpc.distributed.ranks import SINGLE_RANK, Ranks

from .leases import Holder, Lease, Leases
from .process_identity import describe, is_here

logger = logging.getLogger(__name__)
LEASE_SECONDS = 60.0
_RENEWALS_PER_LIMIT = 12
_PREFIX = ".simcast"
_RETRY_SECONDS = 0.05


class LostLockError(SimcastError, RuntimeError):
    """Another process owns the lock now; this one must not write any more."""


class DirectoryLock:
    """The lock of this process; on ranks other than 0 there is nothing to renew and :meth:`check` returns."""

    def __init__(self, directory: Path, lease: Lease | None, *, lease_seconds: float):
        self._directory, self._lease, self._limit = directory, lease, lease_seconds
        self._mutex, self._ended = threading.Lock(), threading.Event()
        self._is_lost = False
        if lease is not None:
            threading.Thread(target=self._renew_periodically, name="lock renewal", daemon=True).start()

    def check(self) -> None:
        """Return if this process still owns the lock. Cheap enough for every step.

        Raises:
            LostLockError: another process has taken it over.
        """
        if self._lease is None:
            return
        if self._lease.seconds_since_renewal() > self._limit / 2:
            self._renew()
        if self._is_lost:
            raise LostLockError(
                f"the lock on {self._directory} was lost: this process did not renew it for {self._limit:g} s, or the "
                "lock file was removed, so another process may write there; this process stops"
            )

    def release(self) -> None:
        """End the renewal and remove the lease, if it is still ours."""
        if self._lease is None:
            return
        self._ended.set()
        with self._mutex, suppress(OSError):  # an unreachable file system: the lease expires
            self._lease.release()

    def _renew_periodically(self) -> None:
        while not self._ended.wait(self._limit / _RENEWALS_PER_LIMIT):
            self._renew()
            if self._is_lost:
                logger.error("the lock on %s was lost", self._directory)
                return

    def _renew(self) -> None:
        assert self._lease is not None
        with self._mutex:
            if self._ended.is_set() or self._is_lost:
                return
            try:
                self._is_lost = not self._lease.renew_now()
            except OSError as error:
                logger.warning("the lock on %s cannot be renewed: %s", self._directory, error)


@contextmanager
def hold_directory(
    directory: Path,
    purpose: str,
    *,
    field: str = "run_dir",
    name: str = "",
    ranks: Ranks = SINGLE_RANK,
    lease_seconds: float | None = None,
) -> Iterator[DirectoryLock]:
    """Hold the lock on a directory for the block; rank 0 holds it for all ranks. Entering is a collective.

    A single process that does not handle SIGTERM exits on it with status 143, so that the lock is released.

    Args:
        directory: created if it does not exist; removed again if the block leaves it empty.
        purpose: of the block, such as ``training``, for the message of a second process.
        field: the configuration field or argument that names the directory, for messages.
        name: of the output within the directory, if several outputs there are independent.
        ranks: that enter the block together.
        lease_seconds: seconds without renewal after which another process takes the lock over; 60 by default.

    Raises:
        ConfigError: on every rank; another process holds the lock, or the directory cannot be written.
        SystemExit: after a SIGTERM that nothing else handles.
    """
    limit = LEASE_SECONDS if lease_seconds is None else lease_seconds
    lease, failure, created = None, None, False
    if ranks.is_first:
        try:
            created = not directory.exists()
            directory.mkdir(parents=True, exist_ok=True)
            lease = _acquire(directory, purpose, field=field, name=_lease_name(name), limit=limit)
        except ConfigError as error:
            failure = error
        except OSError as error:
            failure = ConfigError(f"{field}={directory} cannot be written: {error.strerror or error}")
    lock = DirectoryLock(directory, lease, lease_seconds=limit)
    try:
        if failure := ranks.broadcast(failure):
            raise failure
        with _exit_on_terminate() if ranks.size == 1 else nullcontext():
            yield lock
    finally:
        lock.release()
        if created:
            with suppress(OSError):  # it contains something
                directory.rmdir()


def is_lock_file(path: Path) -> bool:
    """Return whether a file belongs to a lock, so that its directory counts as empty."""
    return path.name.startswith(_PREFIX) and path.suffix == ".lease"


def _lease_name(name: str) -> str:
    # The last "-" ends the name, which may look like a lease of a later generation.
    return f"{_PREFIX}-{quote(name, safe='')}-" if name else _PREFIX


def _acquire(directory: Path, purpose: str, *, field: str, name: str, limit: float) -> Lease:
    """Take the lease; wait only as long as it is unclear whether its owner is alive.

    An owner on another machine is alive if its lease is renewed while we look, which takes a twelfth of the limit.
    Rejecting by the age alone would end a chain of jobs whose node was just lost.
    """
    leases = Leases(directory, rank=0, stale_seconds=limit, purpose=purpose)
    first: Holder | None = None
    while True:
        lease = leases.take(name)
        if lease is not None:
            return lease
        holder = leases.holder(name)
        if holder is not None and holder.record:
            if is_here(holder.record) or (first is not None and holder.state != first.state):
                raise _rejection(directory, holder, field=field, limit=limit)
            if first is None:
                first = holder
                logger.warning(
                    "%s=%s is locked by %s: waiting up to %.0f s for its next heartbeat",
                    field, directory, describe(holder.record), limit,
                )  # fmt: skip
        # Otherwise it was just created or released.
        time.sleep(_RETRY_SECONDS if first is None else limit / _RENEWALS_PER_LIMIT / 4)


def _rejection(directory: Path, holder: Holder, *, field: str, limit: float) -> ConfigError:
    purpose = holder.record.get("purpose") or "another process"
    return ConfigError(
        f"{field}={directory} is locked by {purpose}: {describe(holder.record)}, last heartbeat "
        f"{holder.age:.0f} s ago; wait until it ends, stop it, or choose another {field} "
        f"(the lock of a lost process expires after {limit:g} s)"
    )


@contextmanager
def _exit_on_terminate() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, unless the program handles the signal or this is not the main thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
