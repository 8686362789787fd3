"""The next block of a block store for a process that computes it, with few operations on the shared file system.

One listing of the directory shows which blocks are stored and which are leased. Only a free block is tried. Leased
blocks may belong to a lost process, so they are looked at too, but only four times per lease period, and each of
``ranks`` processes looks at its share of them. A process that finds nothing waits, up to 15 s between two listings.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

_FIRST_PAUSE_SECONDS = 2.0
_MAX_PAUSE_SECONDS = 15.0
_LOOKS_PER_LEASE = 4
_LOOKERS_PER_BLOCK = 4


class BlockQueue:
    """Blocks in the order of one process; those it gave up come last."""

    def __init__(self, directory: Path, blocks: int, *, rank: int, ranks: int, lease_seconds: float):
        """Describe the store and the process.

        Args:
            directory: of the store.
            blocks: number of blocks.
            rank: of this process; processes start with different blocks.
            ranks: number of processes that are expected.
            lease_seconds: after which a lease that is not renewed is stale.
        """
        self._directory, self._blocks, self._ranks = directory, blocks, ranks
        self._next = self._next_look = blocks * rank // ranks
        self._period = lease_seconds / _LOOKS_PER_LEASE
        self._looks_at = 0.0

    def candidates(self) -> list[int] | None:
        """Return the blocks that are worth a try of their lease, the best first; None if all blocks are stored.

        An empty list means that others compute all that is missing: wait.
        """
        stored, leased = self._listing()
        missing = sorted(set(range(self._blocks)) - stored, key=lambda block: (block - self._next) % self._blocks)
        if not missing:
            return None
        free = [block for block in missing if block not in leased]
        if free:
            return free[:1]
        if time.monotonic() < self._looks_at:
            return []
        self._looks_at = time.monotonic() + self._period
        missing.sort(key=lambda block: (block - self._next_look) % self._blocks)
        looks = missing[: max(1, -(-_LOOKERS_PER_BLOCK * len(missing) // self._ranks))]
        self._next_look = looks[-1] + 1
        return looks

    def tried(self, block: int, *, taken: bool) -> None:
        """Record a try: the next free block follows this one, and a lost process may have left more blocks."""
        self._next = block + 1
        if taken:
            self._looks_at = 0.0

    def _listing(self) -> tuple[set[int], set[int]]:
        """Return the stored and the leased blocks."""
        found: dict[str, set[int]] = {"npy": set(), "lease": set()}
        for name in os.listdir(self._directory):
            stem, *_generation, suffix = name.split(".")
            number = stem.removeprefix("block-")
            if suffix in found and number != stem and number.isdecimal():
                found[suffix].add(int(number))
        return found["npy"], found["lease"]


class Pause:
    """Pauses that grow by half each time, with a random part so that processes do not wait in step."""

    def __init__(self, check: Callable[[], None], *, longest: float):
        """Limit the pauses.

        Args:
            check: called at least every 2 s; its exception ends the pause.
            longest: s, at most 15.
        """
        self._check, self._longest = check, min(longest, _MAX_PAUSE_SECONDS)
        self.reset()

    def reset(self) -> None:
        """Begin with the shortest pause again."""
        self._seconds = min(_FIRST_PAUSE_SECONDS, self._longest)

    def __call__(self) -> None:
        """Wait once."""
        end = time.monotonic() + self._seconds * random.uniform(0.75, 1.0)
        self._seconds = min(1.5 * self._seconds, self._longest)
        while True:
            self._check()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _FIRST_PAUSE_SECONDS))
