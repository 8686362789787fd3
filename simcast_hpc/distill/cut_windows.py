"""Cut training windows from sequences; pixel values become floats, and missing pixels become a mask.

The stage of a run decides which frames a window contains, see ``train/stages/``.

A sequence has T + T_l frames of one event: T input frames and the long horizon T_l. T_s is the teacher's horizon.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from simcast_hpc.data.encoding import MISSING_CODE, code_to_unit
from simcast_hpc.data.loader import numbers_to_device
from simcast_hpc.data.sample_order import random_integer


class Sample(NamedTuple):
    """The tensors of a micro-batch for the network and the loss.

    ``inputs`` float32 ``[B, T, 1, H, W]`` in [0, 1], the model's :func:`.missing_value` where missing; ``target`` uint8
    pixel values or float32 ``[B, T', 1, H, W]``; ``valid`` bool in the shape of the target.
    """

    inputs: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor


class EnsembleSample(NamedTuple):
    """A :class:`Sample` and the noise of its members, float32 ``[B, M, max(T, T'), N, H, W]``."""

    inputs: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor
    noise: torch.Tensor


class Frames(NamedTuple):
    """Frames as floats: ``values`` float32 ``[B, T, H, W]``, 0 where missing, and ``valid`` bool, same shape."""

    values: torch.Tensor
    valid: torch.Tensor

    def fill(self, missing: float) -> torch.Tensor:
        """Return the values, float32 ``[B, T, H, W]``, with ``missing`` where missing: 0 or NaN."""
        return self.values if missing == 0.0 else torch.where(self.valid, self.values, missing)


def to_frames(stored: torch.Tensor) -> Frames:
    """Return uint8 pixel values (255 missing) or fp16 / fp32 values (NaN missing) as floats in [0, 1] and a mask."""
    if stored.dtype == torch.uint8:
        valid = stored != MISSING_CODE
        return Frames(torch.where(valid, code_to_unit(stored), 0.0), valid)
    values = stored.float()
    valid = ~torch.isnan(values)
    return Frames(torch.where(valid, values, 0.0), valid)


def starts(positions: Sequence[int], *, seed: int, purpose: str, choices: int, device: torch.device) -> torch.Tensor:
    """Return a random first frame per sample, int64 ``[B]``, uniform in 0 .. ``choices`` - 1, from counters."""
    first_frames = [random_integer(position, seed=seed, purpose=purpose, choices=choices) for position in positions]
    return numbers_to_device(first_frames, device, dtype=torch.int64)


def cut(frames: torch.Tensor, first: torch.Tensor, length: int) -> torch.Tensor:
    """Return ``length`` frames of each sample of ``[B, T, H, W]``, starting at frame ``first[b]``."""
    times = first[:, None] + torch.arange(length, device=frames.device)
    return frames[torch.arange(len(frames), device=frames.device)[:, None], times]


def window_of_codes(
    codes: torch.Tensor, first: torch.Tensor, *, frames_in: int, frames_out: int, missing: float = 0.0
) -> Sample:
    """Return the training window that starts at ``first`` in real frames, uint8 ``[B, T_all, H, W]``.

    ``missing`` is the value of missing pixels in the inputs.
    """
    window = cut(codes, first, frames_in + frames_out)
    target = window[:, frames_in:, None]
    return Sample(to_frames(window[:, :frames_in]).fill(missing)[:, :, None], target, target != MISSING_CODE)


def window_of_frames(
    frames: Frames, first: torch.Tensor, *, frames_in: int, frames_out: int, missing: float = 0.0
) -> Sample:
    """Return the training window that starts at ``first`` in an extended sequence of floats.

    ``missing`` is the value of missing pixels in the inputs; targets are 0 there.
    """
    values = cut(frames.values, first, frames_in + frames_out)
    valid = cut(frames.valid, first, frames_in + frames_out)
    inputs = Frames(values[:, :frames_in], valid[:, :frames_in]).fill(missing)[:, :, None]
    return Sample(inputs, values[:, frames_in:, None], valid[:, frames_in:, None])
