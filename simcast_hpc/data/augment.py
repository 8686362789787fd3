"""The eight symmetries of the square, one per sample, drawn from counters; on the device, off by default."""

from collections.abc import Sequence

import torch

from .order import draw


def turn_and_flip(frames: torch.Tensor, positions: Sequence[int], *, seed: int) -> torch.Tensor:
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
