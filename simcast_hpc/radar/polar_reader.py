"""Reader of polar volumes of one radar (ODIM HDF5, using xradar): the lowest sweep on a 1 km grid around the radar.

Each pixel takes the value of the nearest gate. No correction is applied; prefer the composite of the weather service
where one exists.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .odim_reader import nominal_time
from .radar_frame import FieldChoice, RadarFrame, RadarGrid

_SPACING = 1000.0
_MAX_RANGE = 250_000.0  # beyond it even the lowest beam is above most rain
_QUANTITY = "DBZH"


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the nominal time of the volume."""
    with h5py.File(path, "r") as file:
        return [nominal_time(file, path)]


def frames(path: Path, choice: FieldChoice) -> list[RadarFrame]:
    """Return the reflectivity of the lowest sweep that contains it."""
    import xradar

    (time,) = times(path, choice)
    volume: Any = xradar.io.open_odim_datatree(str(path))
    try:
        sweeps = [volume[name].to_dataset() for name in volume.children if str(name).startswith("sweep")]
        with_quantity = [sweep for sweep in sweeps if _QUANTITY in sweep]
        if not with_quantity:
            quantities = sorted({str(name) for sweep in sweeps for name in sweep.data_vars if sweep[name].ndim == 2})
            raise DataError(f"{path} is a polar volume of {quantities}; it must contain {_QUANTITY} (reflectivity)")
        lowest = min(with_quantity, key=lambda sweep: float(sweep["sweep_fixed_angle"]))
        grid, values = _to_grid(lowest, float(volume["longitude"]), float(volume["latitude"]))
        degrees = float(lowest["sweep_fixed_angle"])
    finally:
        volume.close()
    metadata = {"format": "polar volume", "quantity": _QUANTITY, "elevation_degrees": degrees}
    return [RadarFrame(values, "dBZ", time, grid, path, metadata)]


def _to_grid(sweep: Any, longitude: float, latitude: float) -> tuple[RadarGrid, np.ndarray]:
    polar = _values(sweep[_QUANTITY])
    ranges, azimuths = sweep["range"].values.astype(np.float64), sweep["azimuth"].values.astype(np.float64)
    gate, slope = ranges[1] - ranges[0], np.cos(np.deg2rad(float(sweep["sweep_fixed_angle"])))
    reach = min(_MAX_RANGE, (ranges[-1] + gate / 2) * slope)
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
    number = np.floor((distance / slope - ranges[0]) / gate + 0.5).astype(int)
    ray = _nearest_ray(np.rad2deg(np.arctan2(x, y)) % 360.0, azimuths)
    values = polar[ray, np.clip(number, 0, len(ranges) - 1)]
    values[(number < 0) | (number >= len(ranges)) | (distance > reach)] = np.nan
    return grid, values


def _nearest_ray(directions: np.ndarray, azimuths: np.ndarray) -> np.ndarray:
    """Return for each direction in degrees the index of the nearest ray, periodic in azimuth."""
    order = np.argsort(azimuths)
    periodic = np.concatenate([azimuths[order][-1:] - 360.0, azimuths[order], azimuths[order][:1] + 360.0])
    index = np.concatenate([order[-1:], order, order[:1]])
    return index[np.searchsorted((periodic[1:] + periodic[:-1]) / 2, directions)]


def _values(field: Any) -> np.ndarray:
    """Return dBZ ``[rays, gates]``, float32: NaN where missing, minus infinity where undetected."""
    gain, offset = field.encoding.get("scale_factor", 1.0), field.encoding.get("add_offset", 0.0)
    values = field.transpose("azimuth", "range").values.astype(np.float32)
    if "_Undetect" in field.attrs:
        undetect = float(field.attrs["_Undetect"])
        no_echo = np.float32(undetect * gain + offset)
        values[np.abs(values - no_echo) < 1e-3 * max(abs(gain), 1e-3)] = -np.inf
        # xradar masks nodata. Where undetect has the same value, a gate within range is no echo.
        if np.isclose(undetect, float(field.encoding.get("_FillValue", np.nan)), rtol=0, atol=0, equal_nan=True):
            values[np.isnan(values)] = -np.inf
    return values
