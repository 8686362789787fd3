"""Augmentation of training samples, on the device and off by default: crops and the eight symmetries of the square.

What happens to a sample is drawn from counters, a function of seed and position alone, so that workers, ranks and
resumed runs see the same.
"""

from collections.abc import Sequence

import torch

from simcast_hpc.config import ConfigError, DataConfig

from .sample_order import draw


def augmented(frames: torch.Tensor, positions: Sequence[int], config: DataConfig, *, seed: int) -> torch.Tensor:
    """Return each sample of ``[B, ..., H, W]`` cut, flipped and turned as ``config`` and its position say.

    Whatever belongs to one sample (codes, stored pseudo-frames) is treated alike.
    """
    if config.crop is not None:
        frames = crop(frames, positions, size=config.crop, seed=seed)
    return random_symmetry(frames, positions, seed=seed) if config.augment else frames


def training_grid(config: DataConfig, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the grid that training sees of data of ``grid``.

    Raises:
        ConfigError: ``data.crop`` is larger than the grid.
    """
    if config.crop is None:
        return grid
    if config.crop > min(grid):
        raise ConfigError(f"data.crop={config.crop} is larger than the data's grid of {grid[0]} x {grid[1]} pixels")
    return (config.crop, config.crop)


def crop(frames: torch.Tensor, positions: Sequence[int], *, size: int, seed: int) -> torch.Tensor:
    """Return ``size`` x ``size`` pixels of each sample of ``[B, ..., H, W]``, from the place its position draws."""
    height, width = frames.shape[-2:]
    cut = []
    for sample, position in zip(frames, positions, strict=True):
        top = draw(position, seed=seed, purpose="crop-top", choices=height - size + 1)
        left = draw(position, seed=seed, purpose="crop-left", choices=width - size + 1)
        cut.append(sample[..., top : top + size, left : left + size])
    return torch.stack(cut)


def random_symmetry(frames: torch.Tensor, positions: Sequence[int], *, seed: int) -> torch.Tensor:
    """Return each sample of ``[B, ..., H, W]`` flipped or turned by the symmetry that its position draws.

    Quarter turns need a square grid; elsewhere only the four symmetries that keep the shape are drawn.
    """
    square = frames.shape[-1] == frames.shape[-2]
    turned = []
    for sample, position in zip(frames, positions, strict=True):
        which = draw(position, seed=seed, purpose="symmetry", choices=8 if square else 4)
        if which & 1:
            sample = sample.flip(-1)
        if which & 2:
            sample = sample.flip(-2)
        if which & 4:
            sample = sample.transpose(-1, -2)
        turned.append(sample)
    return torch.stack(turned)
