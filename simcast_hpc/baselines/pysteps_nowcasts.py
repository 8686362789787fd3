"""S-PROG, STEPS, LINDA and ANVIL of pysteps: extrapolation with growth, decay and uncertainty.

S-PROG: Seed 2003. STEPS: Bowler, Pierce and Seed 2006. LINDA: Pulkkinen et al. 2021. ANVIL: Pulkkinen et al. 2020.
The motion is the Lucas-Kanade optical flow of :class:`PystepsExtrapolation`. S-PROG and STEPS use 10 log10 of the
intensity, with dry pixels 5 dB below 0.1; LINDA and ANVIL the intensity itself (mm/h, kg/m2; dBZ by Marshall and
Palmer).

For a window with too little rain to estimate the statistics, or on which the method fails, the forecast is that of
``pysteps-lk``; ``fallbacks`` counts these windows, and each is logged.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .baseline_windows import WindowBaseline
from .intensity import (
    WET,
    WET_DB,
    PhysicalEncoding,
    codes_of_decibel,
    codes_of_intensity,
    decibel,
    encoding_hash,
    intensity,
)
from .pysteps_extrapolation import PystepsExtrapolation

logger = logging.getLogger(__name__)

# Below 1 % wet pixels, autoregressive parameters are noise (pysteps warns about few wet pixels as well).
_MIN_WET_FRACTION = 0.01
_FAILURES = (ValueError, RuntimeError, IndexError, ZeroDivisionError, FloatingPointError, np.linalg.LinAlgError)
MEMBERS = 10


class PystepsBaseline(WindowBaseline):
    """A nowcasting method of pysteps.

    Args:
        name: ``s-prog``, ``steps``, ``linda`` or ``anvil``.
        encoding: encoding of the pixel values, usually ``DatasetSpec.encoding``.
        step_minutes: minutes between frames.
        spacing_km: pixel spacing in km.
        cache: folder in which forecasts are cached.
        members: number of members of STEPS.

    Raises:
        ImportError: pysteps or OpenCV is not installed; the message contains the install command.
    """

    min_frames = 3

    def __init__(
        self,
        name: str,
        encoding: PhysicalEncoding,
        *,
        step_minutes: float,
        spacing_km: float,
        cache: Path | None = None,
        members: int = MEMBERS,
    ):
        super().__init__(cache=cache)
        self.name, self.encoding = name, encoding
        self.step_minutes, self.spacing_km = step_minutes, spacing_km
        self.members = members if name == "steps" else None
        self.fallbacks = 0
        self._extrapolation = PystepsExtrapolation(encoding)
        self._forecast = _nowcast_method(_METHODS[name])

    def settings(self) -> dict[str, Any]:
        """Return the settings on which the forecast depends."""
        return {
            "encoding": encoding_hash(self.encoding),
            "step_minutes": self.step_minutes,
            "spacing_km": self.spacing_km,
            "members": self.members or 1,
            "pysteps": importlib.metadata.version("pysteps"),
            "version": 1,
        }

    def forecast_window(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        """Return the uint8 forecast of frames ``[T, H, W]``: ``[frames_out, H, W]``, or ``[M, ...]`` for STEPS."""
        wet_fraction = float((intensity(window[-3:], self.encoding) >= WET).mean(axis=(1, 2)).min())
        reason = f"{wet_fraction:.2%} of a frame is wet"
        if wet_fraction >= _MIN_WET_FRACTION:
            try:
                return self._run(window, frames_out)
            except _FAILURES as error:
                reason = f"pysteps failed: {error}"
        self.fallbacks += 1
        logger.info("%s: using pysteps-lk for one window (%s)", self.name, reason)
        forecast = self._extrapolation.forecast_window(window, frames_out)
        return forecast if self.members is None else np.repeat(forecast[None], self.members, axis=0)

    def _run(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        motion = self._extrapolation.motion(window[-3:])
        levels = max(2, min(6, int(np.log2(min(window.shape[1:]))) - 2))
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            forecast = _CALLS[self.name](self, window, motion, frames_out, levels)
        if forecast.shape[-3:] != (frames_out, *window.shape[1:]) or not np.isfinite(forecast).any():
            raise ValueError(f"invalid result of shape {forecast.shape}")
        return forecast

    def _s_prog(self, window: np.ndarray, motion: np.ndarray, frames_out: int, levels: int) -> np.ndarray:
        field = decibel(window[-3:], self.encoding)
        forecast = self._forecast(field, motion, frames_out, precip_thr=WET_DB, n_cascade_levels=levels)
        return codes_of_decibel(forecast, self.encoding)

    def _steps(self, window: np.ndarray, motion: np.ndarray, frames_out: int, levels: int) -> np.ndarray:
        # The seed is a hash of the frames, so that the ensemble of a window is reproducible.
        seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(window).tobytes()).digest()[:4], "big")
        forecast = self._forecast(
            decibel(window[-3:], self.encoding),
            motion,
            frames_out,
            n_ens_members=self.members,
            n_cascade_levels=levels,
            precip_thr=WET_DB,
            kmperpixel=self.spacing_km,
            timestep=self.step_minutes,
            seed=seed,
        )
        return codes_of_decibel(forecast, self.encoding)

    def _linda(self, window: np.ndarray, motion: np.ndarray, frames_out: int, levels: int) -> np.ndarray:
        field = intensity(window[-3:], self.encoding)
        forecast = self._forecast(
            field, motion, frames_out, feature_method="domain", add_perturbations=False, kmperpixel=self.spacing_km,
            timestep=self.step_minutes,
        )  # fmt: skip
        return codes_of_intensity(forecast, self.encoding)

    def _anvil(self, window: np.ndarray, motion: np.ndarray, frames_out: int, levels: int) -> np.ndarray:
        # Three frames are sufficient for order 1.
        field = intensity(window[-3:], self.encoding)
        radius = min(50, min(window.shape[1:]) // 4)
        forecast = self._forecast(
            field, motion, frames_out, n_cascade_levels=levels, ar_order=1, ar_window_radius=radius
        )
        return codes_of_intensity(forecast, self.encoding)


_CALLS: dict[str, Callable[[PystepsBaseline, np.ndarray, np.ndarray, int, int], np.ndarray]] = {
    "s-prog": PystepsBaseline._s_prog,
    "steps": PystepsBaseline._steps,
    "linda": PystepsBaseline._linda,
    "anvil": PystepsBaseline._anvil,
}
_METHODS = {"s-prog": "sprog", "steps": "steps", "linda": "linda", "anvil": "anvil"}


def _nowcast_method(name: str) -> Callable[..., np.ndarray]:
    # pysteps prints the path of its configuration file on import.
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module("pysteps.nowcasts").get_method(name)
