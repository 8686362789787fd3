"""Persistence: the last observed frame at every lead time."""

import numpy as np
import torch

from .baseline_input import check_frames, to_unit_interval


class Persistence:
    """The last frame, unchanged, at every lead time.

    Pixels that are missing in the last frame are forecast as 0 (no echo), like in the input of a model, so that all
    forecasts of a table are scored on the same pixels.
    """

    name = "persistence"

    def forecast(self, frames: torch.Tensor | np.ndarray, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]`` in [0, 1], correctly rounded codes / 255, on the frames' device.

        Args:
            frames: ``[B, T, H, W]``, uint8 codes (255 missing) or floats in [0, 1] (NaN missing).
            frames_out: lead times to forecast.

        Raises:
            ValueError: the frames are not ``[B, T, H, W]``, or ``frames_out`` is below 1.
            TypeError: the frames are neither uint8 nor floating.
        """
        frames = check_frames(frames, frames_out, min_frames=1)
        return to_unit_interval(frames[:, -1:]).repeat(1, frames_out, 1, 1)
