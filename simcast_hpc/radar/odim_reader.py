"""ODIM HDF5 composites (OPERA data information model, EUMETNET), by pysteps' importer.

pysteps gives undetected pixels -30 dBZ, which a radar may measure as well. Which they are is therefore looked up in the
file: undetect is no echo, nodata is missing.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .radar_frame import RadarFrame, RadarGrid, Unit

# In the order of preference for a unit; rates before accumulations, measured before derived.
_QUANTITIES: dict[Unit, tuple[str, ...]] = {
    "mm/h": ("RATE", "ACRR", "DBZH"),
    "dBZ": ("DBZH", "RATE", "ACRR"),
    "kg/m^2": ("RATE", "ACRR", "DBZH"),  # neither is; what turns frames into codes says so
}
_UNIT: dict[str, Unit] = {"RATE": "mm/h", "ACRR": "mm/h", "DBZH": "dBZ"}


def object_of(file: Any) -> str:
    """Return what an ODIM file holds: ``COMP`` (composite), ``IMAGE``, ``PVOL`` (polar volume), ``SCAN``, ..."""
    return _text(file["what"].attrs.get("object", ""))


def times(path: Path) -> list[datetime]:
    """Return the nominal time of the composite."""
    with h5py.File(path, "r") as file:
        return [nominal_time(file, path)]


def frames(path: Path, prefer: Unit) -> list[RadarFrame]:
    """Return the composite, rain rate or reflectivity."""
    from pysteps.io.importers import import_odim_hdf5

    with h5py.File(path, "r") as file:
        time = nominal_time(file, path)
        found = object_of(file)
        if found not in ("COMP", "IMAGE"):
            raise DataError(
                f"{path} is an ODIM object {found!r}; a composite (COMP) or Cartesian image (IMAGE) is needed"
            )
        fields = _fields(file)
        quantity = next((name for name in _QUANTITIES[prefer] if name in fields), None)
        if quantity is None:
            raise DataError(f"{path} holds the quantities {sorted(fields)}; it must hold RATE, ACRR or DBZH")
        data, what = fields[quantity]
        undetected = data["data"][...] == what.get("undetect", np.nan)
        minutes = _accumulation_minutes(file, path) if quantity == "ACRR" else None
    values, _, about = import_odim_hdf5(str(path), qty=quantity, dtype="float32")
    if minutes is not None:
        values = values * np.float32(60.0 / minutes)
    values[undetected & ~np.isnan(values)] = -np.inf if quantity == "DBZH" else 0.0
    grid = grid_of_pysteps(path, values, about)
    return [RadarFrame(values, _UNIT[quantity], time, grid, path, {"format": "ODIM HDF5", "quantity": quantity})]


def grid_of_pysteps(path: Path, values: np.ndarray, about: dict[str, Any]) -> RadarGrid:
    """Return the grid that an importer of pysteps describes, with the corners held against size and pixel.

    Raises:
        DataError: there is no projection, or the corners, the number of pixels and their size do not agree.
    """
    if "projection" not in about or about.get("x1") is None:
        raise DataError(f"{path} says no projection; a forecast without one could not be put on a map")
    projection, left, right = about["projection"], float(about["x1"]), float(about["x2"])
    bottom, top = sorted((float(about["y1"]), float(about["y2"])))
    height, width = values.shape
    spacing_x, spacing_y = (right - left) / width, (top - bottom) / height
    for axis, spacing, said in (("x", spacing_x, about["xpixelsize"]), ("y", spacing_y, about["ypixelsize"])):
        if said is not None and abs(float(said) - spacing) > 0.01 * spacing:
            raise DataError(
                f"{path}: its corners and {height} x {width} pixels give a pixel of {spacing:g} along {axis}, and it "
                f"says {float(said):g}"
            )
    return placed(projection, left, top, spacing_x, spacing_y, (height, width))


def placed(
    projection: str, left: float, top: float, spacing_x: float, spacing_y: float, shape: tuple[int, int]
) -> RadarGrid:
    """Return the grid with a PROJ string in one spelling, in degrees where the projection is none."""
    import pyproj

    crs = pyproj.CRS.from_user_input(" ".join(projection.split()))
    unit = "degree" if crs.is_geographic else "m"
    return RadarGrid(" ".join(projection.split()), left, top, spacing_x, spacing_y, *shape, unit)


def _fields(file: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return data group and attributes of every quantity; what a data group does not say, its data set's does."""
    found = {}
    for dataset in (file[name] for name in sorted(file) if name.startswith("dataset")):
        above = dict(dataset["what"].attrs) if "what" in dataset else {}
        for name in sorted(dataset):
            if name.startswith("data"):
                own = dict(dataset[name]["what"].attrs) if "what" in dataset[name] else {}
                what = {**above, **own}
                found[_text(what.get("quantity", ""))] = (dataset[name], what)
    return found


def nominal_time(file: Any, path: Path) -> datetime:
    """Return the time that an ODIM file as a whole is of.

    Raises:
        DataError: it says none.
    """
    return _time(file["what"].attrs, "date", "time", path)


def _accumulation_minutes(file: Any, path: Path) -> float:
    what = file["dataset1"]["what"].attrs
    start, end = _time(what, "startdate", "starttime", path), _time(what, "enddate", "endtime", path)
    minutes = (end - start).total_seconds() / 60
    if minutes <= 0:
        raise DataError(f"{path}: its accumulation begins at {start} and ends at {end}; it must end after it begins")
    return minutes


def _time(attributes: Any, date: str, time: str, path: Path) -> datetime:
    text = _text(attributes.get(date, "")) + _text(attributes.get(time, ""))
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{path}: what/{date} and what/{time} are {text!r}; YYYYMMDD and HHmmss are needed") from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
