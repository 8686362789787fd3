"""Which pixels of a forecast are determined by observations: those whose back-trajectory starts in the observed area.

Precipitation that enters from outside the domain, or from an area that no radar sees, is unknown to every method that
uses radar frames only. The trajectories are those of the extrapolation: constant motion by optical flow of the last
input frames.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from simcast_hpc.baselines.baseline_input import to_unit_interval
from simcast_hpc.models.advection import sample_origins
from simcast_hpc.models.optical_flow import estimate_motion

from .forecast_fields import Forecast
from .input_frames import InputFrames

# ``mark`` adds the field ``validity``, ``mask`` also sets the other pixels to NaN, ``omit`` does neither.
InflowMode = Literal["mark", "mask", "omit"]
# Larger domains are traced on averages of blocks: the motion is smooth, and the cost remains below a second.
_MOST_PIXELS = 1 << 18


def origin_is_observed(codes: np.ndarray, missing: np.ndarray, frames_out: int) -> np.ndarray:
    """Return whether each pixel's air was observed at the issue time, bool ``[frames_out, H, W]``.

    Args:
        codes: encoded frames ``[T, H, W]``, uint8 (255 missing) or float32 in [0, 1] (NaN missing).
        missing: bool ``[T, H, W]``.
        frames_out: number of lead times.
    """
    height, width = codes.shape[-2:]
    factor = int(np.ceil(np.sqrt(height * width / _MOST_PIXELS)))
    with torch.no_grad():
        # 1. Frames and observed areas, averaged over blocks
        frames = to_unit_interval(torch.from_numpy(np.ascontiguousarray(codes)))[None]
        observed = torch.from_numpy(~missing)[None].float()
        if factor > 1:
            padding = (0, -width % factor, 0, -height % factor)
            share = F.avg_pool2d(F.pad(observed, padding), factor)
            frames = F.avg_pool2d(F.pad(frames * observed, padding), factor) / share.clamp(min=1e-6)
            # Blocks at the lower and right edge are incomplete.
            whole = F.avg_pool2d(F.pad(torch.ones_like(observed[:, :1]), padding), factor)
            observed = (share / whole >= 0.5).float()
        # 2. Trajectories
        motion = estimate_motion(frames, observed > 0)
        origins = sample_origins(observed[:, -1], motion, frames_out)[0] >= 0.5
    blocks = origins.numpy()
    if factor == 1:
        return blocks
    return blocks.repeat(factor, axis=1).repeat(factor, axis=2)[:, :height, :width]


def mark_inflow(forecast: Forecast, inputs: InputFrames, mode: InflowMode) -> Forecast:
    """Return a forecast with the field ``validity``; ``mask`` sets its other pixels to NaN, in place."""
    if mode == "omit":
        return forecast
    validity = origin_is_observed(inputs.codes, inputs.missing, len(forecast.shown))
    if mode == "mask":
        for fields in (forecast.values, forecast.mean, forecast.probability):
            if fields is not None:
                fields[..., ~validity] = np.nan  # the last three axes are lead time, y and x
    provenance = {**forecast.provenance, "simcast_inflow": "masked" if mode == "mask" else "marked"}
    return replace(forecast, validity=validity, provenance=provenance)
