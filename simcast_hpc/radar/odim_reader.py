"""Reader of ODIM HDF5 composites (OPERA data information model, EUMETNET), using pysteps.

pysteps gives undetected pixels -30 dBZ, which a radar can also measure. They are therefore identified by the stored
values: undetect is no echo, nodata is missing.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .radar_frame import RadarFrame, RadarGrid, Unit

# Quantities in order of preference per unit: rates before accumulations, measured before derived.
_QUANTITIES: dict[Unit, tuple[str, ...]] = {
    "mm/h": ("RATE", "ACRR", "DBZH"),
    "dBZ": ("DBZH", "RATE", "ACRR"),
    "kg/m^2": ("RATE", "ACRR", "DBZH"),  # none is in kg/m^2; frame_encoding rejects the unit
}
_UNIT: dict[str, Unit] = {"RATE": "mm/h", "ACRR": "mm/h", "DBZH": "dBZ"}


def object_of(file: Any) -> str:
    """Return the object type of an ODIM file, such as ``COMP`` (composite), ``IMAGE`` or ``PVOL`` (polar volume)."""
    return _text(file["what"].attrs.get("object", ""))


def times(path: Path) -> list[datetime]:
    """Return the nominal time of the composite."""
    with h5py.File(path, "r") as file:
        return [nominal_time(file, path)]


def frames(path: Path, prefer: Unit) -> list[RadarFrame]:
    """Return the rain rate or reflectivity of the composite."""
    from pysteps.io.importers import import_odim_hdf5

    with h5py.File(path, "r") as file:
        time = nominal_time(file, path)
        object_type = object_of(file)
        if object_type not in ("COMP", "IMAGE"):
            raise DataError(
                f"{path} is an ODIM object {object_type!r}; it must be a composite (COMP) or a Cartesian image (IMAGE)"
            )
        fields = _fields(file)
        quantity = next((name for name in _QUANTITIES[prefer] if name in fields), None)
        if quantity is None:
            raise DataError(f"{path} contains the quantities {sorted(fields)}; it must contain RATE, ACRR or DBZH")
        data, what = fields[quantity]
        undetected = data["data"][...] == what.get("undetect", np.nan)
        minutes = _accumulation_minutes(file, path) if quantity == "ACRR" else None
    values, _, metadata = import_odim_hdf5(str(path), qty=quantity, dtype="float32")
    if minutes is not None:
        values = values * np.float32(60.0 / minutes)
    values[undetected & ~np.isnan(values)] = -np.inf if quantity == "DBZH" else 0.0
    grid = grid_of_pysteps(path, values, metadata)
    return [RadarFrame(values, _UNIT[quantity], time, grid, path, {"format": "ODIM HDF5", "quantity": quantity})]


def grid_of_pysteps(path: Path, values: np.ndarray, metadata: dict[str, Any]) -> RadarGrid:
    """Return the grid from the metadata of a pysteps importer.

    Raises:
        DataError: there is no projection, or the corners contradict the number of pixels and the pixel size.
    """
    if "projection" not in metadata or metadata.get("x1") is None:
        raise DataError(f"{path} contains no projection; a forecast needs one")
    projection, left, right = metadata["projection"], float(metadata["x1"]), float(metadata["x2"])
    bottom, top = sorted((float(metadata["y1"]), float(metadata["y2"])))
    height, width = values.shape
    spacing_x, spacing_y = (right - left) / width, (top - bottom) / height
    for axis, spacing, stated in (("x", spacing_x, metadata["xpixelsize"]), ("y", spacing_y, metadata["ypixelsize"])):
        if stated is not None and abs(float(stated) - spacing) > 0.01 * spacing:
            raise DataError(
                f"{path}: the pixel size along {axis} is {float(stated):g} in the file, but {spacing:g} by its corners "
                f"and {height} x {width} pixels"
            )
    return make_grid(projection, left, top, spacing_x, spacing_y, (height, width))


def make_grid(
    projection: str, left: float, top: float, spacing_x: float, spacing_y: float, shape: tuple[int, int]
) -> RadarGrid:
    """Return a grid with a normalized PROJ string, in degrees if the CRS is geographic."""
    import pyproj

    crs = pyproj.CRS.from_user_input(" ".join(projection.split()))
    unit = "degree" if crs.is_geographic else "m"
    return RadarGrid(" ".join(projection.split()), left, top, spacing_x, spacing_y, *shape, unit)


def _fields(file: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return data group and attributes of each quantity; a data group inherits the attributes of its dataset."""
    fields = {}
    for dataset in (file[name] for name in sorted(file) if name.startswith("dataset")):
        inherited = dict(dataset["what"].attrs) if "what" in dataset else {}
        for name in sorted(dataset):
            if name.startswith("data"):
                own = dict(dataset[name]["what"].attrs) if "what" in dataset[name] else {}
                what = {**inherited, **own}
                fields[_text(what.get("quantity", ""))] = (dataset[name], what)
    return fields


def nominal_time(file: Any, path: Path) -> datetime:
    """Return the nominal time of an ODIM file.

    Raises:
        DataError: the file contains none.
    """
    return _time(file["what"].attrs, "date", "time", path)


def _accumulation_minutes(file: Any, path: Path) -> float:
    what = file["dataset1"]["what"].attrs
    start, end = _time(what, "startdate", "starttime", path), _time(what, "enddate", "endtime", path)
    minutes = (end - start).total_seconds() / 60
    if minutes <= 0:
        raise DataError(f"{path}: the accumulation interval starts at {start} and ends at {end}; the end must be later")
    return minutes


def _time(attributes: Any, date: str, time: str, path: Path) -> datetime:
    text = _text(attributes.get(date, "")) + _text(attributes.get(time, ""))
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(
            f"{path}: what/{date} and what/{time} are {text!r}; they must be YYYYMMDD and HHmmss"
        ) from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
