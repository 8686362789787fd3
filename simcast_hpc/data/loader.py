"""Micro batches of one rank, in the order that ``order.py`` fixes, read by worker processes ahead of their use."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .order import rank_positions, sample_index
from .source import WindowSource


class Extension(Protocol):
    """Stored pseudo-frames that continue each window of a source."""

    def read(self, index: int) -> np.ndarray:
        """Return the frames after window ``index``: fp16 in [0, 1] with NaN, or uint8 with 255, ``[T', H, W]``."""
        ...


class MicroBatch(NamedTuple):
    """What one forward pass sees: ``codes`` uint8 ``[B, T, H, W]``; each sample's position and window index."""

    codes: torch.Tensor
    positions: list[int]
    indices: list[int]
    extension: torch.Tensor | None


class _Windows(Dataset[tuple[int, int, np.ndarray, np.ndarray | None]]):
    def __init__(self, source: WindowSource, extension: Extension | None, seed: int):
        self.source, self.extension, self.seed = source, extension, seed

    def __getitem__(self, position: int) -> tuple[int, int, np.ndarray, np.ndarray | None]:
        index = sample_index(position, seed=self.seed, size=len(self.source))
        extended = None if self.extension is None else self.extension.read(index)
        return position, index, self.source.read(index), extended


def _collate(samples: list[tuple[int, int, np.ndarray, np.ndarray | None]]) -> MicroBatch:
    positions, indices, windows, extensions = zip(*samples, strict=True)
    stored = [item for item in extensions if item is not None]
    return MicroBatch(
        codes=torch.from_numpy(np.stack(windows)),
        positions=list(positions),
        indices=list(indices),
        extension=torch.from_numpy(np.stack(stored)) if stored else None,
    )


def micro_batches(
    source: WindowSource,
    *,
    seed: int,
    first_step: int,
    global_size: int,
    micro_size: int,
    rank: int,
    world_size: int,
    workers: int = 0,
    extension: Extension | None = None,
) -> Iterator[MicroBatch]:
    """Yield the micro batches of ``rank`` from optimizer step ``first_step`` on, endlessly."""
    positions = rank_positions(
        first_step=first_step, global_size=global_size, micro_size=micro_size, rank=rank, world_size=world_size
    )
    return iter(
        DataLoader(
            _Windows(source, extension, seed),
            batch_sampler=positions,  # pyright: ignore[reportArgumentType]  an iterator of index lists is all it needs
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
        )
    )
