"""KNMI HDF5 composites (Royal Netherlands Meteorological Institute, HDF5 of its data centre), by pysteps' importer."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .odim_reader import grid_of_pysteps
from .radar_frame import RadarFrame, RadarGrid, Unit

# What the importer takes for granted, held against what the file says.
_CALIBRATION = {"ACRR": (0.01, 0.0, 65535), "DBZH": (0.5, -32.0, 255)}
_FORMULA = re.compile(r"GEO\s*=\s*([-\d.eE]+)\s*\*\s*PV\s*\+?\s*([-\d.eE]+)")


def times(path: Path) -> list[datetime]:
    """Return the end of what the product covers."""
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
        raise DataError(f"{path}: its accumulation lasts {minutes:g} minutes; it must end after it begins")
    values, _, about = import_knmi_hdf5(str(path), qty=quantity, accutime=minutes)
    if quantity == "ACRR":
        values, unit = (values * (60.0 / minutes)).astype(np.float32), "mm/h"
    else:
        values, unit = np.where(values <= -32.0, -np.inf, values).astype(np.float32), "dBZ"
    grid = grid_of_pysteps(path, values, about) if about["cartesian_unit"] == "m" else _in_metres(path, values, about)
    about = {"format": "KNMI HDF5", "quantity": quantity, "accumulation_minutes": minutes}
    return [RadarFrame(values, unit, end, grid, path, about)]


def _quantity(file: Any, path: Path) -> str:
    said = str(_one(file["image1"].attrs["image_geo_parameter"])).upper()
    if "ACCUMULATED" in said:
        return "ACRR"
    if "REFLECTIVITY" in said:
        return "DBZH"
    raise DataError(f"{path} holds {said}; accumulated precipitation in mm or reflectivity in dBZ is needed")


def _check_calibration(file: Any, path: Path, quantity: str) -> None:
    attributes = file["image1/calibration"].attrs
    formula = str(_one(attributes["calibration_formulas"]))
    gain, offset, missing = _CALIBRATION[quantity]
    found = _FORMULA.search(formula)
    codes = {int(_one(attributes[f"calibration_{what}"])) for what in ("missing_data", "out_of_image")}
    if found is None or (float(found[1]), float(found[2])) != (gain, offset) or codes != {missing}:
        raise DataError(
            f"{path}: calibration {formula!r} with {sorted(codes)} for missing; "
            f"'GEO={gain:g}*PV+{offset:g}' with {missing} is what is read"
        )


def _in_metres(path: Path, values: np.ndarray, about: dict[str, Any]) -> RadarGrid:
    """Return the grid in metres of a file whose coordinates, and whose earth, are in kilometres."""
    if about["cartesian_unit"] != "km":
        raise DataError(f"{path}: its coordinates are in {about['cartesian_unit']}; km or m are needed")
    words = [word if word.startswith("+") else f"+{word}" for word in about["projection"].split()]

    def larger(word: str) -> str:
        key, _, value = word.partition("=")
        return f"{key}={float(value) * 1000:.10g}" if key in ("+a", "+b") and float(value) < 10000 else word

    scaled = {key: about[key] * 1000.0 for key in ("x1", "x2", "y1", "y2", "xpixelsize", "ypixelsize")}
    return grid_of_pysteps(path, values, {"projection": " ".join(map(larger, words)), **scaled})


def _time(file: Any, name: str, path: Path) -> datetime:
    said = str(_one(file["overview"].attrs[name]))
    try:
        return datetime.strptime(said.split(".")[0], "%d-%b-%Y;%H:%M:%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{path}: overview/{name} is {said!r}; DD-MON-YYYY;HH:MM:SS is needed") from error


def _one(value: Any) -> Any:
    value = value.ravel()[0] if isinstance(value, np.ndarray) else value
    return value.decode() if isinstance(value, bytes) else value
