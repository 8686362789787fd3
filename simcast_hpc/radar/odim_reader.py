"""Reader of ODIM HDF5 composites and Cartesian images (OPERA data information model, EUMETNET).

Attributes are inherited from the file by its datasets, and by their data groups. The values of ``undetect`` are no
echo, those of ``nodata`` are missing; a value that is both is no echo.
"""

import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .odim_attributes import (
    OdimField,
    attributes_of,
    equals_sentinel,
    fields_of_dataset,
    number,
    odim_fields,
    text,
    time_of,
)
from .radar_frame import FieldChoice, RadarFrame, RadarGrid, Unit

logger = logging.getLogger(__name__)

# Quantities in order of preference per unit: rates before accumulations, measured before derived.
_QUANTITIES: dict[Unit, tuple[str, ...]] = {
    "mm/h": ("RATE", "ACRR", "DBZH"),
    "dBZ": ("DBZH", "RATE", "ACRR"),
    "kg/m^2": ("RATE", "ACRR", "DBZH"),  # none is in kg/m^2; frame_encoding rejects the unit
}
_UNIT: dict[str, Unit] = {"RATE": "mm/h", "ACRR": "mm/h", "DBZH": "dBZ"}
# Products whose prodpar is a height or an elevation.
_LEVELS = ("CAPPI", "PCAPPI", "PPI")


def object_of(file: Any) -> str:
    """Return the object type of an ODIM file, such as ``COMP`` (composite), ``IMAGE`` or ``PVOL`` (polar volume)."""
    return text(attributes_of(file, "what").get("object", ""))


def times(path: Path, choice: FieldChoice) -> list[datetime]:
    """Return the end of the interval of an accumulation, and the nominal time of another composite."""
    with h5py.File(path, "r") as file:
        return [_interval(file, select_field(_fields(file, path), choice, path), path)[1]]


def nominal_time(file: Any, path: Path) -> datetime:
    """Return the nominal time of an ODIM file.

    Raises:
        DataError: the file contains none.
    """
    return time_of(attributes_of(file, "what"), "date", "time", path)


def frames(path: Path, choice: FieldChoice) -> list[RadarFrame]:
    """Return the rain rate or reflectivity of the composite."""
    with h5py.File(path, "r") as file:
        field = select_field(_fields(file, path), choice, path, log=True)
        start, time = _interval(file, field, path)
        values = _values(field, path)
    metadata: dict[str, Any] = {"format": "ODIM HDF5", "quantity": field.quantity, "group": field.name}
    if start is not None:
        values = values * np.float32(3600.0 / (time - start).total_seconds())
    grid = _grid(field.where, values.shape, path)
    return [RadarFrame(values, _UNIT[field.quantity], time, grid, path, metadata, start)]


def _fields(file: Any, path: Path) -> list[OdimField]:
    object_type = object_of(file)
    if object_type not in ("COMP", "IMAGE"):
        raise DataError(
            f"{path} is an ODIM object {object_type!r}; it must be a composite (COMP) or a Cartesian image (IMAGE)"
        )
    return odim_fields(file)


def _interval(file: Any, field: OdimField, path: Path) -> tuple[datetime | None, datetime]:
    """Return the interval of an accumulation, or None and the nominal time of another field.

    Raises:
        DataError: a time is absent or invalid, or the interval ends before it starts.
    """
    if field.quantity != "ACRR":
        return None, nominal_time(file, path)
    start, end = (time_of(field.what, f"{name}date", f"{name}time", path) for name in ("start", "end"))
    if start >= end:
        raise DataError(f"{path}: the accumulation interval starts at {start} and ends at {end}; the end must be later")
    return start, end


def select_field(fields: list[OdimField], choice: FieldChoice, path: Path, *, log: bool = False) -> OdimField:
    """Return the field of the preferred quantity: of several the lowest level, or the first, which is logged.

    Raises:
        DataError: the file, or the dataset that was chosen, contains no supported quantity.
    """
    if choice.dataset is not None:
        fields = fields_of_dataset(fields, choice.dataset, path)
    found = sorted({field.quantity for field in fields})
    quantity = next((name for name in _QUANTITIES[choice.unit] if name in found), None)
    if quantity is None:
        raise DataError(f"{path} contains the quantities {found}; it must contain RATE, ACRR or DBZH")
    candidates = [field for field in fields if field.quantity == quantity]
    levels = [level for field in candidates if (level := _level(field)) is not None]
    comparable = len(levels) == len(candidates) and len({text(field.what["product"]) for field in candidates}) == 1
    chosen = candidates[int(np.argmin(levels))] if comparable else candidates[0]
    if len(candidates) > 1 and log:
        logger.warning(
            "%s contains %s in %s; %s is read (%s)",
            path,
            quantity,
            ", ".join(field.name for field in candidates),
            chosen.name,
            f"lowest prodpar, {_level(chosen):g}" if comparable else "the first",
        )
    return chosen


