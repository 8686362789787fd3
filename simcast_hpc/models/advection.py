"""Extrapolation of radar frames (Lagrangian persistence): semi-Lagrangian advection with the optical flow.

Backward trajectories with constant motion, midpoint rule (Germann and Zawadzki 2002). The trajectory is accumulated
over the lead times and the last frame is interpolated once per lead time, so that forecasts are not smoothed again and
again.

Pixel values are roughly logarithmic in the rain rate, and the mean of logarithms is below the logarithm of the mean:
interpolated as they are, heavy rain weakens in the first fraction of a pixel. The interpolation therefore averages
``exp(5 v)``, a compromise between averages of pixel values (smallest squared errors) and of rain rates (highest CSI,
frequency bias near 1). It needs no encoding, and the result is between the smallest and the largest interpolated value.
"""

import torch
from torch import Tensor

from .layers import in_fp32
from .optical_flow import check_frames, estimate_motion, sample_at

# Between 0 (average of pixel values) and the slope of ln(rain rate): 8.8 in ``mrms-4km``, up to 6.6 in SEVIR's VIL.
_EXPONENT = 5.0


def extrapolate(frames: Tensor, frames_out: int, valid: Tensor | None = None, *, side: int | None = None) -> Tensor:
    """Return the last frame advected with the motion of all frames: ``[B, frames_out, H, W]`` in [0, 1], float32.

    Inflow from outside the grid and missing pixels are 0. Gradients flow to the last frame, not through the motion.

    Args:
        frames: ``[B, T, H, W]`` in [0, 1], oldest first; a single frame is repeated.
        frames_out: number of lead times.
        valid: bool ``[B, T, H, W]``, False where a pixel is missing.
        side: shorter side of the tiles of a domain; see :func:`.estimate_motion`.

    Raises:
        TypeError: ``frames`` is not floating, or ``valid`` is not bool.
        ValueError: ``frames`` does not have four axes or has no frame, ``valid`` has another shape, or ``frames_out``
            is below 1.
    """
    check_frames(frames, valid)
    if frames_out < 1:
        raise ValueError(f"frames_out={frames_out} must be at least 1")
    if valid is not None:
        frames = frames.where(valid, 0.0)
    frames = frames.float().clamp(0.0, 1.0)  # frames of a rollout can be slightly outside
    # The weights of the interpolation add up to 1 only within rounding.
    return advect(frames[:, -1], estimate_motion(frames, valid, side=side), frames_out).clamp(0.0, 1.0)


def advect(field: Tensor, motion: Tensor, frames_out: int) -> Tensor:
    """Advect a field with a constant motion: ``[B, H, W]``, ``[B, 2, H, W]`` -> ``[B, frames_out, H, W]``.

    Args:
        field: pixel values in [0, 1]; outside the grid the field is 0.
        motion: (y, x) in pixels per frame; outside the grid the motion is that of the nearest pixel.
        frames_out: number of lead times.
    """
    dtype = torch.promote_types(field.dtype, torch.float32)
    field, motion = field.to(dtype)[:, None], motion.to(dtype)
    with in_fp32(field):
        intensity = torch.expm1(_EXPONENT * field)
        return torch.log1p(_interpolate_origins(intensity, motion, frames_out)) / _EXPONENT


def sample_origins(values: Tensor, motion: Tensor, frames_out: int) -> Tensor:
    """Interpolate values where the backward trajectory of each pixel starts: ``[B, frames_out, H, W]``, float32.

    Args:
        values: ``[B, H, W]``, float32; 0 outside the grid.
        motion: ``[B, 2, H, W]``, (y, x) in pixels per frame; outside the grid the motion is that of the nearest pixel.
        frames_out: number of lead times.
    """
    with in_fp32(values):
        return _interpolate_origins(values[:, None], motion, frames_out)


def _interpolate_origins(values: Tensor, motion: Tensor, frames_out: int) -> Tensor:
    origins = []
    displacement = torch.zeros_like(motion)
    for _ in range(frames_out):
        start = sample_at(motion, displacement, outside="border")
        displacement = displacement - sample_at(motion, displacement - start / 2, outside="border")
        origins.append(sample_at(values, displacement))
    return torch.cat(origins, dim=1)
