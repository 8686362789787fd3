"""Latents of the training windows, computed once by all ranks and stored: the training data of stage ``diffusion``.

The array of a window is fp16 ``[F, C, h, w]``: mean and log-variance of the latents of its T' target frames, then the
mean of those of the student's forecast and, if the denoiser uses them, of the observed frames.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.config import DataError
from simcast_hpc.data.window_source import WindowKey, WindowSource
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.storage.block_store import BlockStore

Encode = Callable[[Tensor, list[str]], Tensor]


class StoredLatents:
    """The latents of the windows of a source, an :class:`~simcast_hpc.data.window_source.ArraySource`."""

    def __init__(self, store: BlockStore, windows: WindowSource):
        self._store, self._windows = store, windows

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._windows)

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        return self._windows.key(index)

    def read(self, index: int) -> np.ndarray:
        """Return the latents of window ``index``, fp16 ``[F, C, h, w]``.

        Raises:
            DataError: they are absent, damaged or not finite.
        """
        latents = self._store.read(index)
        if not np.isfinite(latents).all():
            raise DataError(
                f"the latents of window {self.key(index)} in {self._store.directory} are not finite; check the "
                "autoencoder, remove the directory and start again"
            )
        return latents


def fill_latents(
    store: BlockStore, windows: WindowSource, encode: Encode, ranks: TorchRanks, *, batch_size: int
) -> StoredLatents:
    """Compute the latents that are missing in ``store`` and return all of them. A collective.

    Args:
        store: of the latents.
        windows: the training windows.
        encode: maps pixel values uint8 ``[B, T, H, W]`` on the device, and their events, to latents
            ``[B, F, C, h, w]``.
        ranks: the ranks, which divide the blocks.
        batch_size: windows that are encoded at a time.

    Raises:
        ConfigError: the store is complete with another autoencoder, student or data set.
    """

    def compute(indices: range) -> np.ndarray:
        codes = torch.from_numpy(np.stack([windows.read(index) for index in indices]))
        latents = encode(codes.to(ranks.device), [windows.key(index).event for index in indices])
        return latents.half().cpu().numpy()

    with ranks.together():
        if not store.is_complete():
            store.fill(compute, batch_size=batch_size, rank=ranks.rank, ranks=ranks.size)
    return StoredLatents(store, windows)
