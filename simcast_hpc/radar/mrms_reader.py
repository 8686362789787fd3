"""Reader of NOAA's MRMS precipitation in GRIB2, plain or gzipped, using pygrib, at full resolution.

``PrecipRate`` is a rain rate; the ``QPE`` products are accumulations in mm, returned as mean rates.
"""

import importlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import DataError

from .declared_size import read_bytes
from .grib_sections import split_messages
from .radar_frame import ROUNDING_NOISE, FieldChoice, RadarFrame, RadarGrid

# Discipline and category in the local GRIB table of MRMS, and numbers in that category.
_PRECIPITATION = (209, 6)
_RATE = 1
_HOURS = (1, 3, 6, 12, 24, 48, 72)
# Minutes of accumulation of radar only (2 to 8, 45) and multi-sensor QPE (30 to 36 first, 37 to 43 second pass).
_MINUTES = {first + k: 60 * hours for first in (2, 30, 37) for k, hours in enumerate(_HOURS)} | {45: 15}
# The ellipsoid of MRMS is that of GPS.
_PROJECTION = "+proj=longlat +datum=WGS84 +no_defs"


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the time of every message."""
    return [_time(message, path) for message in _messages(path)]


def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
    """Return the rain rate; values below -0.001 (-1 is missing, -3 no coverage) become NaN.

    Raises:
        DataError: a message is not precipitation of MRMS, or its grid is invalid.
    """
    result = []
    for message in _messages(path):
        discipline, category, number = (
            int(message[key]) for key in ("discipline", "parameterCategory", "parameterNumber")
        )
        minutes = _MINUTES.get(number)
        if (discipline, category) != _PRECIPITATION or (number != _RATE and minutes is None):
            raise DataError(
                f"{path} contains the GRIB product {(discipline, category, number)}; MRMS PrecipRate (209, 6, 1) and "
                f"QPE (209, 6, N), N in {sorted(_MINUTES)}, are supported"
            )
        grid, values = _grid(message, np.ma.filled(message.values, np.nan).astype(np.float32), path)
        values[values < -ROUNDING_NOISE] = np.nan
        metadata: dict[str, Any] = {"format": "MRMS GRIB2", "quantity": "PrecipRate"}
        if minutes is not None:
            values = values * np.float32(60.0 / minutes)
            metadata |= {"quantity": "QPE", "accumulation_minutes": float(minutes)}
        time = _time(message, path)
        start = None if minutes is None else time - timedelta(minutes=minutes)
        result.append(RadarFrame(values, "mm/h", time, grid, path, metadata, start))
    return result


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
