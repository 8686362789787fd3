"""Reader of GeoTIFF and cloud-optimized GeoTIFF (rasterio): one frame per band.

Time, unit, interval and packing are those of the tags of band or file, including those of ODIM that GDAL writes and
those of FMI; the options of the importer have priority. A file whose tags contain no time has it in its name, see
:mod:`path_times`.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError, DataError

from .cf_mapping import in_meters
from .declared_size import check_array, check_pixels
from .geotiff_tags import all_tags, band_tags, description, odim_tag
from .odim_attributes import equals_sentinel, time_of
from .path_times import TIME_OPTIONS, parse_time, time_from_path
from .projection_text import check_projection
from .radar_frame import FieldChoice, RadarFrame, RadarGrid
from .stated_unit import UNIT_OPTIONS, check_unit_option, number_option, option_minutes, to_unit, unit_of_quantity

logger = logging.getLogger(__name__)
OPTIONS = (*TIME_OPTIONS, *UNIT_OPTIONS, "band", "crs", "nodata", "undetect", "scale", "offset")
_TIME_TAGS = ("valid_time", "time", "timestamp", "datetime", "observation_time", "end_time", "time_utc", "date_time")
_UNIT_TAGS = ("units", "unit", "unittype")
_PICTURE = {"red", "green", "blue"}
_ENVIRONMENT: dict[str, Any] = {
    # Only the file itself is read: no sidecars, no overviews or masks in other files, no network.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO", "CPL_DEBUG": "OFF", "GDAL_NUM_THREADS": "1",
    "GDAL_CACHEMAX": 64,
}  # fmt: skip
_MAX_BANDS = 10_000
_BLOCK_ROWS = 128


def times(path: Path, choice: FieldChoice) -> list[datetime]:
    """Return the time of each band."""
    with _opened(path) as file:
        return [_time(file, band, path, choice)[1] for band in _bands(file, path, choice)]


def frames(path: Path, choice: FieldChoice) -> list[RadarFrame]:
    """Return the chosen bands.

    Raises:
        DataError: the file is a picture, has no time, unit or regular grid, or is damaged.
        ConfigError: an option is invalid.
    """
    with _opened(path) as file:
        grid, flips = _grid(file, path, choice)
        result = []
        for band in _bands(file, path, choice):
            start, time = _time(file, band, path, choice)
            if not choice.includes(time):
                continue
            values, unit, interval, packing = _values(file, band, path, choice, start, time)
            values = np.ascontiguousarray(values[:: flips[0], :: flips[1]])
            about = description(all_tags(file, band, path), file.descriptions[band - 1]).strip()
            metadata: dict[str, Any] = {"format": "GeoTIFF", "quantity": about or unit, **packing}
            begin = None if interval is None else time - interval
            result.append(RadarFrame(values, unit, time, grid, path, metadata, begin))
        return result


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with rasterio.Env(**_ENVIRONMENT), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path.absolute(), driver="GTiff", sharing=False) as file:
                check_pixels(file.height, file.width, path)
                if file.count > _MAX_BANDS:
                    raise DataError(f"{path} has {file.count} bands; at most {_MAX_BANDS} are valid")
                for height, width in file.block_shapes:
                    check_array([1, height, width], 8, f"{path}, in a block,")
                yield file
        except RasterioError as error:
            raise DataError(f"{path} cannot be read as GeoTIFF: {error}; it may be damaged or truncated") from error


def _bands(file: Any, path: Path, choice: FieldChoice) -> list[int]:
    colors = {color.name for color in file.colorinterp}
    if colors >= _PICTURE:
        raise DataError(f"{path} is a picture with the bands red, green and blue; a field of measurements is valid")
    text = choice.option("band")
    if not text:
        bands = [band for band in range(1, file.count + 1) if file.colorinterp[band - 1].name != "alpha"]
    elif text.isdecimal() and 1 <= int(text) <= file.count:
        bands = [int(text)]
    else:
        raise ConfigError(f"band={text!r} is invalid; {path} has the bands 1 to {file.count}")
    if any(file.colorinterp[band - 1].name == "palette" for band in bands) and not choice.option("unit"):
        raise DataError(
            f"{path} has a color table, so its values may be colors; unit=... in the options of the importer states "
            "that they are measurements"
        )
    return bands


def _time(file: Any, band: int, path: Path, choice: FieldChoice) -> tuple[datetime | None, datetime]:
    """Return the start of the accumulation interval, if the file contains it, and the time.

    Raises:
        DataError: there is none, or bands without tags of their own share the time of the file.
    """
    if choice.option("time"):
        time = time_from_path(path, choice)
        _reject_shared(file, path, choice)
        if time is not None:
            return None, time
    own, tags = band_tags(file, band, path), all_tags(file, band, path)
    for level in (own, tags):
        for name in _TIME_TAGS:
            if time := parse_time(level.get(name, "")):
                if level is tags and name not in own:
                    _reject_shared(file, path, choice)
                return parse_time(level.get("start_time", "")), time
        if time := _netcdf_time(level, tags):
            return None, time
    _reject_shared(file, path, choice)
    if odim_tag(tags, "date"):
        attributes = {name: odim_tag(tags, name) for name in ("startdate", "starttime", "enddate", "endtime")}
        if odim_tag(tags, "quantity").upper() == "ACRR" and all(attributes.values()):
            return time_of(attributes, "startdate", "starttime", path), time_of(attributes, "enddate", "endtime", path)
        nominal = {name: odim_tag(tags, name) for name in ("date", "time")}
        return None, time_of(nominal, "date", "time", path)
    if time := time_from_path(path, choice):
        logger.debug("%s has no tag of time; %s of its name is used", path, time)
        return None, time
    raise DataError(
        f"{path} contains no time, in none of the tags {', '.join(_TIME_TAGS)} and not in its name; give a pattern of "
        'its name: --importer "geotiff time=%Y%m%d%H%M"'
    )


def _reject_shared(file: Any, path: Path, choice: FieldChoice) -> None:
    """Check that one time for the whole file is that of one band.

    Raises:
        DataError: several bands are read.
    """
    if len(bands := _bands(file, path, choice)) > 1:
        raise DataError(
            f"{path} has {len(bands)} bands and one time; each band must have a tag of time, or the option band=N of "
            "the importer selects one"
        )


def _netcdf_time(level: Mapping[str, str], tags: Mapping[str, str]) -> datetime | None:
    """Return the time of a band that GDAL converted from netCDF, from ``NETCDF_DIM_time`` and ``time#units``."""
    match = re.fullmatch(r"(seconds|minutes|hours|days) since (.+)", tags.get("time#units", "").strip())
    epoch = parse_time(match[2].replace(" 0:0:0", " 00:00:00")) if match else None
    try:
        return epoch + timedelta(**{match[1]: float(level["netcdf_dim_time"])}) if match and epoch else None
    except (KeyError, ValueError, OverflowError):
        return None


