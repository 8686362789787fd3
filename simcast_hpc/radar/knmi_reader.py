"""Reader of KNMI HDF5 composites (Royal Netherlands Meteorological Institute, Data Centre format).

It reads accumulations in mm, rain rates in mm/h and reflectivity in dBZ. Values are ``GEO = gain * PV + offset``.
``calibration_missing_data`` and ``calibration_out_of_image`` are missing, except that a missing code of 0 is no echo
or no rain: no other code remains for these in such files, and pixels out of range have their own code.
"""

import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .odim_attributes import equals_sentinel, number, scalar, text
from .odim_grid import make_grid
from .projection_text import check_projection
from .radar_frame import FieldChoice, QuantityError, RadarFrame, RadarGrid, Unit

logger = logging.getLogger(__name__)
_QUANTITY: dict[str, tuple[str, Unit]] = {
    "MM": ("ACRR", "mm/h"),
    "MM/H": ("RATE", "mm/h"),
    "MM/HR": ("RATE", "mm/h"),
    "DBZ": ("DBZH", "dBZ"),
}
_PARAMETER = re.compile(r"(?P<name>[A-Z0-9_ ]*)\[(?P<unit>[A-Z/]*)\]")
_NUMBER = r"[+-]? ?(?:\d+\.?\d*|\.\d+)(?:E[+-]?\d+)?"
_FORMULA = re.compile(rf"GEO ?= ?(?P<gain>{_NUMBER}) ?\* ?PV(?: ?(?P<sign>[+-]) ?(?P<offset>{_NUMBER}))?")
_FORMULA_LENGTH = 100
# English names for any locale.
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MOMENT = re.compile(r"(\d{2})-([A-Z]{3})-(\d{4});(\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,6}))?")
# Meters per unit of `geo_dim_pixel`; 0 for degrees.
_DIMENSIONS = {"KM": 1000.0, "M": 1.0, "DEG": 0.0, "DEGREES": 0.0}
# Position of the reference point in the pixel, in columns from the left and rows from the top.
_PIXEL = {"LU": (0.0, 0.0), "RU": (1.0, 0.0), "LL": (0.0, 1.0), "RL": (1.0, 1.0)}
_PIXEL |= dict.fromkeys(("C", "CC", "CE", "CENTER", "CENTRE"), (0.5, 0.5))
# Newer files write this ellipsoid, in km, with fewer digits than older files of the same grid.
_ROUNDED = {"+a=6378.14": "+a=6378.137", "+b=6356.75": "+b=6356.752"}


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the end of the product's interval."""
    with h5py.File(path, "r") as file:
        return [overview_time(file["overview"].attrs, "product_datetime_end", path)]


def frames(path: Path, choice: FieldChoice) -> list[RadarFrame]:
    """Return the rain rate, the mean rate of an accumulation, or the reflectivity.

    Raises:
        DataError: the file contains none of these, or calibration, interval or grid are invalid.
    """
    with h5py.File(path, "r") as file:
        image, quantity, unit = _select(file, choice.unit, path)
        start, end = (
            overview_time(file["overview"].attrs, f"product_datetime_{name}", path) for name in ("start", "end")
        )
        group: Any = file[image]
        values = _values(group, quantity, f"{path}: {image}")
        minutes = (end - start) / timedelta(minutes=1)
        if minutes < 0 or (minutes == 0 and quantity == "ACRR"):
            raise DataError(f"{path}: the interval of {image} is {minutes:g} minutes; it must be positive")
        if quantity == "ACRR":
            values = values * (60.0 / minutes)
        flips, grid = _grid(file["geographic"], values.shape, path)
        gain, offset = parse_formula(text(group["calibration"].attrs.get("calibration_formulas", "")), image)
        packing = {"stored_type": str(group["image_data"].dtype), "gain": gain, "offset": offset}
    metadata = {"format": "KNMI HDF5", "quantity": quantity, **packing}
    values = np.ascontiguousarray(values[flips]).astype(np.float32)
    interval_start = start if quantity == "ACRR" else None
    return [RadarFrame(values, unit, end, grid, path, metadata, interval_start)]


