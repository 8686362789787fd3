"""Persistence: the last observed frame at every lead time."""

import numpy as np
import torch

from .baseline_input import check_frames, to_unit_interval


class Persistence:
    """The last frame, unchanged, for every lead time.

    Pixels that are missing in the last frame are forecast as 0, no echo. A model's input holds 0 there too, so all
    forecasts of a table are scored on the same pixels; NaN would let persistence leave out the pixels it cannot know.
    """

    name = "persistence"

    def forecast(self, frames: torch.Tensor | np.ndarray, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]`` in [0, 1], codes / 255 correctly rounded, on the frames' device.

        Args:
            frames: ``[B, T, H, W]``, uint8 codes (255 missing) or floats in [0, 1] (NaN missing).
            frames_out: lead times to forecast.

        Raises:
            ValueError: not ``[B, T, H, W]``, or no frame to forecast.
            TypeError: frames are neither uint8 nor floating.
        """
        frames = check_frames(frames, frames_out, min_frames=1)
        return to_unit_interval(frames[:, -1:]).repeat(1, frames_out, 1, 1)
