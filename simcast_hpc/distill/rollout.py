"""Roll out a network over its own forecasts, and store the pseudo-frames that extend a training sequence.

SimCast, section 3.3: the frozen teacher starts from the last T real frames, so the sequence stays consistent in time.
"""

from collections.abc import Callable

import torch

from simcast_hpc.data.encoding import MISSING_CODE

from .cut_windows import Frames

Network = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def roll_out(
    network: Network, frames: Frames, *, frames_out: int, missing: float = 0.0, masks_forecast: bool = True
) -> Frames:
    """Return ``frames_out`` forecast frames after ``frames``, by feeding the network's output back as input.

    Each output is clipped to [0, 1] before it is fed back; the last one is truncated if the horizons do not divide.

    Args:
        network: maps ``[B, T, 1, H, W]`` to ``[B, T_s, 1, H, W]``, float32.
        frames: the last T frames, values ``[B, T, H, W]``.
        frames_out: number of frames to forecast.
        missing: value of missing pixels in the network's input; see :func:`simcast_hpc.models.missing_value`.
        masks_forecast: a forecast pixel is valid only where all input frames of its forecast are valid; otherwise all
            forecast pixels are valid.
    """
    frames_in = frames.values.shape[1]
    values, valid = frames.values, frames.valid
    while values.shape[1] < frames_in + frames_out:
        last = Frames(values[:, -frames_in:], valid[:, -frames_in:])
        forecast = network(last.fill(missing)[:, :, None])[:, :, 0].float().clamp(0.0, 1.0)
        if masks_forecast:
            forecast_valid = last.valid.all(dim=1, keepdim=True).expand_as(forecast)
            forecast = torch.where(forecast_valid, forecast, 0.0)
        else:
            forecast_valid = torch.ones_like(forecast, dtype=torch.bool)
        values = torch.cat([values, forecast], dim=1)
        valid = torch.cat([valid, forecast_valid], dim=1)
    end = frames_in + frames_out
    return Frames(values[:, frames_in:end], valid[:, frames_in:end])


def to_stored(frames: Frames, pseudo_dtype: str) -> torch.Tensor:
    """Return pseudo-frames in the dtype in which they are stored; invalid pixels are NaN (fp16) or 255 (uint8).

    Online rollouts are rounded in the same way, so that training sees the same values with and without a store.
    """
    if pseudo_dtype == "uint8":
        codes = (frames.values * 255.0).round().clamp(0, MISSING_CODE - 1).to(torch.uint8)
        return torch.where(frames.valid, codes, MISSING_CODE)
    return torch.where(frames.valid, frames.values, torch.nan).half()
