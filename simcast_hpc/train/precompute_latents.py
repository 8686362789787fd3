"""Latents of the training windows, made once by all ranks and stored: what the stage ``diffusion`` reads.

A window's row holds, one after the other, the mean and the log-variance of its T' coming frames' latents and the mean
of those of the student's forecast, and of the observed frames where the denoiser wants them: fp16 ``[F, C, h, w]``.
Blocks of windows are files of their own, as of stored roll-outs: a cut-short run goes on, and what a reader sees is
whole.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.data.window_source import WindowKey, WindowSource
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.storage.block_store import BLOCK, block_path, open_block, read_manifest, write_block, write_manifest

logger = logging.getLogger(__name__)
Encode = Callable[[Tensor, list[str]], Tensor]


class LatentSource:
    """Stored latents in the form of windows: ``read`` gives fp16 ``[F, C, h, w]`` in place of code."""

    def __init__(self, folder: Path, windows: WindowSource):
        self._folder, self._windows = folder, windows
        self.frames, self.grid = windows.frames, windows.grid
        self.fingerprint, self.dates = windows.fingerprint, windows.dates

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._windows)

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        return self._windows.key(index)

    def read(self, index: int) -> np.ndarray:
        """Return the latents of window ``index``.

        Raises:
            DataError: they are absent or damaged, or not finite.
        """
        block, place = divmod(index, BLOCK)
        latents = np.array(open_block(self._folder, block)[place])
        if not np.isfinite(latents).all():
            raise DataError(
                f"the latents of window {self.key(index)} in {self._folder} are not finite: look at the autoencoder, "
                "remove the folder and start again"
            )
        return latents


def reject_other_latents(folder: Path, identity: dict[str, object]) -> bool:
    """Return whether ``folder`` holds finished latents of this making.

    Raises:
        ConfigError: it holds those of another autoencoder, student or data set.
    """
    found = read_manifest(folder)
    if found is None:
        return False
    differing = [key for key in {**identity, **found} if found.get(key) != identity.get(key)]
    if differing:
        key = differing[0]
        raise ConfigError(
            f"the latents in {folder} were made with {key}={found.get(key)!r}, this run has {identity.get(key)!r}; "
            "give diffusion.latents another folder"
        )
    return True


def fill_latents(
    folder: Path, identity: dict[str, object], windows: WindowSource, encode: Encode, ranks: TorchRanks, *, batch: int
) -> None:
    """Make what is missing of the latents of all windows. A collective.

    Args:
        folder: where they are stored.
        identity: what they are made of, for :func:`reject_other_latents`.
        windows: the training windows.
        encode: codes uint8 ``[B, T, H, W]`` on the device, and their events, to latents ``[B, F, C, h, w]``.
        ranks: the ranks, which take blocks in turn.
        batch: windows encoded at a time.
    """
    with ranks.together():
        stand = reject_other_latents(folder, identity)
        if ranks.is_first and not stand:
            _claim(folder, identity)
    if stand:
        return
    blocks = range((len(windows) + BLOCK - 1) // BLOCK)
    with ranks.together():
        for block in blocks[ranks.rank :: ranks.size]:
            if block_path(folder, block).is_file():
                continue
            made, last = [], min((block + 1) * BLOCK, len(windows))
            for begin in range(block * BLOCK, last, batch):
                indices = range(begin, min(begin + batch, last))
                codes = torch.from_numpy(np.stack([windows.read(index) for index in indices]))
                latents = encode(codes.to(ranks.device), [windows.key(index).event for index in indices])
                made.append(latents.half().cpu().numpy())
            write_block(folder, block, np.concatenate(made))
            logger.info("latents: %d of %d blocks", block + 1, len(blocks))
    with ranks.together():
        if ranks.is_first:
            write_manifest(folder, identity)


def _claim(folder: Path, identity: dict[str, object]) -> None:
    """Keep the blocks of a cut-short run of the same making; clear those of another."""
    claim = folder / "claim.txt"
    text = repr(sorted(identity.items()))
    if claim.is_file() and claim.read_text(encoding="utf-8") == text:
        return
    if folder.exists():
        strangers = [path.name for path in folder.iterdir() if not path.name.startswith(("block-", "claim"))]
        if strangers:
            raise ConfigError(f"diffusion.latents={folder} holds {strangers[0]}, no latents; name another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    claim.write_text(text, encoding="utf-8")