def _select(file: Any, prefer: Unit, path: Path) -> tuple[str, str, Unit]:
    """Return name, quantity and unit of the first image in the preferred unit.

    Raises:
        DataError: no image is supported, or several accumulations share the interval of the file.
    """
    names = sorted((name for name in file if re.fullmatch(r"image\d+", name)), key=lambda name: int(name[5:]))
    found: list[tuple[str, str, Unit]] = []
    parameters = []
    for name in names:
        parameter = text(file[name].attrs.get("image_geo_parameter", "")).upper()
        parameters.append(parameter)
        match = _PARAMETER.fullmatch(parameter)
        quantity = _QUANTITY.get(match["unit"]) if match else None
        if match and quantity and (quantity[1] == "dBZ" or "PRECIP" in match["name"] or "RAIN" in match["name"]):
            found.append((name, *quantity))
    if not found:
        raise QuantityError(
            f"{path} contains {', '.join(map(repr, parameters)) or 'no image'}; it must contain precipitation in [MM] "
            "or [MM/H], or reflectivity in [DBZ]"
        )
    candidates = [image for image in found if image[2] == prefer] or found[:1]
    same = [image for image in candidates if image[1] == candidates[0][1]]
    if len(same) > 1 and same[0][1] == "ACRR":
        raise DataError(
            f"{path} contains {len(same)} accumulations and one interval, as forecasts do; it must contain one"
        )
    if len(same) > 1:
        others = ", ".join(image[0] for image in same)
        logger.warning("%s contains %s in %s; %s is read (the first)", path, same[0][1], others, same[0][0])
    return candidates[0]


def _values(image: Any, quantity: str, where: str) -> np.ndarray:
    """Return physical values in the unit of the file, float64 ``[H, W]``: NaN missing; 0 or minus infinity no echo."""
    data, attributes = image["image_data"], image["calibration"].attrs
    if data.ndim != 2 or data.dtype.kind not in "iu":
        raise DataError(f"{where} has shape {data.shape} and type {data.dtype}; it must be two-dimensional integers")
    if text(attributes.get("calibration_flag", "Y")).upper() == "N":
        raise DataError(f"{where} is not calibrated (calibration_flag N); it must have a calibration formula")
    gain, offset = parse_formula(text(attributes.get("calibration_formulas", "")), where)
    missing, outside = (_code(attributes, f"calibration_{name}", where) for name in ("missing_data", "out_of_image"))
    sentinels = {outside} if missing == 0 and outside not in (0, None) else {missing, outside}
    stored = data[...]
    values = stored * gain + offset
    if 0 not in sentinels and (quantity == "DBZH" or missing == 0):
        values[stored == 0] = -np.inf if quantity == "DBZH" else 0.0
    for sentinel in sentinels:
        values[equals_sentinel(stored, sentinel)] = np.nan
    return values


def _code(attributes: Any, name: str, where: str) -> float | None:
    value = scalar(attributes.get(name))
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {name} is {value!r}; it must be one number") from error


def parse_formula(formula: str, where: str) -> tuple[float, float]:
    """Return gain and offset of a calibration formula such as ``GEO = 0.5 * PV + -32``.

    Raises:
        DataError: the formula has another form, or gain or offset is invalid.
    """
    words = " ".join(formula.split())
    match = _FORMULA.fullmatch(words.upper()) if len(words) <= _FORMULA_LENGTH else None
    if match is None:
        raise DataError(f"{where}: calibration_formulas is {words[:60]!r}; it must be of the form GEO=0.5*PV+-32")
    gain = float(match["gain"].replace(" ", ""))
    offset = float((match["offset"] or "0").replace(" ", "")) * (-1 if match["sign"] == "-" else 1)
    if not np.isfinite([gain, offset]).all() or gain == 0:
        raise DataError(f"{where}: calibration_formulas is {words!r}; both numbers must be finite, the gain not 0")
    return gain, offset