def _level(field: OdimField) -> float | None:
    """Return the height or elevation of a field; None if it is not of a product at one level."""
    try:
        level = float(field.what["prodpar"]) if text(field.what.get("product", "")) in _LEVELS else np.nan
    except (KeyError, TypeError, ValueError):
        return None
    return level if np.isfinite(level) else None


def _values(field: OdimField, path: Path) -> np.ndarray:
    """Return physical values, float32 ``[H, W]``: NaN where missing, no echo as 0 or, in dBZ, minus infinity.

    Raises:
        DataError: the field is not a two-dimensional array of numbers, or gain or offset is invalid.
    """
    data, what = field.data, field.what
    if data.ndim != 2 or data.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: {field.name} has shape {data.shape} and type {data.dtype}; it must be two-dimensional and numeric"
        )
    gain, offset = number(what, "gain", path, 1.0), number(what, "offset", path, 0.0)
    if gain is None or offset is None or not np.isfinite([gain, offset]).all() or gain == 0:
        raise DataError(f"{path}: {field.name} has gain {gain} and offset {offset}; both must be finite, gain not 0")
    stored = data[...]
    for name in ("nodata", "undetect"):
        number(what, name, path)
    no_echo = -np.inf if field.quantity == "DBZH" else 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        values = (stored * np.float64(gain) + offset).astype(np.float32)
    infinite = np.isposinf(values) if field.quantity == "DBZH" else np.isinf(values)
    values[infinite | equals_sentinel(stored, what.get("nodata"))] = np.nan
    values[equals_sentinel(stored, what.get("undetect"))] = no_echo
    return values


def _grid(where: dict[str, Any], shape: tuple[int, ...], path: Path) -> RadarGrid:
    """Return the grid from the corners, or from one corner and the pixel size.

    Raises:
        DataError: projection or corners are absent, or contradict the pixel size.
    """
    # Projection in meters or degrees; coordinates of other units are converted.
    import pyproj

    if not text(where.get("projdef", "")):
        raise DataError(f"{path} contains no where/projdef; a forecast needs the projection")
    projection = text(where["projdef"])
    to_map, scale = pyproj.Proj(projection), 1.0
    crs = pyproj.CRS.from_user_input(projection)
    if not crs.is_geographic:
        scale = float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
        if scale != 1.0:
            projection = re.sub(r"\+(units|to_meter)=\S+", "", projection) + " +units=m"

    height, width = shape
    corners = {}
    for name in ("LL", "UR", "LR", "UL"):
        longitude, latitude = number(where, f"{name}_lon", path), number(where, f"{name}_lat", path)
        if longitude is not None and latitude is not None:
            corners[name] = tuple(scale * coordinate for coordinate in to_map(longitude, latitude))
    pixel = {"x": number(where, "xscale", path), "y": number(where, "yscale", path)}
    edges = _edges(corners, pixel, where, (height, width), path)

    # Some services write the pixel size in km.
    for axis, pixels in (("x", width), ("y", height)):
        spacing, stated_size = (edges[f"{axis}2"] - edges[f"{axis}1"]) / pixels, pixel[axis]
        if stated_size and not crs.is_geographic and abs(stated_size * 1000 - spacing) <= 0.01 * spacing:
            pixel[axis] = stated_size * 1000
    metadata = {"projection": projection, "xpixelsize": pixel["x"], "ypixelsize": pixel["y"], **edges}
    return grid_of_pysteps(path, np.empty(shape, bool), metadata)


def _edges(
    corners: dict[str, tuple[float, ...]],
    pixel: dict[str, float | None],
    where: dict[str, Any],
    shape: tuple[int, int],
    path: Path,
) -> dict[str, float]:
    """Return the outer edges x1, x2, y1 and y2 from opposite corners, or from one corner and the pixel size.

    Raises:
        DataError: the attributes do not determine the edges.
    """
    height, width = shape
    if {"LL", "UR"} <= set(corners) or {"UL", "LR"} <= set(corners):
        x, y = zip(*corners.values(), strict=True)
        edges = {"x1": min(x), "x2": max(x), "y1": min(y), "y2": max(y)}
    elif corners and pixel["x"] and pixel["y"]:
        stated = (number(where, "ysize", path, height), number(where, "xsize", path, width))
        if stated != shape:
            raise DataError(f"{path}: where/ysize and where/xsize are {stated}, but the field has shape {shape}")
        name, (x0, y0) = next(iter(corners.items()))
        left = x0 - (width * pixel["x"] if name.endswith("R") else 0.0)
        top = y0 + (height * pixel["y"] if name.startswith("L") else 0.0)
        edges = {"x1": left, "x2": left + width * pixel["x"], "y1": top - height * pixel["y"], "y2": top}
    else:
        raise DataError(
            f"{path} contains the corners {sorted(corners)} in where; it must contain LL and UR, UL and LR, "
            "or one corner with xscale and yscale"
        )
    if not np.isfinite(list(edges.values())).all() or edges["x1"] >= edges["x2"] or edges["y1"] >= edges["y2"]:
        raise DataError(f"{path}: the corners in where give the edges {edges}; they must be finite and in order")
    return edges


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
