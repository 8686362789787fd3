"""Composite of the volumes of several radars: ``--importer composite:maximum`` or ``composite:nearest``.

A folder is read as a file: it contains volumes of all radars, also in folders below, and those whose times differ by at
most a tolerance are one frame. Every volume is read on its own grid of 1 km, and each pixel of the common grid takes
the value of the nearest pixel of each radar. ``maximum`` is the largest value of all radars that see the pixel, and
``nearest`` that of the nearest radar that does. A pixel that no radar sees is missing. No correction is applied.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simcast_hpc.config import ConfigError, DataError

from .declared_size import check_pixels
from .path_times import TIME_OPTIONS, time_from_path
from .projection_text import check_projection
from .radar_frame import FieldChoice, RadarFrame, RadarGrid
from .stated_unit import number_option

OPTIONS = (*TIME_OPTIONS, "pattern", "tolerance", "spacing", "projection", "center", "extent", "least")
_MAX_FILES = 20_000
_CACHED_FRAMES = 64
_UNFINISHED = (".partial", ".part", ".tmp", ".filepart")


class _Stamp(NamedTuple):
    """State of a file, by which a change is recognized."""

    path: Path
    size: int
    changed_ns: int


_times: dict[_Stamp, datetime] = {}
_frames: dict[tuple[_Stamp, FieldChoice], RadarFrame] = {}


def times(path: Path, choice: FieldChoice, _method: str) -> list[datetime]:
    """Return the times of the composites: of each group of volumes, the first time."""
    return [time for time, _ in _groups(path, choice)]


def frames(path: Path, choice: FieldChoice, method: str) -> list[RadarFrame]:
    """Return the chosen composites.

    Raises:
        DataError: a volume cannot be read, or the radars are too far from each other for one grid.
        ConfigError: an option is invalid.
    """
    groups = _groups(path, choice)
    grid = _stated_grid(choice)
    if grid is None:
        grid = _grid_around([_frame(stamp, choice).grid for _, group in groups[:1] for stamp in group], choice, path)
    result = []
    for time, group in groups:
        if choice.includes(time):
            result.append(_composite([_frame(stamp, choice) for stamp in group], grid, time, method, path))
    return result


def _groups(folder: Path, choice: FieldChoice) -> list[tuple[datetime, list[_Stamp]]]:
    """Return the volumes of each composite: those whose times are within the tolerance of the first.

    Raises:
        DataError: the folder contains no volume, or too many; a group has fewer volumes than the option ``least``.
    """
    tolerance = timedelta(minutes=number_option(choice, "tolerance", 2.0, low=0.0, high=60.0))
    least = int(number_option(choice, "least", 1, low=1, high=1000))
    known = sorted(((_time(stamp, choice), stamp) for stamp in _files(folder, choice)), key=lambda one: one[0])
    groups: list[tuple[datetime, list[_Stamp]]] = []
    for time, stamp in known:
        if groups and time - groups[-1][0] <= tolerance:
            groups[-1][1].append(stamp)
        else:
            groups.append((time, [stamp]))
    complete = [group for group in groups if len(group[1]) >= least]
    if not complete:
        raise DataError(f"{folder} contains no composite: {len(known)} volumes, at least {least} within {tolerance}")
    return complete


def _files(folder: Path, choice: FieldChoice) -> list[_Stamp]:
    pattern, stamps = choice.option("pattern", "*"), []
    for path in sorted(folder.rglob("*") if folder.is_dir() else [folder]):
        hidden = path.name.startswith(".") or path.suffix.lower() in _UNFINISHED
        if path.is_file() and not hidden and fnmatch(path.name, pattern):
            status = path.stat()
            stamps.append(_Stamp(path, status.st_size, status.st_mtime_ns))
    if not 0 < len(stamps) <= _MAX_FILES:
        raise DataError(f"{folder} contains {len(stamps)} files that match {pattern!r}; 1 to {_MAX_FILES} are valid")
    return stamps


def _time(stamp: _Stamp, choice: FieldChoice) -> datetime:
    if choice.option("time"):
        time = time_from_path(stamp.path, choice)
        assert time is not None
        return time
    if stamp not in _times:
        from .read_frame import frame_times_in_process

        (_times[stamp],) = frame_times_in_process(stamp.path, FieldChoice("dBZ", choice.dataset))
    return _times[stamp]


def _frame(stamp: _Stamp, choice: FieldChoice) -> RadarFrame:
    """Return the frame of a volume; the last ones are kept, as a request may be repeated for other times."""
    own = FieldChoice("dBZ", choice.dataset)
    if (stamp, own) not in _frames:
        from .read_frame import read_frames_in_process

        (frame,) = read_frames_in_process(stamp.path, own)
        while len(_frames) >= _CACHED_FRAMES:
            _frames.pop(next(iter(_frames)))
        _frames[stamp, own] = frame
    return _frames[stamp, own]


def _stated_grid(choice: FieldChoice) -> RadarGrid | None:
    """Return the grid of the options ``projection``, ``extent`` and ``spacing``, or around ``center``; None without.

    Raises:
        ConfigError: an option is invalid, or one of two that belong together is absent.
    """
    spacing = number_option(choice, "spacing", 1000.0, low=10.0, high=50_000.0)
    projection, center, extent = (choice.option(name) for name in ("projection", "center", "extent"))
    if not projection and not center:
        if extent:
            raise ConfigError("extent requires the option projection or center")
        return None
    if center:
        latitude, longitude = _numbers("center", center, 2)
        if not (abs(latitude) <= 90 and abs(longitude) <= 360) or projection:
            raise ConfigError(f"center={center!r} must be LATITUDE,LONGITUDE in degrees, without the option projection")
        projection = _equidistant(longitude, latitude)
    left, bottom, right, top = _numbers("extent", extent, 4)
    width, height = round((right - left) / spacing), round((top - bottom) / spacing)
    if width < 1 or height < 1:
        raise ConfigError(f"extent={extent!r} must be LEFT,BOTTOM,RIGHT,TOP in meters of the projection")
    check_projection(projection, Path("--importer"))
    check_pixels(height, width, Path("--importer composite"))
    return RadarGrid(projection, left, top, spacing, spacing, height, width)


def _numbers(name: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ConfigError(f"{name}={text!r} is invalid; it must be {count} numbers separated by commas")
    return numbers


def _equidistant(longitude: float, latitude: float) -> str:
    return f"+proj=aeqd +lat_0={latitude:.8g} +lon_0={longitude:.8g} +ellps=WGS84 +units=m +no_defs"


def _grid_around(grids: Sequence[RadarGrid], choice: FieldChoice, path: Path) -> RadarGrid:
    """Return a grid around the center of the radars of the first composite that covers all of them.

    Raises:
        DataError: it has too many pixels, because the radars are far from each other.
    """
    import pyproj

    places = [pyproj.Proj(grid.projection)(0.0, 0.0, inverse=True) for grid in grids]
    turned = np.unwrap(np.deg2rad([longitude for longitude, _ in places]))
    longitude, latitude = float(np.rad2deg(turned.mean())), float(np.mean([one[1] for one in places]))
    longitude = (longitude + 180.0) % 360.0 - 180.0
    projection = _equidistant(round(longitude, 3), round(latitude, 3))
    spacing = number_option(choice, "spacing", 1000.0, low=10.0, high=50_000.0)
    reach = 0.0
    for grid, (radar_longitude, radar_latitude) in zip(grids, places, strict=True):
        x, y = pyproj.Proj(projection)(radar_longitude, radar_latitude)
        reach = max(reach, abs(x) - grid.left, abs(y) + grid.top)
    half = int(np.ceil(reach / spacing))
    check_pixels(2 * half, 2 * half, path)
    return RadarGrid(projection, -half * spacing, half * spacing, spacing, spacing, 2 * half, 2 * half)


def _composite(volumes: list[RadarFrame], grid: RadarGrid, time: datetime, method: str, path: Path) -> RadarFrame:
    """Return the composite of volumes of one time."""
    import pyproj

    values = np.full(grid.shape, np.nan, np.float32)
    nearest = np.full(grid.shape, np.inf, np.float32)
    x, y = np.meshgrid(grid.x, grid.y)
    for volume in volumes:
        transformer = pyproj.Transformer.from_crs(grid.projection, volume.grid.projection, always_xy=True)
        own_x, own_y = transformer.transform(x, y)
        sampled = _sample(volume, own_x, own_y)
        if method == "maximum":
            values = np.fmax(values, sampled)
        else:
            distance = np.hypot(own_x, own_y).astype(np.float32)
            closer = ~np.isnan(sampled) & (distance < nearest)
            values[closer], nearest[closer] = sampled[closer], distance[closer]
    metadata: dict[str, Any] = {
        "format": f"composite ({method})", "quantity": "DBZH", "radars": len(volumes),
        "files": ", ".join(volume.path.name for volume in volumes),
    }  # fmt: skip
    return RadarFrame(values, "dBZ", time, grid, path, metadata)


def _sample(volume: RadarFrame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the values of the pixels at map coordinates of the volume, NaN outside of its grid."""
    grid = volume.grid
    with np.errstate(invalid="ignore"):
        columns, rows = np.floor((x - grid.left) / grid.spacing_x), np.floor((grid.top - y) / grid.spacing_y)
    inside = (columns >= 0) & (columns < grid.width) & (rows >= 0) & (rows < grid.height)
    sampled = np.full(x.shape, np.nan, np.float32)
    sampled[inside] = volume.values[rows[inside].astype(int), columns[inside].astype(int)]
    return sampled
