"""Geometry of polar sweeps, and their values on a map grid around the radar: each pixel takes those of its gate."""

from dataclasses import dataclass

import numpy as np

from .radar_frame import RadarGrid

_SPACING = 1000.0
MAX_RANGE = 250_000.0  # beyond it even the lowest beam is above most rain
_EFFECTIVE_EARTH_RADIUS = 4.0 / 3.0 * 6_371_000.0  # bends the beam as the standard atmosphere does


@dataclass(frozen=True)
class Sweep:
    """Geometry of a sweep: azimuths of ``[rays]`` in degrees, gates in meters along the beam.

    ``half_widths`` is the largest distance of a direction from the center of a ray that belongs to it, ``[rays]``.
    """

    elevation: float
    azimuths: np.ndarray
    half_widths: np.ndarray
    start: float
    gate: float
    gates: int

    @property
    def reach(self) -> float:
        """Ground distance of the end of the last gate, at most 250 km."""
        end, elevation = self.start + self.gate * self.gates, np.deg2rad(self.elevation)
        radius = _EFFECTIVE_EARTH_RADIUS
        return min(MAX_RANGE, float(radius * np.arctan2(end * np.cos(elevation), radius + end * np.sin(elevation))))

    def gate_numbers(self, ground_distance: np.ndarray) -> np.ndarray:
        """Return the number of the gate above each ground distance, from 0; outside 0 to ``gates - 1`` is none."""
        angle = ground_distance / _EFFECTIVE_EARTH_RADIUS
        along_beam = _EFFECTIVE_EARTH_RADIUS * np.sin(angle) / np.cos(np.deg2rad(self.elevation) + angle)
        return np.floor((along_beam - self.start) / self.gate).astype(int)

    def ray_numbers(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest ray of each direction in degrees, and whether the direction belongs to it."""
        order = np.argsort(self.azimuths)
        azimuths, index = self.azimuths[order], np.concatenate([order[-1:], order, order[:1]])
        periodic = np.concatenate([azimuths[-1:] - 360.0, azimuths, azimuths[:1] + 360.0])
        position = np.searchsorted((periodic[1:] + periodic[:-1]) / 2, directions)
        ray = index[position]
        return ray, np.abs(directions - periodic[position]) <= self.half_widths[ray]


def to_grid(sweep: Sweep, polar: np.ndarray, radar: tuple[float, float]) -> tuple[RadarGrid, np.ndarray]:
    """Return a sweep on a 1 km grid around its radar.

    Args:
        sweep: geometry.
        polar: values ``[rays, gates]``, float32.
        radar: longitude and latitude in degrees.
    """
    longitude, latitude = radar
    half = int(np.ceil(sweep.reach / _SPACING))
    grid = RadarGrid(
        f"+proj=aeqd +lat_0={latitude:.8g} +lon_0={longitude:.8g} +ellps=WGS84 +units=m +no_defs",
        -half * _SPACING,
        half * _SPACING,
        _SPACING,
        _SPACING,
        2 * half,
        2 * half,
    )
    x, y = np.meshgrid(grid.x, grid.y)
    distance = np.hypot(x, y)
    gate = sweep.gate_numbers(distance)
    ray, is_scanned = sweep.ray_numbers(np.rad2deg(np.arctan2(x, y)) % 360.0)
    values = polar[ray, np.clip(gate, 0, sweep.gates - 1)]
    values[(gate < 0) | (gate >= sweep.gates) | (distance > sweep.reach) | ~is_scanned] = np.nan
    return grid, values
