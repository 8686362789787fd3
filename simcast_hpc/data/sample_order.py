"""Sample order and random numbers per sample, as pure functions of the seed.

Position p counts samples since the start of the run. Optimizer step n uses the positions ``n * global_size`` to
``(n + 1) * global_size``, independent of world size, micro-batch size and workers.
"""

import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def sample_index(position: int, *, seed: int, size: int) -> int:
    """Return the window index, below ``size``, of the sample at ``position``; each epoch is a permutation."""
    epoch, offset = divmod(position, size)
    return int(_permutation(seed, epoch, size)[offset])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, zlib.crc32(b"order")]).permutation(size)


def random_integer(position: int, *, seed: int, purpose: str, choices: int) -> int:
    """Return a uniform random integer in 0 .. ``choices`` - 1, a function of (seed, position, purpose) only.

    A resumed run, another world size or another read order therefore gets the same numbers. ``purpose`` makes the
    numbers of one sample independent of each other.
    """
    return int(np.random.default_rng([seed, position, zlib.crc32(purpose.encode())]).integers(choices))


def rank_positions(
    *, first_step: int, global_size: int, micro_size: int, rank: int, world_size: int
) -> Iterator[list[int]]:
    """Yield the positions of each micro-batch of one rank, endlessly, starting at optimizer step ``first_step``."""
    step = first_step
    while True:
        for start in range(step * global_size, (step + 1) * global_size, micro_size * world_size):
            first = start + rank * micro_size
            yield list(range(first, first + micro_size))
        step += 1
