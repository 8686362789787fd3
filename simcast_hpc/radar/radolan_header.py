"""Header of RADOLAN composites (German Weather Service): product, time, interval, precision and grid.

A composite is an ASCII header that ends with the character ETX, followed by the values row by row. The header starts
with the product, day, hour and minute, five digits of the station, month and year; groups of a name and a number
follow. Source: DWD, "RADOLAN/RADVOR-OP: Beschreibung des Kompositformats".
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from simcast_hpc.config import DataError

from .radar_frame import RadarGrid, Unit

MAX_HEADER_BYTES = 2048
_END = b"\x03"
_START = re.compile(rb"[A-Z][A-Z0-9]\d{6}\d{5}\d{4}BY\s*\d")
_REFLECTIVITY_8BIT = ("RX", "EX", "WX")
_REFLECTIVITY_16BIT = ("WN",)
# Amounts over the interval of the header: radar only, adjusted to gauges, climatological, forecasts and daily sums.
_AMOUNTS = (
    "RY", "RZ", "EY", "EZ", "YW", "RV", "RQ", "RW", "RH", "RB", "RL", "RU", "EH", "EB", "EW", "SF", "SH", "SQ",
)  # fmt: skip
# Pixels (rows, columns) from the lower left corner to the point 9 E 51 N, by the shape of the composite.
_ORIGINS = {(900, 900): (450, 450), (1100, 900): (550, 370), (1200, 1100): (600, 470), (1500, 1400): (800, 600)}
_SPACING = 1000.0
_SPHERE = "+a=6370040 +b=6370040"
_WGS84 = "+a=6378137 +b=6356752.3142451802"
_FIRST_WGS84_VERSION = 5


@dataclass(frozen=True)
class RadolanHeader:
    """Content of a header.

    Attributes:
        product: two characters, such as ``RY``.
        time: observation time, or end of the accumulation interval, UTC.
        minutes: accumulation interval; None for reflectivity.
        exponent: power of 10 by which the values are multiplied.
        shape: rows and columns.
        version: format version; from 5 the projection is on the WGS 84 ellipsoid, before on a sphere.
        data_start: number of bytes of the header.
    """

    product: str
    time: datetime
    minutes: int | None
    exponent: int
    shape: tuple[int, int]
    version: int
    data_start: int

    @property
    def unit(self) -> Unit:
        """Unit of the frame."""
        return "dBZ" if self.minutes is None else "mm/h"

    @property
    def value_bytes(self) -> int:
        """Bytes per pixel."""
        return 1 if self.product in _REFLECTIVITY_8BIT else 2

    @property
    def start(self) -> datetime | None:
        """Start of the accumulation interval."""
        return None if self.minutes is None else self.time - timedelta(minutes=self.minutes)

    def grid(self) -> RadarGrid:
        """Return the polar stereographic grid of 1 km."""
        return _grid(self.shape, self.version >= _FIRST_WGS84_VERSION)


def is_radolan(head: bytes) -> bool:
    """Return whether a file that starts with ``head``, at least 24 bytes, is a RADOLAN composite."""
    return _START.match(head) is not None


def parse_header(content: bytes, path: Path) -> RadolanHeader:
    """Return the header of a composite.

    Args:
        content: the first ``MAX_HEADER_BYTES`` bytes of the file, or all.
        path: named in messages.

    Raises:
        DataError: the header is incomplete, or product, grid, interval or lead time are not supported.
    """
    end = content[:MAX_HEADER_BYTES].find(_END)
    if end < 0 or not is_radolan(content):
        raise DataError(f"{path} contains no complete RADOLAN header; it may be damaged or truncated")
    text = content[:end].decode("ascii", "replace")
    groups = re.sub(r"<[^>]*>", "", text[17:])  # names of radars
    product = text[:2]
    # 1. Product
    if product not in (*_REFLECTIVITY_8BIT, *_REFLECTIVITY_16BIT, *_AMOUNTS):
        raise DataError(
            f"{path} is the RADOLAN product {product}; reflectivity ({', '.join(_REFLECTIVITY_8BIT)}, "
            f"{', '.join(_REFLECTIVITY_16BIT)}) and precipitation ({', '.join(_AMOUNTS)}) are supported"
        )
    # 2. Time; a forecast has a lead time in minutes
    lead = int(_group(r"VV\s*(\d{1,4})", groups) or 0)
    if lead:
        raise DataError(f"{path} is a forecast of {lead} minutes ({product}); an observation has the lead time 0")
    try:
        time = datetime.strptime(text[2:8] + text[13:17], "%d%H%M%m%y").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{path}: {text[2:8]} {text[13:17]} is not day, hour and minute, month and year") from error
    # 3. Grid
    shape = re.search(r"GP\s*(\d{1,5})\s*x\s*(\d{1,5})", groups)
    size = (int(shape[1]), int(shape[2])) if shape else (0, 0)
    if size not in _ORIGINS:
        known = ", ".join(f"{height} x {width}" for height, width in _ORIGINS)
        raise DataError(f"{path} has the grid {size[0]} x {size[1]}; the RADOLAN grids {known} are supported")
    # 4. Interval and precision
    minutes = None
    if product in _AMOUNTS:
        interval = re.search(r"INT\s*(\d{1,6})(?:\s*U\s*(\d))?", groups)
        minutes = int(interval[1]) * (1440 if interval[2] == "1" else 1) if interval else 0
        if not 0 < minutes <= 366 * 1440:
            raise DataError(f"{path}: the accumulation interval (INT) is {minutes} minutes; it must be above 0")
    exponent = _group(r"PR\s*E\s*([+-]?\d{1,2})", groups)
    if exponent is None:
        raise DataError(f"{path}: the header contains no precision (PR)")
    version = int(_group(r"VS\s*(\d{1,3})", groups) or 0)
    return RadolanHeader(product, time, minutes, int(exponent), size, version, end + 1)


def _group(pattern: str, groups: str) -> str | None:
    match = re.search(pattern, groups)
    return match[1] if match else None


@cache
def _grid(shape: tuple[int, int], is_wgs84: bool) -> RadarGrid:
    import pyproj

    projection = f"+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 {_WGS84 if is_wgs84 else _SPHERE} +units=m +no_defs"
    x, y = pyproj.Proj(projection)(9.0, 51.0)
    rows, columns = _ORIGINS[shape]
    left, bottom = x - columns * _SPACING, y - rows * _SPACING
    return RadarGrid(projection, left, bottom + shape[0] * _SPACING, _SPACING, _SPACING, *shape)
