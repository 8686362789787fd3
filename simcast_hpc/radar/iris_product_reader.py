"""Reader of Vaisala IRIS (Sigmet) Cartesian products of reflectivity, such as PPI and CAPPI, plain, in gzip or bzip2.

The header of 640 bytes contains the size and scale of pixels and the place of the radar; the projection is azimuthal
equidistant around the radar. Rows are stored from south to north. Code 0 is no echo, the largest code not scanned.
Source: IRIS Programmer's Manual, product_hdr, product_configuration and product_end.
"""

import bz2
import gzip
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import DataError

from .declared_size import MAX_BYTES, check_pixels
from .radar_frame import FieldChoice, RadarFrame, RadarGrid

_HEADER_BYTES = 640
_PRODUCT_HEADER, _RAW = 27, 15
# Products on a map; others are sections, time series or heights.
_MAPS = {1: "PPI", 3: "CAPPI", 32: "SRI"}
_ONE_BYTE, _TWO_BYTES = (1, 2), (8, 9)  # data types of total and filtered reflectivity
_IS_UTC, _MILLISECONDS = 0x0800, 0x03FF
_DEGREES_PER_UNIT = 360.0 / 2**32


@dataclass(frozen=True)
class _Header:
    time: datetime
    grid: RadarGrid
    value_bytes: int
    name: str


def is_iris(head: bytes) -> bool:
    """Return whether a file starts with an IRIS product header."""
    return len(head) >= 26 and struct.unpack_from("<h", head)[0] == _PRODUCT_HEADER and head[12:14] == b"\x1a\x00"


def is_raw(head: bytes) -> bool:
    """Return whether an IRIS file is a raw polar volume, which xradar reads."""
    return struct.unpack_from("<H", head, 24)[0] == _RAW


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the start of the sweep."""
    return [_header(_content(path, _HEADER_BYTES), path).time]


def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
    """Return the reflectivity of the product.

    Raises:
        DataError: product, projection or size are not supported, or the file is truncated.
    """
    content = _content(path, MAX_BYTES)
    header = _header(content, path)
    height, width = header.grid.shape
    size = height * width * header.value_bytes
    if len(content) < _HEADER_BYTES + size:
        raise DataError(f"{path} contains {len(content)} bytes; its header declares {_HEADER_BYTES + size}")
    dtype = np.uint8 if header.value_bytes == 1 else np.dtype("<u2")
    codes = np.frombuffer(content, dtype, height * width, _HEADER_BYTES).reshape(height, width)[::-1]
    values = codes / np.float32(2.0) - 32 if header.value_bytes == 1 else (codes.astype(np.float32) - 32768) / 100
    values = values.astype(np.float32)
    values[codes == 0] = -np.inf
    values[codes == np.iinfo(codes.dtype).max] = np.nan
    metadata: dict[str, Any] = {"format": "IRIS product", "quantity": "DBZH", "product": header.name}
    return [RadarFrame(values, "dBZ", header.time, header.grid, path, metadata)]


def _content(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        start = file.read(3)
    opens: Any = gzip.open if start.startswith(b"\x1f\x8b") else bz2.open if start == b"BZh" else open
    with opens(path, "rb") as file:
        return file.read(size)


def _header(content: bytes, path: Path) -> _Header:
    if len(content) < _HEADER_BYTES or not is_iris(content):
        raise DataError(f"{path} contains no complete IRIS product header; it may be damaged or truncated")
    # 1. Product and data
    (product,) = struct.unpack_from("<H", content, 24)
    if product not in _MAPS:
        known = ", ".join(f"{name} ({number})" for number, name in _MAPS.items())
        raise DataError(f"{path} is an IRIS product of type {product}; {known} are supported")
    x_scale, y_scale, _, width, height, depth, x_radar, y_radar = struct.unpack_from("<8i", content, 100)
    (data_type,) = struct.unpack_from("<H", content, 142)
    if data_type not in (*_ONE_BYTE, *_TWO_BYTES):
        raise DataError(f"{path} contains IRIS data of type {data_type}; reflectivity (1, 2, 8, 9) is supported")
    check_pixels(height, width, path)
    if depth != 1 or x_scale <= 0 or y_scale <= 0:
        raise DataError(f"{path} has {depth} levels of pixels of {x_scale} x {y_scale} cm; one level is supported")
    if content[158] != 0:
        raise DataError(f"{path} has the IRIS projection {content[158]}; azimuthal equidistant (0) is supported")
    # 2. Time
    seconds, fraction, year, month, day = struct.unpack_from("<iHHHH", content, 44)
    (offset,) = struct.unpack_from("<h", content, 438)
    if not fraction & _IS_UTC and offset:
        raise DataError(f"{path} has local times, {offset} minutes from UTC; times in UTC are supported")
    try:
        time = datetime(year, month, day, tzinfo=UTC) + timedelta(seconds=seconds)
    except ValueError as error:
        raise DataError(f"{path}: the time of the sweep {year}-{month}-{day} {seconds} s is invalid") from error
    # 3. Grid from the place of the radar, in thousandths of a pixel
    latitude, longitude = (
        (degrees + 180.0) % 360.0 - 180.0
        for degrees in (number * _DEGREES_PER_UNIT for number in struct.unpack_from("<2I", content, 440))
    )
    if abs(latitude) > 90.0:
        raise DataError(f"{path}: the latitude of the radar is {latitude:g}; it must be from -90 to 90")
    dx, dy = x_scale / 100.0, y_scale / 100.0
    grid = RadarGrid(
        f"+proj=aeqd +lat_0={latitude:.8g} +lon_0={longitude:.8g} +ellps=WGS84 +units=m +no_defs",
        -x_radar / 1000.0 * dx, (height - y_radar / 1000.0) * dy, dx, dy, height, width,
    )  # fmt: skip
    name = content[74:86].decode("ascii", "replace").strip(" \x00")
    return _Header(time, grid, 1 if data_type in _ONE_BYTE else 2, name)