def _values(
    file: Any, band: int, path: Path, choice: FieldChoice, start: datetime | None, time: datetime
) -> tuple[np.ndarray, Any, timedelta | None, dict[str, Any]]:
    """Return the values of a band in the unit of a frame, the unit, the accumulation interval, and the packing."""
    tags = all_tags(file, band, path)
    # 1. Unit and interval
    stated = check_unit_option(choice) or file.units[band - 1] or next((tags[n] for n in _UNIT_TAGS if n in tags), "")
    units = unit_of_quantity(stated) or stated or unit_of_quantity(odim_tag(tags, "quantity"))
    minutes = option_minutes(choice)
    if minutes is None and start is not None:
        minutes = (time - start) / timedelta(minutes=1)
    if not units:
        raise DataError(
            f'{path} contains no unit; give it: --importer "geotiff unit=mm/h" (or dBZ, or mm with interval=5)'
        )
    # 2. Stored values, and the codes of missing and no echo
    dtype = np.dtype(file.dtypes[band - 1])
    if dtype.kind not in "iuf":
        raise DataError(f"{path}: band {band} is of type {dtype}; integers and floating-point numbers are valid")
    stored = file.read(band)
    missing = (file.nodatavals[band - 1], _number(choice.option("nodata") or odim_tag(tags, "nodata"), path))
    no_echo = _number(choice.option("undetect") or odim_tag(tags, "undetect"), path)
    # 3. Physical values; an option has priority over a scale of GDAL, and this over a tag of ODIM
    scale = _scaling(choice, "scale", float(file.scales[band - 1]), 1.0, odim_tag(tags, "gain"), path)
    offset = _scaling(choice, "offset", float(file.offsets[band - 1]), 0.0, odim_tag(tags, "offset"), path)
    if not np.isfinite([scale, offset]).all() or scale == 0:
        raise DataError(f"{path}: scale is {scale:g} and offset {offset:g}; both must be finite, scale not 0")
    is_dbz = units.strip().lower().startswith("dbz")
    about = f"{description(tags, file.descriptions[band - 1])} {'vil' if choice.option('unit') else ''}"
    _, unit, interval = to_unit(np.zeros(0), units, minutes, about, path)
    result = np.empty(stored.shape, np.float32)
    for top in range(0, len(stored), _BLOCK_ROWS):  # float64 copies of a composite of 250 m need hundreds of MB
        block = stored[top : top + _BLOCK_ROWS]
        values = block.astype(np.float64) * scale + offset
        for sentinel in missing:
            values[equals_sentinel(block, sentinel)] = np.nan
        values[equals_sentinel(block, no_echo)] = -np.inf if is_dbz else 0.0
        result[top : top + _BLOCK_ROWS] = to_unit(values, units, minutes, about, path)[0]
    return result, unit, interval, {"stored_type": str(dtype), "gain": scale, "offset": offset}


