"""Leases: how processes that share nothing but a folder share out work, and take over what a lost one held.

A lease is a small file that one process alone can make (``O_EXCL``). Its holder touches it as the work moves on; what
nobody has touched for a while is stale, and free for anyone. Time is the file system's own, so that clocks of nodes
need not agree. A lease saves work and guards nothing: two processes may hold the same one after a long pause, and what
they write must come out the same and appear by a rename.
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

logger = logging.getLogger(__name__)
_BEATS_A_LIMIT = 4


class Lease:
    """A piece of work that this process holds."""

    def __init__(self, path: Path, text: str, *, stale_seconds: float):
        self._path, self._text, self._every = path, text, stale_seconds / _BEATS_A_LIMIT
        self._beaten = time.monotonic()

    def beat(self) -> bool:
        """Say that the work moves on; return whether the lease is still ours. Cheap enough for every micro batch."""
        if time.monotonic() - self._beaten < self._every:
            return True
        self._beaten = time.monotonic()
        if not self._is_ours():
            return False
        with suppress(FileNotFoundError):
            os.utime(self._path)
        return True

    def release(self) -> None:
        """Give it back, unless another took it over meanwhile."""
        if self._is_ours():
            self._path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        try:
            return self._path.read_text(encoding="utf-8") == self._text
        except FileNotFoundError:
            return False


class Leases:
    """The leases of a folder, ``<name>.lease`` each."""

    def __init__(self, folder: Path, *, rank: int, stale_seconds: float):
        """Name this process.

        Args:
            folder: which all processes see; it must be there.
            rank: of this process, for messages.
            stale_seconds: how long a holder may be silent.
        """
        self._folder, self._stale_seconds = folder, stale_seconds
        self.holder = f"rank {rank}, process {os.getpid()} on {socket.gethostname()}"
        self._text = json.dumps({"holder": self.holder, "token": secrets.token_hex(8)})

    @contextmanager
    def held(self, name: str) -> Iterator[Lease | None]:
        """Hold the lease ``name`` in the block; None where another has it."""
        lease = self._take(name)
        try:
            yield lease
        finally:
            if lease is not None:
                lease.release()

    def holders(self, pattern: str = "*") -> list[str]:
        """Return who holds leases whose names match, stale ones left out."""
        now, found = self._now(), []
        for path in sorted(self._folder.glob(f"{pattern}.lease")):
            age = _age(path, now)
            if age is not None and age < self._stale_seconds:
                found.append(_holder(path))
        return found

    def _take(self, name: str) -> Lease | None:
        path = self._folder / f"{name}.lease"
        for _ in range(2):
            try:
                made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                if not self._cleared_away(path):
                    return None
                continue
            with os.fdopen(made, "w", encoding="utf-8") as file:
                file.write(self._text)
            return Lease(path, self._text, stale_seconds=self._stale_seconds)
        return None

    def _cleared_away(self, path: Path) -> bool:
        """Remove a stale lease; return whether there is none now."""
        age = _age(path, self._now())
        if age is None:
            return True
        if age < self._stale_seconds:
            return False
        holder, aside = _holder(path), path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            path.rename(aside)  # of several that see it stale, one succeeds
        except FileNotFoundError:
            return True
        aside.unlink()
        logger.warning("%s has been silent for %.0f s: %s takes over %s", holder, age, self.holder, path.stem)
        return True

    def _now(self) -> float:
        """Return the file system's time."""
        with tempfile.TemporaryFile(dir=self._folder) as probe:
            return os.fstat(probe.fileno()).st_mtime


def _age(path: Path, now: float) -> float | None:
    """Return the seconds since a lease was touched; None where it is gone. It is opened, which refreshes NFS."""
    try:
        with path.open("rb") as file:
            return now - os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _holder(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["holder"])
    except (OSError, ValueError, KeyError):
        return "a process unknown"
