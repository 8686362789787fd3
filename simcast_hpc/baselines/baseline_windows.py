"""Base class of baselines that forecast encoded windows one at a time, with a cache of their forecasts."""

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simcast_hpc.config import DataError
from simcast_hpc.storage.atomic_files import atomic_file
from simcast_hpc.storage.npz_files import load_npz

from .baseline_input import check_frames, to_codes


class WindowBaseline(ABC):
    """A baseline that forecasts uint8 codes of one window at a time.

    With ``cache``, a forecast is stored as ``<cache>/<name>/<hash>.npz``; the hash covers input frames, settings and
    encoding. Files are written atomically, so that several ranks can share the folder.
    """

    name: str
    min_frames = 1

    def __init__(self, *, cache: Path | None = None):
        self.cache = cache

    @abstractmethod
    def forecast_window(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        """Return the forecast of a window ``[T, H, W]``: uint8 ``[frames_out, H, W]`` or ``[M, frames_out, H, W]``."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings on which the forecast depends, serializable as JSON."""

    def forecast(self, frames: torch.Tensor | np.ndarray, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]``, or members ``[B, M, ...]``, in [0, 1] on the frames' device.

        The values are integer codes / 255.

        Args:
            frames: ``[B, T, H, W]``, uint8 codes (255 missing) or floats in [0, 1] (NaN missing).
            frames_out: lead times to forecast.

        Raises:
            ValueError: the frames are not ``[B, T, H, W]`` or too few, or ``frames_out`` is below 1.
            TypeError: the frames are neither uint8 nor floating.
        """
        frames = check_frames(frames, frames_out, min_frames=self.min_frames)
        forecast = np.stack([self._cached(window, frames_out) for window in to_codes(frames)])
        # Correctly rounded division on the host, equal to code_to_unit, then copied to the device.
        return torch.from_numpy(forecast.astype(np.float32) / np.float32(255.0)).to(frames.device)

    def _cached(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        if self.cache is None:
            return self.forecast_window(window, frames_out)
        path = self.cache / self.name / f"{self._hash(window, frames_out)}.npz"
        if (cached := _read(path)) is not None:
            return cached
        forecast = self.forecast_window(window, frames_out)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, codes=forecast)
        return forecast

    def _hash(self, window: np.ndarray, frames_out: int) -> str:
        settings = {"name": self.name, "frames_out": frames_out, "shape": window.shape, **self.settings()}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(window).tobytes())
        return digest.hexdigest()[:32]


def _read(path: Path) -> np.ndarray | None:
    """Return a cached forecast, or None if there is none or it is damaged."""
    try:
        return load_npz(path, error=DataError, what="the cache")["codes"]
    except (DataError, KeyError):
        return None
