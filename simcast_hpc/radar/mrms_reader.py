"""Reader of NOAA's MRMS precipitation rate in GRIB2, plain or gzipped, using pygrib, at full resolution."""

import gzip
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import DataError

from .radar_frame import ROUNDING_NOISE, FieldChoice, RadarFrame, RadarGrid

# Discipline, category and number in the local GRIB table of MRMS.
_PRECIP_RATE = (209, 6, 1)
# The ellipsoid of MRMS is that of GPS.
_PROJECTION = "+proj=longlat +datum=WGS84 +no_defs"


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the time of every message."""
    with _messages(path) as messages:
        return [_time(message) for message in messages]


def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
    """Return the rain rate; values below -0.001 mm/h (no coverage, missing) become NaN."""
    result = []
    with _messages(path) as messages:
        for message in messages:
            product = tuple(message[key] for key in ("discipline", "parameterCategory", "parameterNumber"))
            if product != _PRECIP_RATE or message["gridType"] != "regular_ll":
                raise DataError(
                    f"{path} contains the GRIB product {product} on a grid {message['gridType']!r}; MRMS PrecipRate "
                    f"{_PRECIP_RATE} on 'regular_ll' is supported"
                )
            values = np.ma.filled(message.values, -3.0).astype(np.float32)
            values[values < -ROUNDING_NOISE] = np.nan
            grid, values = _grid(message, values)
            metadata = {"format": "MRMS GRIB2", "quantity": "PrecipRate"}
            result.append(RadarFrame(values, "mm/h", _time(message), grid, path, metadata))
    return result


@contextmanager
def _messages(path: Path) -> Iterator[list[Any]]:
    pygrib: Any = importlib.import_module("pygrib")
    with path.open("rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
    if is_gzipped:
        with gzip.open(path) as file:
            yield [pygrib.fromstring(file.read())]
        return
    file = pygrib.open(str(path))
    try:
        messages = list(file)
        if not messages:
            raise DataError(f"{path} contains no GRIB message; it is truncated")
        yield messages
    finally:
        file.close()


def _grid(message: Any, values: np.ndarray) -> tuple[RadarGrid, np.ndarray]:
    """Return the grid, and the field with north up and west left."""
    first, last = message["latitudeOfFirstGridPointInDegrees"], message["latitudeOfLastGridPointInDegrees"]
    west, east = message["longitudeOfFirstGridPointInDegrees"], message["longitudeOfLastGridPointInDegrees"]
    if first < last:
        values, first, last = values[::-1], last, first
    if west > east:
        values, west, east = values[:, ::-1], east, west
    height, width = values.shape
    # The corners are truncated to millionths of a degree; the increments are exact.
    dx, dy = message["iDirectionIncrementInDegrees"], message["jDirectionIncrementInDegrees"]
    west = west - 360.0 if west > 180.0 else west
    grid = RadarGrid(_PROJECTION, west - dx / 2, first + dy / 2, dx, dy, height, width, "degree")
    return grid, np.ascontiguousarray(values)


def _time(message: Any) -> datetime:
    date, time = int(message["dataDate"]), int(message["dataTime"])
    return datetime.strptime(f"{date:08d}{time:04d}{int(message['second']):02d}", "%Y%m%d%H%M%S").replace(tzinfo=UTC)
