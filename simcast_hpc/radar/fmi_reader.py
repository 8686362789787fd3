"""Reader of FMI's 8-bit PGM composites (Finnish Meteorological Institute), plain or gzipped."""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from simcast_hpc.config import DataError

from .declared_size import check_pixels, read_bytes
from .odim_grid import grid_of_pysteps
from .radar_frame import FieldChoice, RadarFrame, RadarGrid

_NO_ECHO, _MISSING = 0, 255
_HEADER_BYTES = 65536
_DIGITS = re.compile(rb"\d{1,9}")
# The file contains no false origin and no radius: those of pysteps.
_STEREOGRAPHIC = (
    "+proj=stere +lon_0={centrallongitude}E +lat_0={centrallatitude}N +lat_ts={truelatitude} +a=6371288 "
    "+x_0=380886.310 +y_0=3395677.920 +no_defs"
)


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the observation time of the header."""
    return [_time(_header(read_bytes(path), path)[0], path)]


def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
    """Return the reflectivity: dBZ = pixel / 2 - 32, pixel 0 is no echo, 255 missing.

    Raises:
        DataError: header or size are invalid, or the field is not a reflectivity.
    """
    content = read_bytes(path)
    header, (width, height, maximum), start = _header(content, path)
    parameter = header.get("param", "")
    if "reflectivity" not in parameter.lower():
        raise DataError(f"{path}: param={parameter!r} in the header is not a reflectivity")
    if maximum != _MISSING:
        raise DataError(f"{path}: the highest pixel value is {maximum}; {_MISSING} (8 bits) is valid")
    check_pixels(height, width, path)
    stored = len(content.rstrip(b"\r\n")) - start, len(content) - start
    if not stored[0] <= width * height <= stored[1]:
        raise DataError(f"{path} declares {height} x {width} pixels and contains {stored[1]}; both must be equal")
    pixels = np.frombuffer(content, np.uint8, width * height, start).reshape(height, width)
    values = pixels * np.float32(0.5) - np.float32(32.0)
    values[pixels == _NO_ECHO] = -np.inf
    values[pixels == _MISSING] = np.nan
    grid = _grid(header, values, path)
    return [RadarFrame(values, "dBZ", _time(header, path), grid, path, {"format": "FMI PGM", "quantity": parameter})]


def _header(content: bytes, path: Path) -> tuple[dict[str, str], tuple[int, int, int], int]:
    """Return the comments by their first word, width, height and highest value, and the position of the pixels.

    Raises:
        DataError: the header is not of a binary PGM file.
    """
    fields: dict[str, str] = {}
    numbers: list[int] = []
    position = 2
    while len(numbers) < 3 and position < min(len(content), _HEADER_BYTES):
        if content[position : position + 1] == b"#":
            end = content.find(b"\n", position)
            end = len(content) if end < 0 else end
            words = content[position + 1 : end].decode("ascii", "replace").split(maxsplit=1)
            if len(words) == 2:
                fields[words[0]] = words[1].strip()
            position = end + 1
        elif match := _DIGITS.match(content, position):
            numbers.append(int(match[0]))
            position = match.end() + 1  # one white space follows the last number
        elif content[position : position + 1].isspace():
            position += 1
        else:
            break
    if content[:2] != b"P5" or len(numbers) != 3:
        raise DataError(f"{path}: the header contains the sizes {numbers}; it must contain width, height and maximum")
    return fields, (numbers[0], numbers[1], numbers[2]), position


def _time(header: dict[str, str], path: Path) -> datetime:
    stated = header.get("obstime", "")
    try:
        if not re.fullmatch(r"\d{12}", stated):
            raise ValueError("invalid number of digits")
        return datetime.strptime(stated, "%Y%m%d%H%M").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{path}: obstime={stated!r} in the header is not of the form YYYYmmddHHMM") from error


def _grid(header: dict[str, str], values: np.ndarray, path: Path) -> RadarGrid:
    import pyproj

    if header.get("type") != "stereographic":
        raise DataError(f"{path}: the projection in the header is {header.get('type')!r}; 'stereographic' is supported")
    try:
        numbers = {name: float(header[name]) for name in ("centrallongitude", "centrallatitude", "truelatitude")}
        pixel = {axis: float(header[f"metersperpixel_{axis}"]) for axis in "xy"}
        corners = [[float(word) for word in header[name].split()] for name in ("bottomleft", "topright")]
        (west, south), (east, north) = corners
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: the projection in the header is incomplete or invalid: {error!r}") from error
    projection = _STEREOGRAPHIC.format(**{name: f"{number:.10g}" for name, number in numbers.items()})
    (left, right), (bottom, top) = pyproj.Proj(projection)([west, east], [south, north])
    edges = {"x1": left, "x2": right, "y1": bottom, "y2": top}
    if not np.isfinite(list(edges.values())).all() or left >= right or bottom >= top:
        raise DataError(f"{path}: the corners in the header give the edges {edges}; they must be finite and in order")
    metadata = {"projection": projection, "xpixelsize": pixel["x"], "ypixelsize": pixel["y"], **edges}
    return grid_of_pysteps(path, values, metadata)
