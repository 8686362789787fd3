"""Baselines: forecasts that learn nothing, in the form of a model's forecast, so that one table holds both."""

import difflib
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from .extrapolation import Extrapolation, PhysicalCode
from .persistence import Persistence

__all__ = ["BASELINES", "Baseline", "Extrapolation", "Persistence", "PhysicalCode", "load_baseline"]


class Baseline(Protocol):
    """Anything that forecasts from frames alone."""

    name: str

    def forecast(self, frames: torch.Tensor | np.ndarray, frames_out: int) -> torch.Tensor:
        """Return float32 ``[B, frames_out, H, W]`` in [0, 1], codes / 255, on the frames' device.

        Args:
            frames: ``[B, T, H, W]``, uint8 codes (255 missing) or floats in [0, 1] (NaN missing).
            frames_out: lead times to forecast.
        """
        ...


BASELINES: dict[str, Callable[[PhysicalCode], Baseline]] = {
    "persistence": lambda _encoding: Persistence(),
    "extrapolation": Extrapolation,
}


def load_baseline(name: str, encoding: PhysicalCode) -> Baseline:
    """Return a baseline by its name, bound to a data set's encoding.

    Raises:
        KeyError: no baseline has this name; the message gives the nearest one and all others.
        ImportError: the baseline needs an extra that is not installed.
    """
    if name not in BASELINES:
        near = difflib.get_close_matches(name, BASELINES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KeyError(f"unknown baseline {name!r}; {hint}known: {', '.join(BASELINES)}")
    return BASELINES[name](encoding)
