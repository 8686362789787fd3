"""S-PROG, STEPS, LINDA and ANVIL by pysteps: extrapolation with growth, decay and uncertainty.

S-PROG: Seed 2003. STEPS: Bowler, Pierce and Seed 2006. LINDA: Pulkkinen et al. 2021. ANVIL: Pulkkinen et al. 2020.
Motion is Lucas-Kanade's (:class:`Extrapolation`). S-PROG and STEPS work on 10 log10 of the intensity, dry pixels 5 dB
under 0.1; LINDA and ANVIL on the intensity itself (mm/h, kg/m2; dBZ by Marshall and Palmer).

A method that has too little rain to fit its statistics, or that fails on a window, is replaced there by Lucas-Kanade
extrapolation; ``fallbacks`` counts these windows and the log states them.
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
from .extrapolation import Extrapolation
from .intensity import (
    WET,
    WET_DB,
    PhysicalEncoding,
    codes_of_decibel,
    codes_of_intensity,
    decibel,
    identity,
    intensity,
)

logger = logging.getLogger(__name__)

# Autoregressive statistics of a hundredth of the frame are noise; pysteps itself warns of few wet pixels.
_FEWEST_WET = 0.01
_FAILURES = (ValueError, RuntimeError, IndexError, ZeroDivisionError, FloatingPointError, np.linalg.LinAlgError)
MEMBERS = 10


class PystepsNowcast(WindowBaseline):
    """One of pysteps' nowcasting methods.

    Args:
        name: ``s-prog``, ``steps``, ``linda`` or ``anvil``.
        encoding: between code and physical value, usually ``DatasetSpec.encoding``.
        step_minutes: minutes between frames.
        spacing_km: spacing of the pixels.
        cache: folder in which forecasts are kept.

    Raises:
        ImportError: pysteps or OpenCV is not installed; the message has the line that installs them.
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
    ):
        super().__init__(cache=cache)
        self.name, self.encoding = name, encoding
        self.step_minutes, self.spacing_km = step_minutes, spacing_km
        self.fallbacks = 0
        self._extrapolation = Extrapolation(encoding)
        self._forecast = _nowcast_method(_METHODS[name])

    def settings(self) -> dict[str, Any]:
        """Return what decides the forecast besides the frames."""
        return {
            "encoding": identity(self.encoding),
            "step_minutes": self.step_minutes,
            "spacing_km": self.spacing_km,
            "members": MEMBERS if self.name == "steps" else 1,
            "pysteps": importlib.metadata.version("pysteps"),
            "version": 1,
        }

    def codes(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        """Return uint8 codes ``[frames_out, H, W]``, for STEPS ``[M, frames_out, H, W]``."""
        wet = float((intensity(window[-3:], self.encoding) >= WET).mean(axis=(1, 2)).min())
        reason = f"{wet:.2%} of a frame is wet"
        if wet >= _FEWEST_WET:
            try:
                return self._run(window, frames_out)
            except _FAILURES as error:
                reason = f"pysteps failed: {error}"
        self.fallbacks += 1
        logger.info("%s: Lucas-Kanade extrapolation in its place for one window (%s)", self.name, reason)
        held = self._extrapolation.codes(window, frames_out)
        return np.repeat(held[None], MEMBERS, axis=0) if self.name == "steps" else held

    def _run(self, window: np.ndarray, frames_out: int) -> np.ndarray:
        motion = self._extrapolation.motion(window[-3:])
        levels = max(2, min(6, int(np.log2(min(window.shape[1:]))) - 2))
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            made = _CALLS[self.name](self, window, motion, frames_out, levels)
        if made.shape[-3:] != (frames_out, *window.shape[1:]) or not np.isfinite(made).any():
            raise ValueError(f"it returned {made.shape} without a finite value")
        return made

    def _s_prog(self, window: np.ndarray, motion: np.ndarray, frames_out: int, levels: int) -> np.ndarray:
        field = decibel(window[-3:], self.encoding)
        made = self._forecast(field, motion, frames_out, precip_thr=WET_DB, n_cascade_levels=levels)
        return codes_of_decibel(made, self.encoding)

    def _steps(self, window: np.ndarray, motion: np.ndarray, frames_out: int, levels: int) -> np.ndarray:
        # The seed is the frames' own, so that a window has one ensemble whoever makes it, and when.
        seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(window).tobytes()).digest()[:4], "big")
        made = self._forecast(
            decibel(window[-3:], self.encoding),
            motion,
            frames_out,
            n_ens_members=MEMBERS,
            n_cascade_levels=levels,
            precip_thr=WET_DB,
            kmperpixel=self.spacing_km,
            timestep=self.step_minutes,
            seed=seed,
        )
        return codes_of_decibel(made, self.encoding)

    def _linda(self, window: np.ndarray, motion: np.ndarray, frames_out: int, levels: int) -> np.ndarray:
        field = intensity(window[-3:], self.encoding)
        made = self._forecast(
            field, motion, frames_out, feature_method="domain", add_perturbations=False, kmperpixel=self.spacing_km,
            timestep=self.step_minutes,
        )  # fmt: skip
        return codes_of_intensity(made, self.encoding)

    def _anvil(self, window: np.ndarray, motion: np.ndarray, frames_out: int, levels: int) -> np.ndarray:
        # Order 1 wants three frames; two of the differences are what the longer order is fitted to.
        field = intensity(window[-3:], self.encoding)
        radius = min(50, min(window.shape[1:]) // 4)
        made = self._forecast(field, motion, frames_out, n_cascade_levels=levels, ar_order=1, ar_window_radius=radius)
        return codes_of_intensity(made, self.encoding)


_CALLS: dict[str, Callable[[PystepsNowcast, np.ndarray, np.ndarray, int, int], np.ndarray]] = {
    "s-prog": PystepsNowcast._s_prog,
    "steps": PystepsNowcast._steps,
    "linda": PystepsNowcast._linda,
    "anvil": PystepsNowcast._anvil,
}
_METHODS = {"s-prog": "sprog", "steps": "steps", "linda": "linda", "anvil": "anvil"}


def _nowcast_method(name: str) -> Callable[..., np.ndarray]:
    # pysteps prints the place of its configuration file on import.
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module("pysteps.nowcasts").get_method(name)
