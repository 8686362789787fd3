"""Leases: processes that share only a directory divide work, and take over the work of a process that was lost.

A lease is a small file that exactly one process can create (``O_EXCL``). Its owner renews it by touching it. A lease is
stale if nobody has touched it for a while, or if its owner is known to be dead (``process_identity``). A stale lease is
not removed or renamed, since another process could have replaced it in the meantime: it is superseded by the next
generation (``block.lease``, ``block.1.lease``, ...), which again exactly one process can create. The last generation
counts; its owner removes the former ones when it releases its own. A process that created a lease withdraws it if the
superseded one has changed or a later generation exists. Ages are differences of the file system's own times, so the
clocks of the nodes need not agree.

A lease saves work and protects nothing: after a long pause the former owner may still be at work, so two owners must
write the same content, atomically, or ask before they write (``directory_lock``).
"""

import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from .process_identity import describe, identity, is_dead

logger = logging.getLogger(__name__)
_RENEWALS_PER_LIMIT = 4


class _State(NamedTuple):
    """Inode and modification time in ns of a lease file; a lease that was renewed or replaced has another state."""

    inode: int
    touched: int


class Holder(NamedTuple):
    """The owner of a lease as another process sees it.

    Attributes:
        record: what the owner wrote, see :func:`.process_identity.identity`; empty if it cannot be read.
        state: changes when the lease is renewed or replaced.
        age: seconds since the last renewal, by the file system's time.
    """

    record: dict[str, Any]
    state: _State
    age: float


class Lease:
    """A piece of work that this process owns."""

    def __init__(self, path: Path, former: list[Path], successor: Path, text: str, *, stale_seconds: float):
        self._path, self._former, self._successor, self._text = path, former, successor, text
        self._limit, self._process = stale_seconds, os.getpid()
        self._renewed = time.monotonic()

    def renew(self) -> bool:
        """Keep the lease from becoming stale; return whether it is still ours. Cheap enough for every micro-batch."""
        if self.seconds_since_renewal() < self._limit / _RENEWALS_PER_LIMIT:
            return True
        return self.renew_now()

    def renew_now(self) -> bool:
        """Renew the lease whatever its age, and return whether it is still ours."""
        began = time.monotonic()
        if not self._is_ours():
            return False
        with suppress(FileNotFoundError):
            os.utime(self._path)
        self._renewed = began
        return True

    def release(self) -> None:
        """Remove the lease, unless it is another's or stale: another process may be superseding it at this moment."""
        if os.getpid() != self._process or self.seconds_since_renewal() >= self._limit or not self._is_ours():
            return
        for path in (*self._former, self._path):
            path.unlink(missing_ok=True)

    def seconds_since_renewal(self) -> float:
        """Return the seconds since this process last renewed the lease."""
        return time.monotonic() - self._renewed

    def _is_ours(self) -> bool:
        # On NFS a cached "no such file" can hide a successor; a file that this client creates refreshes the directory.
        _file_system_time(self._path.parent)
        try:
            return self._path.read_text(encoding="utf-8") == self._text and not self._successor.exists()
        except FileNotFoundError:
            return False


class Leases:
    """The leases of a directory."""

    def __init__(self, directory: Path, *, rank: int, stale_seconds: float, purpose: str = ""):
        """Identify this process as an owner.

        Args:
            directory: an existing directory that all processes share.
            rank: of this process, for messages.
            stale_seconds: seconds without renewal after which another process may take over.
            purpose: what the owner does, for messages.
        """
        self._directory, self._stale_seconds = directory, stale_seconds
        record = {"rank": rank, "purpose": purpose, **identity()}
        self.owner = describe(record)
        self._text = json.dumps({**record, "token": secrets.token_hex(8)})

    @contextmanager
    def acquire(self, name: str) -> Iterator[Lease | None]:
        """Own the lease ``name`` for the block; yield None if another process owns it."""
        lease = self.take(name)
        try:
            yield lease
        finally:
            if lease is not None:
                lease.release()

    def take(self, name: str) -> Lease | None:
        """Create the lease ``name`` and return it; None if another process owns it, or takes it at this moment.

        Raises:
            OSError: the directory cannot be written; no lease remains.
        """
        # 1. The last generation, if it is stale
        generations = self._generations(name)
        superseded = None
        if generations:
            previous = self._path(name, generations[-1])
            state = _state(previous)
            if state is None or not self._is_stale(previous, state):
                return None
            superseded = (previous, state)
        generation = generations[-1] + 1 if generations else 0
        # 2. The next one
        path = self._path(name, generation)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(self._text)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        # 3. Withdraw it if the former lease was renewed, released or replaced since, or was superseded before
        changed = superseded is not None and _state(superseded[0]) != superseded[1]
        if changed or self._generations(name)[-1:] != [generation]:
            path.unlink(missing_ok=True)
            return None
        if superseded is not None:
            self._report(name, *superseded)
        former = [self._path(name, number) for number in generations]
        return Lease(path, former, self._path(name, generation + 1), self._text, stale_seconds=self._stale_seconds)

    def holder(self, name: str) -> Holder | None:
        """Return the owner of the lease ``name``, also of a stale one; None if there is no such lease."""
        for generation in reversed(self._generations(name)):
            path = self._path(name, generation)
            if (state := _state(path)) is not None:
                return Holder(_record(path), state, (_file_system_time(self._directory) - state.touched) / 1e9)
        return None

    def owners(self, pattern: str = "*") -> list[str]:
        """Return the owners of leases whose names match; stale leases are skipped."""
        owners = []
        for path in sorted(self._directory.glob(f"{pattern}.lease")):
            state = _state(path)
            if state is not None and not self._is_stale(path, state):
                owners.append(describe(_record(path)))
        return owners

    def _is_stale(self, path: Path, state: _State) -> bool:
        age = _file_system_time(self._directory) - state.touched
        return age >= self._stale_seconds * 1e9 or is_dead(_record(path))

    def _report(self, name: str, previous: Path, state: _State) -> None:
        seconds = (_file_system_time(self._directory) - state.touched) / 1e9
        owner = describe(_record(previous))
        logger.warning("no heartbeat from %s for %.0f s: %s takes over %s", owner, seconds, self.owner, name)

    def _generations(self, name: str) -> list[int]:
        """Return the numbers of the lease files of ``name``, in order."""
        numbers = (path.name[len(name) :].split(".")[-2] for path in self._directory.glob(f"{escape(name)}.*lease"))
        return sorted(int(number or 0) for number in numbers if not number or number.isdecimal())

    def _path(self, name: str, generation: int) -> Path:
        return self._directory / (f"{name}.{generation}.lease" if generation else f"{name}.lease")


def _file_system_time(directory: Path) -> int:
    """Return the time of the file system that contains ``directory``, ns."""
    with tempfile.TemporaryFile(dir=directory) as probe:
        return os.fstat(probe.fileno()).st_mtime_ns


def _state(path: Path) -> _State | None:
    """Return the state of a lease file, None if there is none. The file is opened, which refreshes NFS attributes."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return _State(status.st_ino, status.st_mtime_ns)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
