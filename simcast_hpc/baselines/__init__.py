"""Baselines: forecasts that learn nothing, in the form of a model's forecast, so that one table holds both."""

import difflib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from .extrapolation import Extrapolation
from .intensity import PhysicalEncoding
from .persistence import Persistence
from .pysteps_nowcasts import PystepsNowcast

__all__ = [
    "BASELINES",
    "NOTES",
    "Baseline",
    "Extrapolation",
    "Persistence",
    "PhysicalEncoding",
    "PystepsNowcast",
    "load_baseline",
]


class Baseline(Protocol):
    """Anything that forecasts from frames alone."""

    name: str

    def forecast(self, frames: torch.Tensor | np.ndarray, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]``, or members ``[B, M, ...]``, in [0, 1] on the frames' device.

        Args:
            frames: ``[B, T, H, W]``, uint8 codes (255 missing) or floats in [0, 1] (NaN missing).
            frames_out: lead times to forecast.
        """
        ...


# Name and what a table says of it.
NOTES = {
    "persistence": "the last frame, held",
    "extrapolation": "pysteps: Lucas-Kanade motion, semi-Lagrangian advection",
    "darts": "pysteps: DARTS motion, semi-Lagrangian advection",
    "s-prog": "pysteps: S-PROG, scales fade as they lose predictability",
    "steps": "pysteps: STEPS, 10 members",
    "linda": "pysteps: LINDA, deterministic, one domain",
    "anvil": "pysteps: ANVIL, growth and decay by scale",
}
BASELINES = tuple(NOTES)


def load_baseline(
    name: str,
    encoding: PhysicalEncoding,
    *,
    step_minutes: float = 5.0,
    spacing_km: float = 1.0,
    cache: Path | None = None,
) -> Baseline:
    """Return a baseline by its name, bound to a data set's encoding.

    Args:
        name: of ``BASELINES``.
        encoding: between code and physical value.
        step_minutes: minutes between frames; STEPS and LINDA ask for it.
        spacing_km: spacing of the pixels, likewise.
        cache: folder in which forecasts are kept between evaluations.

    Raises:
        KeyError: no baseline has this name; the message gives the nearest one and all others.
        ImportError: the baseline needs an extra that is not installed.
    """
    if name not in BASELINES:
        near = difflib.get_close_matches(name, BASELINES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KeyError(f"unknown baseline {name!r}; {hint}known: {', '.join(BASELINES)}")
    if name == "persistence":
        return Persistence()
    if name in ("extrapolation", "darts"):
        return Extrapolation(encoding, method="darts" if name == "darts" else "lucas-kanade", cache=cache)
    return PystepsNowcast(name, encoding, step_minutes=step_minutes, spacing_km=spacing_km, cache=cache)
