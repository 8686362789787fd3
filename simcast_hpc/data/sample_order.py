"""Which sample stands where, and what chance decides for it: pure functions of the seed, never of the machine.

Position p counts samples since the start of the run. TorchRanks size, micro batch and workers never change which
samples form optimizer step n: they are the positions ``n * global_size`` up to ``(n + 1) * global_size``.
"""

import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def sample_index(position: int, *, seed: int, size: int) -> int:
    """Return which of ``size`` windows stands at ``position``: every epoch is a permutation of all of them."""
    epoch, place = divmod(position, size)
    return int(_permutation(seed, epoch, size)[place])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, zlib.crc32(b"order")]).permutation(size)


def draw(position: int, *, seed: int, purpose: str, choices: int) -> int:
    """Return a number in 0 .. ``choices`` - 1, uniform, a function of (seed, position, purpose) alone.

    Every sample draws from its own counter, so a resumed run, another world size or another order of reading
    meets the same chance. ``purpose`` keeps the draws of one sample independent of each other.
    """
    return int(np.random.default_rng([seed, position, zlib.crc32(purpose.encode())]).integers(choices))


def rank_positions(
    *, first_step: int, global_size: int, micro_size: int, rank: int, world_size: int
) -> Iterator[list[int]]:
    """Yield the positions of each micro batch of one rank, endlessly, from optimizer step ``first_step`` on."""
    step = first_step
    while True:
        for start in range(step * global_size, (step + 1) * global_size, micro_size * world_size):
            mine = start + rank * micro_size
            yield list(range(mine, mine + micro_size))
        step += 1
