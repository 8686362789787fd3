"""Forecasts of random fields with known inputs, for the tests of products."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.forecast.forecast_fields import Forecast, ObservedFrames
from simcast_hpc.radar import RadarGrid
from tests.radar.radar_files import LAEA

ISSUE = datetime(2024, 6, 11, 12, 5, tzinfo=UTC)
GRID = RadarGrid(LAEA, 2_640_000.0, -944_000.0, 1000.0, 1000.0, 20, 30)
NO_ECHO = -32.0
PROVENANCE = {"simcast_run": "made", "license": "CC BY 4.0", "attribution": "Radar service, 2024"}


def rates(*shape: int, seed: int = 0) -> np.ndarray:
    """Return rain rates in mm/h, float32, of which a third are zero."""
    generator = np.random.default_rng(seed)
    fields = generator.gamma(0.6, 6.0, shape).astype(np.float32)
    return np.where(generator.random(shape) < 1 / 3, np.float32(0), fields)


def made_forecast(
    *,
    members: int = 1,
    leads: int = 6,
    frames: int = 4,
    unit: Any = "mm/h",
    grid: RadarGrid = GRID,
    are_means: bool = False,
    missing: bool = True,
    thresholds: tuple[float, ...] = (1.0, 5.0),
    z_r: ZRRelation | None = None,
) -> Forecast:
    """Return a forecast every 5 minutes with ``frames`` inputs and, by default, missing pixels in a corner.

    Codes of inputs stand for 0.2 mm/h or, in dBZ, for half dBZ above -32.
    """
    codes = np.random.default_rng(9).integers(0, 200, (frames, *grid.shape), dtype=np.uint8)
    table = np.arange(256, dtype=np.float32) * np.float32(0.2)
    values = rates(members, leads, *grid.shape)
    if unit == "dBZ":
        table = np.arange(256, dtype=np.float32) * np.float32(0.5) + np.float32(NO_ECHO)
        with np.errstate(divide="ignore"):
            values = np.maximum(10 * np.log10(200 * values**1.6), np.float32(NO_ECHO)).astype(np.float32)
    table[255] = np.nan
    if missing:
        codes[:, :3, -4:] = 255
        values[..., :3, -4:] = np.nan
    times = tuple(ISSUE - timedelta(minutes=5 * k) for k in reversed(range(frames)))
    is_ensemble = members > 1
    mean = values.mean(axis=0) if is_ensemble else None
    probability = None
    if is_ensemble:
        probability = np.stack([(values >= level).mean(axis=0) for level in thresholds]).astype(np.float32)
        probability[..., np.isnan(values[0, 0])] = np.nan
    return Forecast(
        ISSUE, 5.0, grid, unit, NO_ECHO, table[codes[-1]], thresholds, values, mean, probability, dict(PROVENANCE),
        inputs=ObservedFrames(codes, times, lambda stored: table[stored], are_means), z_r=z_r,
    )  # fmt: skip
