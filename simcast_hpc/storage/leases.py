"""Leases: processes that share only a directory divide work, and take over the work of a process that was lost.

A lease is a small file that exactly one process can create (``O_EXCL``). Its owner renews it by touching it; a lease
that nobody has touched for a while is stale. Nobody removes or renames a stale lease, since another process could have
replaced it in the meantime: it is superseded by the next generation (``block.lease``, ``block.1.lease``, ...), which
again exactly one process can create. Ages are differences of the file system's own times, so the clocks of the nodes
need not agree.

A lease saves work and protects nothing: after a long pause the former owner may still be at work, so two owners must
write the same content, atomically.
"""

import json
import logging
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)
_RENEWALS_PER_LIMIT = 4


class _State(NamedTuple):
    """Inode and modification time in ns of a lease file; a lease that was renewed or replaced has another state."""

    inode: int
    touched: int


class Lease:
    """A piece of work that this process owns."""

    def __init__(self, path: Path, successor: Path, text: str, *, stale_seconds: float):
        self._path, self._successor, self._text, self._limit = path, successor, text, stale_seconds
        self._renewed = time.monotonic()

    def renew(self) -> bool:
        """Keep the lease from becoming stale; return whether it is still ours. Cheap enough for every micro-batch."""
        if self._seconds_since_renewal() < self._limit / _RENEWALS_PER_LIMIT:
            return True
        if not self._is_ours():
            return False
        with suppress(FileNotFoundError):
            os.utime(self._path)
        self._renewed = time.monotonic()
        return True

    def release(self) -> None:
        """Remove the lease, unless it is another's or stale: another process may be superseding it at this moment."""
        if self._is_ours() and self._seconds_since_renewal() < self._limit:
            self._path.unlink(missing_ok=True)

    def _seconds_since_renewal(self) -> float:
        return time.monotonic() - self._renewed

    def _is_ours(self) -> bool:
        try:
            return self._path.read_text(encoding="utf-8") == self._text and not self._successor.exists()
        except FileNotFoundError:
            return False


class Leases:
    """The leases of a directory."""

    def __init__(self, directory: Path, *, rank: int, stale_seconds: float):
        """Identify this process as an owner.

        Args:
            directory: an existing directory that all processes share.
            rank: of this process, for messages.
            stale_seconds: seconds without renewal after which another process may take over.
        """
        self._directory, self._stale_seconds = directory, stale_seconds
        self.owner = f"rank {rank}, process {os.getpid()} on {socket.gethostname()}"
        self._text = json.dumps({"owner": self.owner, "token": secrets.token_hex(8)})

    @contextmanager
    def acquire(self, name: str) -> Iterator[Lease | None]:
        """Own the lease ``name`` for the block; yield None if another process owns it."""
        lease = self._take(name)
        try:
            yield lease
        finally:
            if lease is not None:
                lease.release()

    def owners(self, pattern: str = "*") -> list[str]:
        """Return the owners of leases whose names match; stale leases are skipped."""
        now, owners = self._now(), []
        for path in sorted(self._directory.glob(f"{pattern}.lease")):
            state = _state(path)
            if state is not None and now - state.touched < self._limit_ns:
                owners.append(_owner(path))
        return owners

    @property
    def _limit_ns(self) -> float:
        return self._stale_seconds * 1e9

    def _take(self, name: str) -> Lease | None:
        generation, superseded = 0, None
        while True:
            path = self._path(name, generation)
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
                break
            except FileExistsError:
                state = _state(path)
                if state is None or self._now() - state.touched < self._limit_ns:
                    return None
                generation, superseded = generation + 1, (path, state)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self._text)
        if superseded is not None:
            previous, state = superseded
            if _state(previous) != state:  # renewed, released or replaced since it was seen to be stale
                path.unlink()
                return None
            seconds = (self._now() - state.touched) / 1e9
            logger.warning(
                "no heartbeat from %s for %.0f s: %s takes over %s", _owner(previous), seconds, self.owner, name
            )
        return Lease(path, self._path(name, generation + 1), self._text, stale_seconds=self._stale_seconds)

    def _path(self, name: str, generation: int) -> Path:
        return self._directory / (f"{name}.{generation}.lease" if generation else f"{name}.lease")

    def _now(self) -> int:
        """Return the file system's time, ns."""
        with tempfile.TemporaryFile(dir=self._directory) as probe:
            return os.fstat(probe.fileno()).st_mtime_ns


def _state(path: Path) -> _State | None:
    """Return the state of a lease file, None if there is none. The file is opened, which refreshes NFS attributes."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return _State(status.st_ino, status.st_mtime_ns)


def _owner(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["owner"])
    except (OSError, ValueError, KeyError):
        return "an unknown process"
