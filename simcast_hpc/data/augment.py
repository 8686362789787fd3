"""Augmentation of training samples on the device, off by default: random crops and the eight symmetries of the square.

The augmentation of a sample is a function of seed and position only, independent of workers, ranks and resuming.
"""

from collections.abc import Sequence

import torch

from simcast_hpc.config import DataConfig

from .crop_positions import uniform_corner
from .sample_order import random_integer


def augment(
    frames: torch.Tensor,
    positions: Sequence[int],
    config: DataConfig,
    *,
    seed: int,
    corners: Sequence[tuple[int, int]] | None = None,
) -> torch.Tensor:
    """Return each sample of ``[B, ..., H, W]`` cropped, flipped and rotated according to ``config``.

    All tensors of one sample (real frames, stored pseudo-frames) get the same augmentation. ``corners`` are the upper
    left pixels of the crops, by default uniform.
    """
    if config.cropping is not None:
        side = config.cropping.side
        grid = (frames.shape[-2], frames.shape[-1])
        if corners is None:
            corners = [uniform_corner(position, grid, side=side, seed=seed) for position in positions]
        frames = crop_at(frames, corners, side=side)
    return random_symmetry(frames, positions, seed=seed) if config.augment else frames


def crop_at(frames: torch.Tensor, corners: Sequence[tuple[int, int]], *, side: int) -> torch.Tensor:
    """Return the ``side`` x ``side`` crop of each sample of ``[B, ..., H, W]`` with this upper left pixel."""
    return torch.stack(
        [sample[..., top : top + side, left : left + side] for sample, (top, left) in zip(frames, corners, strict=True)]
    )


def random_symmetry(frames: torch.Tensor, positions: Sequence[int], *, seed: int) -> torch.Tensor:
    """Return each sample of ``[B, ..., H, W]`` transformed by a random symmetry of the square.

    On a grid that is not square, only the four symmetries that keep the shape are used.
    """
    square = frames.shape[-1] == frames.shape[-2]
    transformed = []
    for sample, position in zip(frames, positions, strict=True):
        symmetry = random_integer(position, seed=seed, purpose="symmetry", choices=8 if square else 4)
        if symmetry & 1:
            sample = sample.flip(-1)
        if symmetry & 2:
            sample = sample.flip(-2)
        if symmetry & 4:
            sample = sample.transpose(-1, -2)
        transformed.append(sample)
    return torch.stack(transformed)
