"""Feeding a forecast back as input, and the pseudo-frames that extend a training sequence.

SimCast section 3.3: the frozen teacher starts from the last T real frames, so time stays consistent.
"""

from collections.abc import Callable

import torch

from simcast_hpc.data.encoding import MISSING_CODE

from .windows import Frames

Network = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def roll_out(network: Network, frames: Frames, *, frames_out: int) -> Frames:
    """Return ``frames_out`` forecast frames after ``frames``, the window sliding over the network's own output.

    Each call's output is clipped to [0, 1] before it is fed back; the last call is cut short where the horizons
    do not divide. A forecast pixel is valid where all the input frames that it was made from are.

    Args:
        network: maps ``[B, T, 1, H, W]`` to ``[B, T's, 1, H, W]``, float32.
        frames: the last T frames, values ``[B, T, H, W]``.
        frames_out: frames to make.
    """
    frames_in = frames.values.shape[1]
    values, valid = frames.values, frames.valid
    while values.shape[1] < frames_in + frames_out:
        made = network(values[:, -frames_in:, None])[:, :, 0].float().clamp(0.0, 1.0)
        seen = valid[:, -frames_in:].all(dim=1, keepdim=True).expand_as(made)
        values = torch.cat([values, torch.where(seen, made, 0.0)], dim=1)
        valid = torch.cat([valid, seen], dim=1)
    last = frames_in + frames_out
    return Frames(values[:, frames_in:last], valid[:, frames_in:last])


def to_stored(frames: Frames, pseudo_dtype: str) -> torch.Tensor:
    """Return pseudo-frames as a cache holds them: fp16 with NaN, or uint8 codes with 255, where not valid.

    The online path takes its pseudo-frames through here too, so that both paths train on the same numbers.
    """
    if pseudo_dtype == "uint8":
        codes = (frames.values * 255.0).round().clamp(0, MISSING_CODE - 1).to(torch.uint8)
        return torch.where(frames.valid, codes, MISSING_CODE)
    return torch.where(frames.valid, frames.values, torch.nan).half()
