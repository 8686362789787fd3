"""From time last, as archives store events, to time first, as windows are read."""

import numpy as np

_ROWS = 2


def time_major(stored: np.ndarray) -> np.ndarray:
    """Return ``[H, W, T]`` as a contiguous ``[T, H, W]``, some rows of the grid at a time, which the cache holds."""
    height, width, frames = stored.shape
    out = np.empty((frames, height, width), stored.dtype)
    for top in range(0, height, _ROWS):
        out[:, top : top + _ROWS] = stored[top : top + _ROWS].transpose(2, 0, 1)
    return out
