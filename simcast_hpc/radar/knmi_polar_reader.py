"""Reader of KNMI's own HDF5 polar volumes (not ODIM): the lowest sweep of reflectivity on a 1 km grid around the radar.

Groups ``scan1``, ``scan2``, ... contain ``scan_Z_data`` and a linear calibration. Of sweeps at the lowest elevation the
one that reaches furthest is read; vertical sweeps are skipped. Row 0 starts at north. Pixel 0, KNMI's missing data, is
no echo; ``calibration_out_of_image`` and the largest value are missing.
"""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .declared_size import check_pixels
from .knmi_reader import overview_time
from .odim_attributes import number, scalar, text
from .polar_grid import Sweep, to_grid
from .radar_frame import FieldChoice, RadarFrame

_FORMULA = re.compile(r"GEO\s*=\s*([-+\d.eE]+)\s*\*\s*PV\s*\+?\s*([-+\d.eE]+)", re.IGNORECASE)
_ELEVATIONS = (-5.0, 45.0)


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the start of the volume."""
    with h5py.File(path, "r") as file:
        return [overview_time(file["overview"].attrs, "product_datetime_start", path)]


def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
    """Return the reflectivity of the lowest sweep.

    Raises:
        DataError: no sweep can be used, or its geometry or calibration is invalid.
    """
    with h5py.File(path, "r") as file:
        time = overview_time(file["overview"].attrs, "product_datetime_start", path)
        name, attributes = _lowest(file, path)
        group: Any = file[name]
        data, calibration = group["scan_Z_data"], group.get("calibration")
        sweep = _sweep(attributes, data.shape, f"{path}: {name}", path)
        polar = _values(data[...], calibration, f"{path}: {name}", path)
        place = np.ravel(file["radar1"].attrs.get("radar_location", [])).astype(np.float64)
    if place.size < 2 or not (abs(place[0]) <= 360.0 and abs(place[1]) <= 90.0):
        raise DataError(f"{path}: radar1/radar_location is {place.tolist()}; it must be longitude and latitude")
    grid, values = to_grid(sweep, polar, (float(place[0]), float(place[1])))
    metadata: dict[str, Any] = {
        "format": "KNMI polar volume", "quantity": "Z", "group": name, "elevation_degrees": sweep.elevation,
    }  # fmt: skip
    return [RadarFrame(values, "dBZ", time, grid, path, metadata)]


def _lowest(file: Any, path: Path) -> tuple[str, dict[str, Any]]:
    sweeps = []
    for name in file:
        group = file[name]
        if re.fullmatch(r"scan\d+", name) and isinstance(group.get("scan_Z_data"), h5py.Dataset):
            attributes = {key: scalar(value) for key, value in group.attrs.items()}
            elevation = number(attributes, "scan_elevation", path)
            reach = (number(attributes, "scan_range_bin", path, 0.0) or 0.0) * group["scan_Z_data"].shape[-1]
            if elevation is not None and _ELEVATIONS[0] <= elevation <= _ELEVATIONS[1]:
                sweeps.append((round(elevation, 2), -reach, int(name[4:]), name, attributes))
    if not sweeps:
        raise DataError(f"{path} is a KNMI polar volume without a sweep of reflectivity (scan_Z_data) up to 45 degrees")
    *_, name, attributes = min(sweeps, key=lambda one: one[:3])
    return name, attributes


def _sweep(attributes: dict[str, Any], shape: tuple[int, ...], where: str, path: Path) -> Sweep:
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 1:
        raise DataError(f"{where}/scan_Z_data has shape {shape}; it must have rays and gates")
    check_pixels(*shape, path)
    rays, gates = shape
    gate, width = (number(attributes, name, path) for name in ("scan_range_bin", "scan_azim_bin"))
    if gate is None or not 0.01 <= gate <= 10.0:
        raise DataError(f"{where}: scan_range_bin is {gate} km; it must be from 0.01 to 10")
    if width is None or not abs(width * rays - 360.0) < width:
        raise DataError(f"{where}: {rays} rays of scan_azim_bin {width} degrees are no full circle")
    azimuths = (width * (np.arange(rays) + 0.5)) % 360.0
    elevation = float(attributes["scan_elevation"])
    return Sweep(elevation, azimuths, np.full(rays, width), 0.0, gate * 1000.0, gates)


def _values(stored: np.ndarray, calibration: Any, where: str, path: Path) -> np.ndarray:
    """Return reflectivity in dBZ, float32 ``[rays, gates]``: NaN where missing, minus infinity without echo."""
    attributes = {key: scalar(value) for key, value in calibration.attrs.items()} if calibration is not None else {}
    match = _FORMULA.fullmatch(text(attributes.get("calibration_Z_formulas", "")))
    try:
        gain, offset = (float(part) for part in match.groups()) if match else (np.nan, np.nan)
    except ValueError:
        gain = offset = np.nan
    if not np.isfinite([gain, offset]).all() or gain == 0 or stored.dtype.kind != "u":
        raise DataError(
            f"{where}: calibration_Z_formulas is {attributes.get('calibration_Z_formulas')!r} for data of "
            f"{stored.dtype}; GEO=a*PV+b and unsigned integers are valid"
        )
    values = (stored * gain + offset).astype(np.float32)
    outside = number(attributes, "calibration_out_of_image", path, float(np.iinfo(stored.dtype).max))
    values[(stored == outside) | (stored == np.iinfo(stored.dtype).max)] = np.nan
    values[stored == 0] = -np.inf
    return values