def _grid(geographic: Any, shape: tuple[int, ...], path: Path) -> tuple[tuple[slice, slice], RadarGrid]:
    """Return the slices that turn the image north up and west left, and the grid.

    Raises:
        DataError: an attribute is absent or invalid, or contradicts the size or the corners of the file.
    """
    attributes = {key: scalar(value) for key, value in geographic.attrs.items()}
    numbers = {}
    # 1. Pixels, in the unit of the file
    for name in ("column_offset", "row_offset", "pixel_size_x", "pixel_size_y", "number_columns", "number_rows"):
        value = number(attributes, f"geo_{name}", path)
        if value is None or not np.isfinite(value):
            raise DataError(f"{path}: geo_{name} is {value}; it must be a finite number")
        numbers[name] = value
    if shape != (numbers["number_rows"], numbers["number_columns"]):
        raise DataError(
            f"{path}: geo_number_rows and geo_number_columns are {numbers['number_rows']:g} and "
            f"{numbers['number_columns']:g}, but the image has shape {shape}"
        )
    definition = text(attributes.get("geo_pixel_def", "LU")).upper()
    dimensions = {word.strip().upper() for word in text(attributes.get("geo_dim_pixel", "KM,KM")).split(",")}
    unit = dimensions.pop() if len(dimensions) == 1 else ""
    if (
        definition not in _PIXEL
        or unit not in _DIMENSIONS
        or not numbers["pixel_size_x"]
        or not numbers["pixel_size_y"]
    ):
        raise DataError(
            f"{path}: geo_pixel_def={definition!r}, geo_dim_pixel={unit!r} with pixels of {numbers['pixel_size_x']:g} "
            f"x {numbers['pixel_size_y']:g}; valid are {', '.join(_PIXEL)} and KM, M or DEG, pixels not 0"
        )
    # 2. Edges: the reference point of pixel (row, column) is at size * (offset + index)
    dx, dy = numbers["pixel_size_x"], numbers["pixel_size_y"]
    column, row = _PIXEL[definition]
    west = min(dx * numbers["column_offset"], dx * (numbers["column_offset"] + shape[1] - 1)) - column * abs(dx)
    north = max(dy * numbers["row_offset"], dy * (numbers["row_offset"] + shape[0] - 1)) + row * abs(dy)
    # 3. Grid in meters or degrees
    projection = _projection(geographic, unit, path)
    scale = _DIMENSIONS[unit] or 1.0
    grid = make_grid(projection, west * scale, north * scale, abs(dx) * scale, abs(dy) * scale, (shape[0], shape[1]))
    if (grid.unit == "degree") != (_DIMENSIONS[unit] == 0):
        raise DataError(f"{path}: geo_dim_pixel is {unit}, which contradicts the projection {projection!r}")
    _check_corners(geographic, grid, path)
    flips = slice(None, None, -1 if dy > 0 else 1), slice(None, None, -1 if dx < 0 else 1)
    return flips, grid


def _projection(geographic: Any, unit: str, path: Path) -> str:
    """Return the PROJ string with coordinates in meters or degrees."""
    if not isinstance(geographic.get("map_projection"), h5py.Group):
        raise DataError(f"{path} contains no geographic/map_projection; a forecast needs the projection")
    stated = text(geographic["map_projection"].attrs.get("projection_proj4_params", "")).split()
    words = [word if word.startswith("+") else f"+{word}" for word in stated]
    words = [_ROUNDED.get(word, word) for word in words]
    # Lengths of an ellipsoid in km are in km.
    is_in_km = unit == "KM" and any(
        float(word[3:]) < 10000 for word in words if re.fullmatch(r"\+[aR]=\d+(\.\d+)?", word)
    )
    if is_in_km:
        words = [
            f"{key}={float(value) * 1000:.10g}" if key in ("+a", "+b", "+R", "+x_0", "+y_0") else f"{key}={value}"
            if value else key
            for key, _, value in (word.partition("=") for word in words)
        ]  # fmt: skip
    projection = " ".join(word for word in words if not re.match(r"\+(units|to_meter)=", word))
    return check_projection(projection, path, field="projection_proj4_params")


def _check_corners(geographic: Any, grid: RadarGrid, path: Path) -> None:
    """Compare the corners of the grid with those of the file, longitude and latitude of LL, UL, UR and LR.

    Raises:
        DataError: a corner is more than a pixel off.
    """
    stated = np.asarray(geographic.attrs.get("geo_product_corners", []), np.float64).ravel()
    if stated.size != 8 or not ((np.abs(stated[0::2]) <= 360) & (np.abs(stated[1::2]) <= 90)).all():
        return
    import pyproj

    x, y = pyproj.Proj(grid.projection)(stated[0::2], stated[1::2])
    right, bottom = grid.left + grid.width * grid.spacing_x, grid.top - grid.height * grid.spacing_y
    own = np.array([(grid.left, bottom), (grid.left, grid.top), (right, grid.top), (right, bottom)])
    off = np.abs(np.stack([x, y], axis=1) - own) / (grid.spacing_x, grid.spacing_y)
    if not (off <= 1.0).all():
        raise DataError(
            f"{path}: the corners of the grid are up to {off.max():.3g} pixels off geo_product_corners; offset, size "
            "and projection must agree with them"
        )


def overview_time(attributes: Any, name: str, path: Path) -> datetime:
    """Return a time of the group ``overview``, UTC.

    Raises:
        DataError: it is absent or of another form.
    """
    stated = text(attributes.get(name, ""))
    match = _MOMENT.fullmatch(stated.upper())
    try:
        if match is None or match[2] not in _MONTHS:
            raise ValueError("another form")
        day, year, hour, minute, second = (int(match[group]) for group in (1, 3, 4, 5, 6))
        microsecond = int((match[7] or "0").ljust(6, "0"))
        return datetime(year, _MONTHS.index(match[2]) + 1, day, hour, minute, second, microsecond, tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{path}: overview/{name}={stated!r} is not of the form DD-MON-YYYY;HH:MM:SS") from error
