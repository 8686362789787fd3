"""Extrapolation (Lagrangian persistence): optical flow of the last frames, semi-Lagrangian advection, without pysteps.

The forecast is that of :func:`simcast_hpc.models.advection.extrapolate`, with which models with
``model.base: extrapolation`` begin, unrounded.
"""

import numpy as np
import torch

from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.models.advection import extrapolate

from .baseline_input import check_frames, to_unit_interval


class Extrapolation:
    """Optical flow and semi-Lagrangian advection of pixel values, for all windows of a batch at once.

    Missing pixels have no influence on the motion. Inflow from outside the domain and pixels that are missing in the
    last frame are forecast as 0 (no echo), so that the same pixels are scored as for a model; this costs some skill at
    the inflow boundary. Without echoes the motion is 0 and the forecast is persistence.
    """

    name = "extrapolation"
    min_frames = 2

    def forecast(self, frames: torch.Tensor | np.ndarray, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]`` in [0, 1] on the frames' device, not rounded to codes.

        Args:
            frames: ``[B, T, H, W]``, uint8 codes (255 missing) or floats in [0, 1] (NaN missing). The last 4 frames are
                used.
            frames_out: lead times to forecast.

        Raises:
            ValueError: the frames are not ``[B, T, H, W]`` or fewer than 2, or ``frames_out`` is below 1.
            TypeError: the frames are neither uint8 nor floating.
        """
        frames = check_frames(frames, frames_out, min_frames=self.min_frames)
        valid = frames != MISSING_CODE if frames.dtype == torch.uint8 else ~torch.isnan(frames)
        with torch.no_grad():
            return extrapolate(to_unit_interval(frames), frames_out, valid)
