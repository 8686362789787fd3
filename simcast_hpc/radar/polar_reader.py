"""Polar volumes and sweeps of one radar (ODIM HDF5), by xradar: the lowest sweep on a grid of 1 km around the radar.

A pixel takes the gate whose middle is nearest. Nothing is corrected, and one radar is no composite: what a service
makes of its volumes is the better input where there is one.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .odim_reader import nominal_time
from .radar_frame import RadarFrame, RadarGrid, Unit

_SPACING = 1000.0
_FARTHEST = 250_000.0  # beyond it even the lowest beam is above most rain
_QUANTITY = "DBZH"


def times(path: Path) -> list[datetime]:
    """Return the nominal time of the volume."""
    with h5py.File(path, "r") as file:
        return [nominal_time(file, path)]


def frames(path: Path, _prefer: Unit) -> list[RadarFrame]:
    """Return the reflectivity of the lowest sweep that has it."""
    import xradar

    (time,) = times(path)
    volume: Any = xradar.io.open_odim_datatree(str(path))
    try:
        sweeps = [volume[name].to_dataset() for name in volume.children if str(name).startswith("sweep")]
        measured = [sweep for sweep in sweeps if _QUANTITY in sweep]
        if not measured:
            found = sorted({str(name) for sweep in sweeps for name in sweep.data_vars if sweep[name].ndim == 2})
            raise DataError(f"{path} is a polar volume of {found}; {_QUANTITY} (reflectivity) is needed")
        lowest = min(measured, key=lambda sweep: float(sweep["sweep_fixed_angle"]))
        grid, values = _gridded(lowest, float(volume["longitude"]), float(volume["latitude"]))
        degrees = float(lowest["sweep_fixed_angle"])
    finally:
        volume.close()
    about = {"format": "polar volume", "quantity": _QUANTITY, "elevation_degrees": degrees}
    return [RadarFrame(values, "dBZ", time, grid, path, about)]


def _gridded(sweep: Any, longitude: float, latitude: float) -> tuple[RadarGrid, np.ndarray]:
    polar = _values(sweep[_QUANTITY])
    middles, azimuths = sweep["range"].values.astype(np.float64), sweep["azimuth"].values.astype(np.float64)
    gate, slope = middles[1] - middles[0], np.cos(np.deg2rad(float(sweep["sweep_fixed_angle"])))
    reach = min(_FARTHEST, (middles[-1] + gate / 2) * slope)
    half = int(np.ceil(reach / _SPACING))
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
    number = np.floor((distance / slope - middles[0]) / gate + 0.5).astype(int)
    ray = _nearest_ray(np.rad2deg(np.arctan2(x, y)) % 360.0, azimuths)
    values = polar[ray, np.clip(number, 0, len(middles) - 1)]
    values[(number < 0) | (number >= len(middles)) | (distance > reach)] = np.nan
    return grid, values


def _nearest_ray(directions: np.ndarray, azimuths: np.ndarray) -> np.ndarray:
    """Return for every direction in degrees the index of the ray nearest to it around the circle."""
    order = np.argsort(azimuths)
    around = np.concatenate([azimuths[order][-1:] - 360.0, azimuths[order], azimuths[order][:1] + 360.0])
    index = np.concatenate([order[-1:], order, order[:1]])
    return index[np.searchsorted((around[1:] + around[:-1]) / 2, directions)]


def _values(field: Any) -> np.ndarray:
    """Return dBZ ``[rays, gates]``, float32: NaN where missing, minus infinity where undetected."""
    gain, offset = field.encoding.get("scale_factor", 1.0), field.encoding.get("add_offset", 0.0)
    values = field.transpose("azimuth", "range").values.astype(np.float32)
    if "_Undetect" in field.attrs:
        silent = np.float32(float(field.attrs["_Undetect"]) * gain + offset)
        values[np.abs(values - silent) < 1e-3 * max(abs(gain), 1e-3)] = -np.inf
    return values
