"""What baselines that work on whole codes share: windows one by one, and a store of what they made."""

import hashlib
import json
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simcast_hpc.storage.atomic_files import atomic_file

from .baseline_input import check_frames, to_codes


class WindowBaseline(ABC):
    """A baseline that forecasts whole codes of one window at a time.

    With ``cache`` a forecast is kept as ``<cache>/<name>/<hash>.npz``, where the hash is over the input codes, the
    settings and the encoding, so that any change makes another file. A file appears whole or not at all; several ranks
    may share the folder.
    """

    name: str
    min_frames = 1

    def __init__(self, *, cache: Path | None = None):
        self.cache = cache

    @abstractmethod
    def codes(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        """Return uint8 codes ``[frames_out, H, W]`` or ``[M, frames_out, H, W]`` after codes ``[T, H, W]``."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what decides the forecast besides the frames; it must go into JSON."""

    def forecast(self, frames: torch.Tensor | np.ndarray, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]``, or members ``[B, M, ...]``, in [0, 1] on the frames' device.

        The forecast holds whole codes / 255.

        Args:
            frames: ``[B, T, H, W]``, uint8 codes (255 missing) or floats in [0, 1] (NaN missing).
            frames_out: lead times to forecast.

        Raises:
            ValueError: not ``[B, T, H, W]``, too few frames, or no frame to forecast.
            TypeError: frames are neither uint8 nor floating.
        """
        frames = check_frames(frames, frames_out, min_frames=self.min_frames)
        forecast = np.stack([self._kept(window, frames_out) for window in to_codes(frames)])
        # Correctly rounded on the host, as code_to_unit does it, then moved.
        return torch.from_numpy(forecast.astype(np.float32) / np.float32(255.0)).to(frames.device)

    def _kept(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        if self.cache is None:
            return self.codes(window, frames_out)
        path = self.cache / self.name / f"{self._hash(window, frames_out)}.npz"
        if (found := _read(path)) is not None:
            return found
        made = self.codes(window, frames_out)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, codes=made)
        return made

    def _hash(self, window: np.ndarray, frames_out: int) -> str:
        described = {"name": self.name, "frames_out": frames_out, "shape": window.shape, **self.settings()}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(window).tobytes())
        return digest.hexdigest()[:32]


def _read(path: Path) -> np.ndarray | None:
    """Return the codes of a kept forecast; None where there is none, or a damaged one that is to be made again."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["codes"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