def _scaling(choice: FieldChoice, option: str, stated: float, neutral: float, odim: str, path: Path) -> float:
    own = _number(odim, path) if stated == neutral else None
    return number_option(choice, option, stated if own is None else own)


def _number(text: str, path: Path) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{path}: {text!r} is not a number (nodata, undetect, gain or offset)") from error


def _grid(file: Any, path: Path, choice: FieldChoice) -> tuple[RadarGrid, tuple[int, int]]:
    """Return the grid, and the steps (1 or -1) by which rows and columns are taken to be north up and west left.

    Raises:
        DataError: there is no projection or no transform, or the grid is rotated.
    """
    import pyproj
    from pyproj.exceptions import CRSError

    transform, text = file.transform, choice.option("crs")
    if not text and file.crs is None:
        raise DataError(f'{path} contains no projection; give it: --importer "geotiff crs=EPSG:3035"')
    projection = check_projection(text or file.crs.to_wkt(), path, field="the projection")
    try:
        crs = pyproj.CRS.from_user_input(projection)
    except CRSError as error:
        raise (ConfigError if text else DataError)(f"{path}: {projection[:80]!r} is not a projection") from error
    numbers = np.array([transform.a, transform.b, transform.c, transform.d, transform.e, transform.f])
    if transform.is_identity or not np.isfinite(numbers).all() or transform.a == 0 or transform.e == 0:
        raise DataError(f"{path} contains no transform from pixels to map coordinates; a forecast needs the position")
    if transform.b != 0 or transform.d != 0:
        raise DataError(f"{path} has a rotated grid; rows must be from west to east (gdalwarp makes them so)")
    height, width = file.height, file.width
    left, right = sorted((transform.c, transform.c + transform.a * width))
    top = max(transform.f, transform.f + transform.e * height)
    unit, scale = "degree", 1.0
    if crs.is_projected:
        unit, scale = "m", float(crs.axis_info[0].unit_conversion_factor)
        projection = in_meters(crs, crs.to_wkt())
    elif not crs.is_geographic:
        raise DataError(f"{path}: the projection is {crs.type_name}; a projected or geographic one is valid")
    else:
        projection = crs.to_wkt()
        turns = 360.0 * np.floor((left + abs(transform.a) / 2 + 180.0) / 360.0)
        left, right = left - turns, right - turns
    grid = RadarGrid(
        projection, left * scale, top * scale, abs(transform.a) * scale, abs(transform.e) * scale, height, width, unit
    )  # fmt: skip
    return grid, (1 if transform.e < 0 else -1, 1 if transform.a > 0 else -1)
