"""Augmentation of training samples on the device, off by default: random crops and the eight symmetries of the square.

The augmentation of a sample is a function of seed and position only, independent of workers, ranks and resuming.
"""

from collections.abc import Sequence

import torch

from simcast_hpc.config import ConfigError, DataConfig

from .sample_order import random_integer


def augment(frames: torch.Tensor, positions: Sequence[int], config: DataConfig, *, seed: int) -> torch.Tensor:
    """Return each sample of ``[B, ..., H, W]`` cropped, flipped and rotated according to ``config``.

    All tensors of one sample (real frames, stored pseudo-frames) get the same augmentation.
    """
    if config.crop is not None:
        frames = random_crop(frames, positions, size=config.crop, seed=seed)
    return random_symmetry(frames, positions, seed=seed) if config.augment else frames


def training_grid(config: DataConfig, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the grid (H, W) of training samples of data with ``grid``.

    Raises:
        ConfigError: ``data.crop`` is larger than the grid.
    """
    if config.crop is None:
        return grid
    if config.crop > min(grid):
        raise ConfigError(f"data.crop={config.crop} is larger than the data's grid of {grid[0]} x {grid[1]} pixels")
    return (config.crop, config.crop)


def random_crop(frames: torch.Tensor, positions: Sequence[int], *, size: int, seed: int) -> torch.Tensor:
    """Return a random ``size`` x ``size`` crop of each sample of ``[B, ..., H, W]``."""
    height, width = frames.shape[-2:]
    crops = []
    for sample, position in zip(frames, positions, strict=True):
        top = random_integer(position, seed=seed, purpose="crop-top", choices=height - size + 1)
        left = random_integer(position, seed=seed, purpose="crop-left", choices=width - size + 1)
        crops.append(sample[..., top : top + size, left : left + size])
    return torch.stack(crops)


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
