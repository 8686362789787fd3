"""Synthetic spectra, ranks, reliability and products of an ensemble, in the format of evaluation."""

from typing import Any

import numpy as np

MEMBERS = 5
WAVELENGTHS = [8.0 * 48 / k for k in range(1, 24)]
SCORES = {"crps": 0.021, "crps_standard": 0.026, "spread": 0.05, "spread_skill": 0.9}


def diagrams(labels: list[str], *, frames_out: int, windows: int, ensemble: bool) -> dict[str, Any]:
    """Return the diagram data of one entry; the highest threshold is never forecast by all members."""
    power = [3.0 / k**2.5 for k in range(1, 24)]

    def curves(blur: float) -> list[list[float]]:
        return [[value * np.exp(-blur * lead * k / 23) for k, value in enumerate(power)] for lead in range(frames_out)]

    spectra = {
        "wavelength_km": WAVELENGTHS,
        "frames": [windows] * frames_out,
        "observed": curves(0.0),
        "forecast": curves(0.6),
    }
    if not ensemble:
        return {"spectra": spectra}
    bins = np.linspace(0, 1, MEMBERS + 1)
    return {
        "spectra": {**spectra, "members": curves(0.1)},
        "members": MEMBERS,
        "ranks": [[300, 200, 150, 150, 200, 320]] * frames_out,
        "reliability": {
            label: {
                "probability": bins.tolist(),
                "observed_frequency": [*(0.9 * bins[:-1]).tolist(), None if label == labels[-1] else 0.85],
                "forecasts": [5000, 400, 200, 100, 60, 0 if label == labels[-1] else 90],
            }
            for label in labels
        },
    }


def products(name: str, observed: np.ndarray, thresholds: list[float]) -> dict[str, np.ndarray]:
    """Return the arrays of an ensemble in an example window: members are the shifted observation."""
    field = np.where(observed == 255, 0, observed) / 255
    members = np.stack([np.roll(field, shift, axis=-1) for shift in (-4, -2, 2, 4)])
    probability = np.stack([(members >= level / 255).mean(0) for level in thresholds])
    arrays = {"members": members, "mean": members.mean(0), "matched_mean": members.max(0), "probability": probability}
    return {f"{kind}/{name}": array.astype(np.float16) for kind, array in arrays.items()}


def intervals(scores: dict[str, float | None]) -> dict[str, list[float]]:
    """Return bounds of every score over all lead times."""
    return {
        key: [0.9 * value, 1.1 * value] for key, value in scores.items() if value is not None and "/lead/" not in key
    }
