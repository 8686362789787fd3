"""Baselines without training, with the forecast interface of a model: persistence, extrapolation, pysteps methods."""

import difflib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from .extrapolation import Extrapolation
from .intensity import PhysicalEncoding
from .persistence import Persistence
from .pysteps_extrapolation import PystepsExtrapolation
from .pysteps_nowcasts import MEMBERS, PystepsBaseline

__all__ = [
    "BASELINES",
    "NOTES",
    "Baseline",
    "Extrapolation",
    "Persistence",
    "PhysicalEncoding",
    "PystepsBaseline",
    "PystepsExtrapolation",
    "load_baseline",
]


class Baseline(Protocol):
    """A forecast method that uses only the input frames."""

    name: str

    def forecast(self, frames: torch.Tensor | np.ndarray, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]``, or members ``[B, M, ...]``, in [0, 1] on the frames' device.

        Args:
            frames: ``[B, T, H, W]``, uint8 codes (255 missing) or floats in [0, 1] (NaN missing).
            frames_out: lead times to forecast.
        """
        ...


# Name and description in tables.
NOTES = {
    "persistence": "the last frame at every lead time",
    "extrapolation": "optical flow of the last 4 frames, semi-Lagrangian advection",
    "pysteps-lk": "pysteps: Lucas-Kanade motion, semi-Lagrangian advection",
    "darts": "pysteps: DARTS motion, semi-Lagrangian advection",
    "s-prog": "pysteps: S-PROG, scale-dependent smoothing",
    "steps": f"pysteps: STEPS, {MEMBERS} members",
    "linda": "pysteps: LINDA, deterministic, one domain",
    "anvil": "pysteps: ANVIL, scale-dependent growth and decay",
}
BASELINES = tuple(NOTES)


def load_baseline(
    name: str,
    encoding: PhysicalEncoding,
    *,
    step_minutes: float = 5.0,
    spacing_km: float = 1.0,
    cache: Path | None = None,
    members: int | None = None,
) -> Baseline:
    """Return the baseline of this name for the encoding of a dataset.

    Args:
        name: one of ``BASELINES``.
        encoding: encoding of the pixel values.
        step_minutes: minutes between frames, used by STEPS and LINDA.
        spacing_km: pixel spacing in km, used by STEPS and LINDA.
        cache: folder in which forecasts are cached between evaluations.
        members: number of members of ``steps``, 10 by default; other baselines have none.

    Raises:
        KeyError: unknown name; the message gives the nearest name and all names.
        ImportError: the extra that the baseline needs is not installed.
    """
    if name not in BASELINES:
        near = difflib.get_close_matches(name, BASELINES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KeyError(f"unknown baseline {name!r}; {hint}choose one of {', '.join(BASELINES)}")
    if name == "persistence":
        return Persistence()
    if name == "extrapolation":
        return Extrapolation()
    if name in ("pysteps-lk", "darts"):
        return PystepsExtrapolation(encoding, method="darts" if name == "darts" else "lucas-kanade", cache=cache)
    return PystepsBaseline(
        name, encoding, step_minutes=step_minutes, spacing_km=spacing_km, cache=cache, members=members or MEMBERS
    )
