"""Store of the teacher's rollouts and of diffusion latents: blocks that any number of processes fill together.

A store is a directory with one ``.npy`` per ``BLOCK`` windows, ``[n, ...]``, and a manifest with its identity: all that
the arrays depend on. Processes divide the blocks by leases, so the blocks of a lost process are taken over, by others
or by the next start. Blocks are written atomically, and two processes that compute the same block write the same bytes.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.monitoring.progress import Progress

from .atomic_files import atomic_file, sweep, write_json
from .block_queue import BlockQueue, Pause
from .leases import Lease, Leases

logger = logging.getLogger(__name__)
BLOCK = 64
LEASE_SECONDS = 300.0
_RACES = 4  # lost in a row before a pause: a listing of NFS can be old
_MANIFEST = "manifest.json"
_OWN_FILES = ("block-", "claim", "manifest", ".")
Compute = Callable[[range], np.ndarray]


class BlockStore:
    """Stored arrays, readable by window index; opened files are mapped, so a store can be sent to worker processes."""

    def __init__(self, directory: Path, identity: Mapping[str, object], *, name: str):
        """Describe a store; nothing is read or written yet.

        Args:
            directory: of the blocks.
            identity: all that the arrays depend on, as JSON values; among it the number of ``windows``.
            name: the configuration field that names the directory, for messages.
        """
        self.directory, self.name = directory, name
        self.identity: dict[str, Any] = json.loads(json.dumps(dict(identity)))
        self.windows: int = self.identity["windows"]

    def is_complete(self) -> bool:
        """Return whether every block is stored.

        Raises:
            ConfigError: the store is complete, but was computed from something else.
        """
        manifest = self._manifest()
        if manifest is None or not manifest["complete"]:
            return False
        stored = manifest["identity"]
        for key in {**self.identity, **stored}:
            if stored.get(key) != self.identity.get(key):
                raise ConfigError(
                    f"{self.name}={self.directory} was computed with {key}={stored.get(key)!r}, but this run has "
                    f"{self.identity.get(key)!r}; choose another directory"
                )
        return True

    def read(self, index: int) -> np.ndarray:
        """Return a copy of the array of window ``index``.

        Raises:
            DataError: its block is absent or damaged.
        """
        block, row = divmod(index, BLOCK)
        return np.array(open_block(self.path(block))[row])

    def path(self, block: int) -> Path:
        """Return the file of a block."""
        return self.directory / f"block-{block:06d}.npy"

    def stored_blocks(self) -> set[int]:
        """Return the numbers of the stored blocks."""
        return {int(path.stem.removeprefix("block-")) for path in self.directory.glob("block-*.npy")}

    def fill(
        self,
        compute: Compute,
        *,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        lease_seconds: float = LEASE_SECONDS,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute the missing blocks together with all processes that fill the same store; return when it is complete.

        Blocks that an interrupted fill of the same identity stored are kept; those of another identity are removed.

        Args:
            compute: returns the arrays ``[n, ...]`` of a range of n window indices.
            batch_size: windows per call of ``compute``.
            rank: of this process; ranks start with different blocks.
            ranks: number of processes that are expected.
            lease_seconds: seconds without a heartbeat after which the block of another process is taken over.
            check: called between batches and while waiting; its exception ends the fill and releases the leases.

        Raises:
            ConfigError: the directory contains other files, or is being filled with another identity.
        """
        if self._is_claimed(complete=True):
            logger.info("%s: all blocks are stored in %s", self.name, self.directory)
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        leases = Leases(self.directory, rank=rank, stale_seconds=lease_seconds)

        wait = Pause(check, longest=lease_seconds / 4)
        # 1. Claim the directory for this identity: one process for all
        while not self._is_claimed():
            with leases.acquire("claim") as lease:
                if lease is None:
                    wait()
                elif not self._is_claimed():
                    self._clear(leases)
                    self._write_manifest(complete=False)
        # 2. Compute the missing blocks
        blocks = -(-self.windows // BLOCK)
        queue = BlockQueue(self.directory, blocks, rank=rank, ranks=ranks, lease_seconds=lease_seconds)
        missing_windows = self.windows - BLOCK * len(self.stored_blocks())
        progress = Progress(logger, self.name, max(1, -(-missing_windows // ranks)), unit="windows")
        waited, lost_races = False, 0
        while (candidates := queue.candidates()) is not None:
            taken = False
            for block in candidates:
                with leases.acquire(self.path(block).stem) as lease:
                    taken = lease is not None
                    queue.tried(block, taken=taken)
                    if lease is not None and not self.path(block).is_file():
                        self._fill_block(block, compute, batch_size, lease, check, progress)
                if taken:
                    wait.reset()
                    break
            lost_races = 0 if taken else lost_races + 1
            if not taken and (not candidates or lost_races % _RACES == 0):
                if not waited:
                    logger.info("%s: waiting for blocks of other processes", self.name)
                waited = True
                wait()
        # 3. Declare the store complete
        while not self._is_claimed(complete=True):
            with leases.acquire("claim") as lease:
                if lease is None:
                    wait()
                    continue
                self._reject_another_claim()
                self._write_manifest(complete=True)
                sweep(self.directory)
                for path in self.directory.glob("block-*.lease"):
                    path.unlink(missing_ok=True)

    def write(self, block: int, arrays: np.ndarray) -> None:
        """Write a block atomically."""
        path = self.path(block)
        open_block.cache_clear()
        try:
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, arrays)
        except FileNotFoundError:
            if not path.is_file():  # otherwise another process stored the same block, completed the store and swept it
                raise

    def _fill_block(
        self,
        block: int,
        compute: Compute,
        batch_size: int,
        lease: Lease,
        check: Callable[[], None],
        progress: Progress,
    ) -> None:
        end = min((block + 1) * BLOCK, self.windows)
        parts = []
        for begin in range(block * BLOCK, end, batch_size):
            check()
            if not lease.renew():
                logger.warning("%s: block %d was taken over because its lease became stale", self.name, block)
                return
            indices = range(begin, min(begin + batch_size, end))
            parts.append(compute(indices))
            progress.advance(len(indices))
        self._reject_another_claim()
        self.write(block, np.concatenate(parts))

    def _manifest(self) -> dict[str, Any] | None:
        path = self.directory / _MANIFEST
        try:
            manifest = read_json_file(path, error=ConfigError, what="the manifest")
            return {"complete": bool(manifest["complete"]), "identity": dict(manifest["identity"])}
        except ConfigError as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None
            return None
        except (ValueError, KeyError, TypeError):
            return None

    def _write_manifest(self, *, complete: bool) -> None:
        write_json(self.directory / _MANIFEST, {"complete": complete, "identity": self.identity})

    def _is_claimed(self, *, complete: bool = False) -> bool:
        """Return whether the directory belongs to this identity, and optionally whether it is complete."""
        manifest = self._manifest()
        if manifest is None or manifest["identity"] != self.identity:
            return False
        return manifest["complete"] or not complete

    def _reject_another_claim(self) -> None:
        if not self._is_claimed():
            raise ConfigError(
                f"{self.name}={self.directory} was claimed for another identity meanwhile; choose another directory"
            )

    def _clear(self, leases: Leases) -> None:
        """Remove the blocks of another identity, the manifest first."""
        entries = sorted(self.directory.iterdir(), reverse=True)
        if others := [path.name for path in entries if not path.name.startswith(_OWN_FILES)]:
            raise ConfigError(
                f"{self.name}={self.directory} contains {others[-1]}, which is not part of a store; "
                "choose another directory"
            )
        if owners := leases.owners("block-*"):
            raise ConfigError(
                f"{self.name}={self.directory} is being filled with another identity by {owners[0]}; "
                "wait for it, or choose another directory"
            )
        for path in entries:
            if not path.name.startswith(("claim", ".")):
                path.unlink(missing_ok=True)


@lru_cache(maxsize=64)
def open_block(path: Path) -> np.ndarray:
    """Return a stored block, mapped into memory; the blocks that were used last stay open.

    Raises:
        DataError: the file is absent or damaged.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is absent or damaged, but its store is complete: {error}; remove {path.parent} and fill it again"
        ) from error
