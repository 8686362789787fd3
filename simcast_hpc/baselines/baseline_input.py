"""Checks and conversions of the input frames of baselines."""

import numpy as np
import torch

from simcast_hpc.data.encoding import MISSING_CODE, as_native, code_to_unit


def check_frames(frames: torch.Tensor | np.ndarray, frames_out: int, *, min_frames: int) -> torch.Tensor:
    """Return the frames as a tensor ``[B, T, H, W]``, uint8 or floating.

    Raises:
        ValueError: the frames do not have four axes or are fewer than ``min_frames``, or ``frames_out`` is below 1.
        TypeError: the frames are neither uint8 nor floating.
    """
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.require(as_native(frames), requirements=["C", "W"]))
    if frames.dim() != 4:
        raise ValueError(f"frames must have shape [B, T, H, W], got {tuple(frames.shape)}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise TypeError(f"frames must be uint8 or floats in [0, 1], got {frames.dtype}")
    if frames.shape[1] < min_frames:
        raise ValueError(f"the baseline needs at least {min_frames} input frames, got {frames.shape[1]}")
    if frames_out < 1:
        raise ValueError(f"frames_out={frames_out} must be at least 1")
    return frames


def to_unit_interval(frames: torch.Tensor) -> torch.Tensor:
    """Return code / 255 as float32, correctly rounded, with missing pixels (code 255 or NaN) as 0."""
    if frames.dtype == torch.uint8:
        return code_to_unit(frames).masked_fill_(frames == MISSING_CODE, 0.0)
    return torch.where(torch.isnan(frames), 0.0, frames).float()


def to_codes(frames: torch.Tensor) -> np.ndarray:
    """Return uint8 codes on the host, floats rounded to the nearest code, missing pixels (NaN) as 255."""
    if frames.dtype == torch.uint8:
        return frames.cpu().numpy()
    codes = torch.where(torch.isnan(frames), MISSING_CODE, (frames.double() * 255.0).round().clamp(0, MISSING_CODE - 1))
    return codes.to(torch.uint8).cpu().numpy()
