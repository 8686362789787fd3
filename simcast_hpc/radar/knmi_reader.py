"""Reader of KNMI HDF5 composites (Royal Netherlands Meteorological Institute, Data Centre format), using pysteps."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .odim_reader import grid_of_pysteps
from .radar_frame import RadarFrame, RadarGrid, Unit

# Gain, offset and missing value that the pysteps importer assumes; the file must agree.
_CALIBRATION = {"ACRR": (0.01, 0.0, 65535), "DBZH": (0.5, -32.0, 255)}
_FORMULA = re.compile(r"GEO\s*=\s*([-\d.eE]+)\s*\*\s*PV\s*\+?\s*([-\d.eE]+)")


def times(path: Path) -> list[datetime]:
    """Return the end of the product's interval."""
    with h5py.File(path, "r") as file:
        return [_time(file, "product_datetime_end", path)]


def frames(path: Path, _prefer: Unit) -> list[RadarFrame]:
    """Return the rain rate of an accumulation, or the reflectivity."""
    from pysteps.io.importers import import_knmi_hdf5

    with h5py.File(path, "r") as file:
        quantity = _quantity(file, path)
        end = _time(file, "product_datetime_end", path)
        minutes = (end - _time(file, "product_datetime_start", path)).total_seconds() / 60
        _check_calibration(file, path, quantity)
    if quantity == "ACRR" and minutes <= 0:
        raise DataError(f"{path}: the accumulation interval is {minutes:g} minutes; it must be positive")
    values, _, metadata = import_knmi_hdf5(str(path), qty=quantity, accutime=minutes)
    if quantity == "ACRR":
        values, unit = (values * (60.0 / minutes)).astype(np.float32), "mm/h"
    else:
        values, unit = np.where(values <= -32.0, -np.inf, values).astype(np.float32), "dBZ"
    grid = (
        grid_of_pysteps(path, values, metadata)
        if metadata["cartesian_unit"] == "m"
        else _in_meters(path, values, metadata)
    )
    metadata = {"format": "KNMI HDF5", "quantity": quantity, "accumulation_minutes": minutes}
    return [RadarFrame(values, unit, end, grid, path, metadata)]


def _quantity(file: Any, path: Path) -> str:
    parameter = str(_scalar(file["image1"].attrs["image_geo_parameter"])).upper()
    if "ACCUMULATED" in parameter:
        return "ACRR"
    if "REFLECTIVITY" in parameter:
        return "DBZH"
    raise DataError(
        f"{path} contains {parameter}; it must contain accumulated precipitation in mm or reflectivity in dBZ"
    )


def _check_calibration(file: Any, path: Path, quantity: str) -> None:
    attributes = file["image1/calibration"].attrs
    formula = str(_scalar(attributes["calibration_formulas"]))
    gain, offset, missing = _CALIBRATION[quantity]
    match = _FORMULA.search(formula)
    missing_codes = {int(_scalar(attributes[f"calibration_{what}"])) for what in ("missing_data", "out_of_image")}
    if match is None or (float(match[1]), float(match[2])) != (gain, offset) or missing_codes != {missing}:
        raise DataError(
            f"{path}: calibration {formula!r} with missing values {sorted(missing_codes)} is not supported; "
            f"it must be 'GEO={gain:g}*PV+{offset:g}' with {missing}"
        )


def _in_meters(path: Path, values: np.ndarray, metadata: dict[str, Any]) -> RadarGrid:
    """Return the grid in meters of a file whose coordinates and ellipsoid are in kilometers."""
    if metadata["cartesian_unit"] != "km":
        raise DataError(f"{path}: the coordinates are in {metadata['cartesian_unit']}; km or m is valid")
    words = [word if word.startswith("+") else f"+{word}" for word in metadata["projection"].split()]

    def to_metres(word: str) -> str:
        key, _, value = word.partition("=")
        return f"{key}={float(value) * 1000:.10g}" if key in ("+a", "+b") and float(value) < 10000 else word

    scaled = {key: metadata[key] * 1000.0 for key in ("x1", "x2", "y1", "y2", "xpixelsize", "ypixelsize")}
    return grid_of_pysteps(path, values, {"projection": " ".join(map(to_metres, words)), **scaled})


def _time(file: Any, name: str, path: Path) -> datetime:
    text = str(_scalar(file["overview"].attrs[name]))
    try:
        return datetime.strptime(text.split(".")[0], "%d-%b-%Y;%H:%M:%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{path}: overview/{name}={text!r} is not of the form DD-MON-YYYY;HH:MM:SS") from error


def _scalar(value: Any) -> Any:
    value = value.ravel()[0] if isinstance(value, np.ndarray) else value
    return value.decode() if isinstance(value, bytes) else value
