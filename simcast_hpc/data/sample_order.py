"""Sample order and random numbers per sample, as pure functions of the seed.

Position p counts samples since the start of the run. Optimizer step n uses the positions ``n * global_size`` to
``(n + 1) * global_size``, independent of world size, micro-batch size and workers.
"""

import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

_TICKETS = 2**32  # integer weight of probability 1
_CACHED_EPOCHS = 4


class SampleOrder:
    """The window of each sample, each once per epoch or by weights; independent of ranks, workers and resuming."""

    def __init__(self, size: int, *, seed: int, weights: np.ndarray | None = None):
        """Keep the weights as integers, so that their sums and hence the draws are exact on every machine.

        Args:
            size: number of windows, N; also the number of samples per epoch.
            seed: seed of the run.
            weights: relative probabilities in [0, 1], ``[N]``; None draws each window once per epoch.
        """
        self.size, self.seed = size, seed
        self._shares = None if weights is None else np.cumsum(np.rint(weights * _TICKETS).astype(np.int64))
        self._epochs: dict[int, np.ndarray] = {}

    def index(self, position: int) -> int:
        """Return the window index, below ``size``, of the sample at ``position``."""
        if self._shares is None:
            return sample_index(position, seed=self.seed, size=self.size)
        epoch, offset = divmod(position, self.size)
        if epoch not in self._epochs:
            if len(self._epochs) >= _CACHED_EPOCHS:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = self._draw(epoch)
        return int(self._epochs[epoch][offset])

    def _draw(self, epoch: int) -> np.ndarray:
        """Return the windows of an epoch: systematic resampling, then a permutation.

        A window of probability p occurs N p times, rounded up or down.
        """
        assert self._shares is not None
        first = np.random.default_rng([self.seed, epoch, zlib.crc32(b"importance")]).random()
        points = (np.arange(self.size) + first) * (int(self._shares[-1]) / self.size)
        drawn = np.minimum(np.searchsorted(self._shares, points, side="right"), self.size - 1)
        return drawn[_permutation(self.seed, epoch, self.size)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epochs": {}}


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


def random_fraction(position: int, *, seed: int, purpose: str) -> float:
    """Return a uniform random number in [0, 1), a function of (seed, position, purpose) only."""
    return float(np.random.default_rng([seed, position, zlib.crc32(purpose.encode())]).random())


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
