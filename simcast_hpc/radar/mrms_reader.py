"""Reader of NOAA's MRMS precipitation and reflectivity in GRIB2, plain or gzipped, using pygrib, at full resolution.

``PrecipRate`` is a rain rate; the ``QPE`` products are accumulations in mm, returned as mean rates. Composites of
reflectivity and those near the ground are in dBZ.
"""

import importlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import DataError

from .declared_size import read_bytes
from .grib_sections import split_messages
from .radar_frame import ROUNDING_NOISE, FieldChoice, QuantityError, RadarFrame, RadarGrid, Unit

# Discipline and category in the local GRIB table of MRMS, and numbers in that category.
_PRECIPITATION = (209, 6)
_RATE = 1
_HOURS = (1, 3, 6, 12, 24, 48, 72)
# Minutes of accumulation of radar only (2 to 8, 45) and multi-sensor QPE (30 to 36 first, 37 to 43 second pass).
_MINUTES = {first + k: 60 * hours for first in (2, 30, 37) for k, hours in enumerate(_HOURS)} | {45: 15}
# Two-dimensional reflectivity by category and number. Products of one height, of an isotherm, of a layer and maxima
# over an hour are other quantities.
_REFLECTIVITY = {
    (3, 57): "ReflectivityAtLowestAltitude", (3, 58): "MergedReflectivityAtLowestAltitude", (8, 8): "SeamlessHSR",
    (10, 0): "MergedReflectivityQCComposite", (10, 2): "LowLevelCompositeReflectivity",
    (11, 0): "MergedBaseReflectivityQC", (11, 1): "MergedReflectivityComposite",
    (11, 2): "MergedReflectivityQComposite", (11, 3): "MergedBaseReflectivity",
}  # fmt: skip
_NO_ECHO, _NO_COVERAGE = -99.0, -999.0  # of reflectivity; packing may round them
# The ellipsoid of MRMS is that of GPS.
_PROJECTION = "+proj=longlat +datum=WGS84 +no_defs"


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the time of every message."""
    return [_time(message, path) for message in _messages(path)]


def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
    """Return the field of every message.

    Of precipitation, values below -0.001 (-1 is missing, -3 no coverage) are NaN. Of reflectivity, -99 is no echo,
    returned as minus infinity, and -999 no coverage.

    Raises:
        QuantityError: a message is neither precipitation nor reflectivity of MRMS.
        DataError: its grid is invalid, or it is a forecast.
    """
    result = []
    for message in _messages(path):
        quantity, minutes = _quantity(message, path)
        unit: Unit = "dBZ" if quantity in _REFLECTIVITY.values() else "mm/h"
        grid, values = _grid(message, np.ma.filled(message.values, np.nan).astype(np.float32), path)
        metadata: dict[str, Any] = {"format": "MRMS GRIB2", "quantity": quantity}
        if unit == "dBZ":
            values[np.abs(values - _NO_ECHO) < 0.5] = -np.inf
            values[np.abs(values - _NO_COVERAGE) < 0.5] = np.nan
        else:
            values[values < -ROUNDING_NOISE] = np.nan
        if minutes is not None:
            values = values * np.float32(60.0 / minutes)
            metadata["accumulation_minutes"] = float(minutes)
        time = _time(message, path)
        start = None if minutes is None else time - timedelta(minutes=minutes)
        result.append(RadarFrame(values, unit, time, grid, path, metadata, start))
    return result


def _quantity(message: Any, path: Path) -> tuple[str, int | None]:
    """Return the quantity of a message, and the minutes of an accumulation.

    Raises:
        QuantityError: it is none that can be read.
    """
    discipline, category, number = (int(message[key]) for key in ("discipline", "parameterCategory", "parameterNumber"))
    if (discipline, category) == _PRECIPITATION:
        if number == _RATE:
            return "PrecipRate", None
        if number in _MINUTES:
            return "QPE", _MINUTES[number]
    if discipline == _PRECIPITATION[0] and (category, number) in _REFLECTIVITY:
        return _REFLECTIVITY[category, number], None
    raise QuantityError(
        f"{path} contains the GRIB product {(discipline, category, number)}; MRMS PrecipRate (209, 6, 1), QPE "
        f"(209, 6, N), N in {sorted(_MINUTES)}, and reflectivity (209, C, N), (C, N) in {sorted(_REFLECTIVITY)}, are "
        "supported"
    )


def _messages(path: Path) -> list[Any]:
    pygrib: Any = importlib.import_module("pygrib")
    return [pygrib.fromstring(message) for message in split_messages(read_bytes(path), path)]


def _grid(message: Any, values: np.ndarray, path: Path) -> tuple[RadarGrid, np.ndarray]:
    """Return the grid, and the field with north up and west left.

    Raises:
        DataError: the grid is not of latitude and longitude, or its corners contradict its increments.
    """
    if message["gridType"] != "regular_ll":
        raise DataError(f"{path} is on a grid {message['gridType']!r}; 'regular_ll' is supported")
    # 1. Directions by the scanning mode: a grid across 180 or 360 degrees has its first longitude above its last
    if message["jPointsAreConsecutive"] or message["alternativeRowScanning"]:
        raise DataError(f"{path} has the scanning mode {message['scanningMode']}; rows of one direction are supported")
    first, last = message["latitudeOfFirstGridPointInDegrees"], message["latitudeOfLastGridPointInDegrees"]
    west, east = message["longitudeOfFirstGridPointInDegrees"], message["longitudeOfLastGridPointInDegrees"]
    if message["jScansPositively"]:
        values, first, last = values[::-1], last, first
    if message["iScansNegatively"]:
        values, west, east = values[:, ::-1], east, west
    # 2. Spacing. The corners are truncated to millionths of a degree; the increments are exact.
    height, width = values.shape
    dx, dy = message["iDirectionIncrementInDegrees"], message["jDirectionIncrementInDegrees"]
    spans = ((east - west) % 360.0, first - last)
    if min(height, width) < 2 or any(
        not increment > 0 or abs(span - (pixels - 1) * increment) > 0.5 * increment
        for span, pixels, increment in zip(spans, (width, height), (dx, dy), strict=True)
    ):
        raise DataError(
            f"{path}: the corners span {spans[0]:g} x {spans[1]:g} degrees, which contradicts {width} x {height} "
            f"pixels of {dx:g} x {dy:g}"
        )
    west = west - 360.0 if west >= 180.0 else west
    grid = RadarGrid(_PROJECTION, west - dx / 2, first + dy / 2, dx, dy, height, width, "degree")
    return grid, np.ascontiguousarray(values)


def _time(message: Any, path: Path) -> datetime:
    """Return the reference time, which is the end of an accumulation.

    Raises:
        DataError: the message is a forecast.
    """
    if int(message["forecastTime"]) != 0:
        raise DataError(f"{path} is a forecast by {message['forecastTime']} units of time; an analysis is valid")
    parts = [int(message[key]) for key in ("year", "month", "day", "hour", "minute", "second")]
    try:
        return datetime(*parts, tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{path}: the reference time {parts} is invalid: {error}") from error
