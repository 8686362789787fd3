"""Grids of CF files: axes of map coordinates or longitude and latitude, and the projection of their grid mapping."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config import DataError

from .cf_mapping import in_meters, read_mapping
from .radar_frame import RadarGrid

if TYPE_CHECKING:
    import pyproj
    import xarray as xr

_DIMENSIONS = {
    "y": {"projection_y_coordinate", "latitude", "grid_latitude"},
    "x": {"projection_x_coordinate", "longitude", "grid_longitude"},
}
# CF identifies latitude and longitude by these units alone.
_DEGREES = {
    "y": {"degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn"},
    "x": {"degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese"},
}
# Of a rotated pole, and of files without the direction.
_ANY_DEGREES = {"degree", "degrees"}
_LENGTH = {"m": 1.0, "metre": 1.0, "meter": 1.0, "metres": 1.0, "meters": 1.0, "km": 1000.0}
_LENGTH |= dict.fromkeys(("kilometre", "kilometer", "kilometres", "kilometers"), 1000.0)
# Names of map coordinates in meters or km that have no standard name, as Rainfields writes them.
_NAMES = {"y": {"y", "northing"}, "x": {"x", "easting"}}
_WGS84 = "+proj=longlat +datum=WGS84 +no_defs"


def find_dimension(dataset: "xr.Dataset", field: "xr.DataArray", axis: str, path: Path) -> str:
    """Return the dimension of ``field`` along ``axis`` (``x`` or ``y``).

    Raises:
        DataError: no dimension has a coordinate of that axis.
    """
    coordinates = {str(name): dataset.coords[name] for name in field.dims if name in dataset.coords}
    for name, coordinate in coordinates.items():
        attributes = coordinate.attrs
        is_axis = attributes.get("standard_name") in _DIMENSIONS[axis] or _units(dataset, name) in _DEGREES[axis]
        if is_axis or str(attributes.get("axis", "")).lower() == axis:
            return name
    for name in coordinates:
        if name.lower() in _NAMES[axis] and _units(dataset, name) in _LENGTH:
            return name
    curved = [
        str(name)
        for name, coordinate in dataset.variables.items()
        if coordinate.ndim == 2 and str(coordinate.attrs.get("units", "")).strip().lower() in _DEGREES[axis]
    ]
    if curved:
        raise DataError(
            f"{path}: the positions of {field.name} are in {curved[0]}{dataset[curved[0]].dims}; its dimensions "
            f"{list(field.dims)} must have one-dimensional coordinates of a regular grid and a grid_mapping"
        )
    raise DataError(
        f"{path}: none of the dimensions {list(field.dims)} of {field.name} has a coordinate of standard_name "
        f"{' or '.join(sorted(_DIMENSIONS[axis]))}"
    )


def read_grid(
    dataset: "xr.Dataset", field: "xr.DataArray", rows: str, columns: str, path: Path
) -> tuple[RadarGrid, Callable[[np.ndarray], np.ndarray]]:
    """Return the grid, and the function that flips a field ``[H, W]`` to north up, west left.

    Map coordinates are converted to meters, and the projection with them.

    Raises:
        DataError: the axes are not regular, or their units contradict the grid mapping.
    """
    units = [_units(dataset, name) for name in (rows, columns)]
    # 1. Projection, and scale of the axes
    crs, projection = read_mapping(dataset, field, (rows, columns), _LENGTH.get(units[1], 1.0), path)
    is_degree = [
        _is_degree(unit, axis, f"{path}: {name}") for unit, axis, name in zip(units, "yx", (rows, columns), strict=True)
    ]
    standard = {str(dataset.coords[name].attrs.get("standard_name", "")) for name in (rows, columns)}
    is_rotated = crs is not None and crs.is_derived and crs.is_geographic
    if not is_rotated and standard & {"grid_latitude", "grid_longitude"}:
        raise DataError(
            f"{path}: {field.name} is on a rotated-pole grid ({rows}, {columns}) without a grid_mapping of "
            "rotated_latitude_longitude; the file must contain the pole"
        )
    if crs is not None and is_rotated and all(is_degree):
        projection, scale = _rotated(crs, path), 1.0
    elif all(is_degree):
        projection, scale = _geographic(crs, field, units, path), 1.0
    else:
        scales = {_LENGTH.get(unit) for unit in units}
        if len(scales) != 1 or None in scales:
            raise DataError(f"{path}: the map coordinates are in {sorted(set(units))}; m or km is valid for both axes")
        scale = float(scales.pop() or 1.0)
        if crs is None:
            raise DataError(f"{path}: {field.name} has no grid_mapping; the file must contain a projection")
        if not crs.is_projected and "+proj=" not in projection:
            raise DataError(f"{path}: the map coordinates are in {units[0]}, but the grid mapping is {crs.type_name}")
        projection = in_meters(crs, projection)
    # 2. Axes to the east and to the south
    x, y = (_regular(dataset.coords[name], path, wraps=all(is_degree)) for name in (columns, rows))
    if all(is_degree) and not (np.abs(x) <= 360.0 + abs(x[1] - x[0])).all():
        raise DataError(
            f"{path}: {columns} is from {x.min():g} to {x.max():g} degrees; longitudes are from -360 to 360"
        )
    flip_rows, flip_columns = bool(y[1] > y[0]), bool(x[1] < x[0])
    x, y = np.sort(x) * scale, np.sort(y)[::-1] * scale
    if all(is_degree):
        x = x - 360.0 * np.floor((x[0] + 180.0) / 360.0)  # the western column is in [-180, 180)
    # 3. Grid from the outer edges
    dx, dy = (x[-1] - x[0]) / (len(x) - 1), (y[0] - y[-1]) / (len(y) - 1)
    grid = RadarGrid(
        " ".join(projection.split()),
        float(x[0] - dx / 2),
        float(y[0] + dy / 2),
        float(dx),
        float(dy),
        len(y),
        len(x),
        "degree" if all(is_degree) else "m",
    )

    def north_up(frame: np.ndarray) -> np.ndarray:
        frame = frame[::-1] if flip_rows else frame
        return frame[:, ::-1] if flip_columns else frame

    return grid, north_up


def _is_degree(unit: str, axis: str, where: str) -> bool:
    """Return whether an axis is in degrees north or east.

    Raises:
        DataError: it is in degrees of another direction, such as ``degrees_west``.
    """
    if unit in _DEGREES[axis] | _ANY_DEGREES:
        return True
    if unit.startswith("deg"):
        valid = {"y": "degrees_north", "x": "degrees_east"}[axis]
        raise DataError(f"{where}, the {axis} coordinate, has the units {unit!r}; {valid} or a length is valid")
    return False


def _units(dataset: "xr.Dataset", name: Any) -> str:
    return str(dataset.coords[name].attrs.get("units", "")).strip().lower()


def _geographic(crs: "pyproj.CRS | None", field: "xr.DataArray", units: list[str], path: Path) -> str:
    """Return the projection of axes in degrees; WGS 84 without a grid mapping."""
    if crs is None:
        return _WGS84
    if not crs.is_geographic:
        raise DataError(
            f"{path}: the axes of {field.name} are in {units[0]}, but its grid mapping is {crs.type_name} "
            f"({crs.name}); degrees need latitude_longitude"
        )
    ellipsoid, meridian = crs.ellipsoid, crs.prime_meridian
    is_wgs84 = ellipsoid is None or (ellipsoid.semi_major_metre, round(ellipsoid.inverse_flattening, 6)) == (
        6378137.0,
        298.257224,
    )
    return _WGS84 if is_wgs84 and (meridian is None or meridian.longitude == 0) else crs.to_wkt()


def _rotated(crs: "pyproj.CRS", path: Path) -> str:
    """Return the PROJ string of a rotated pole.

    Raises:
        DataError: PROJ places it elsewhere than the grid mapping of the file.
    """
    import pyproj

    attributes = crs.to_cf()
    ellipsoid = crs.ellipsoid
    shape = f"+a={ellipsoid.semi_major_metre:.10g} +b={ellipsoid.semi_minor_metre:.12g}" if ellipsoid else ""
    try:
        pole = [float(attributes[f"grid_north_pole_{axis}"]) for axis in ("latitude", "longitude")]
        turn = float(attributes.get("north_pole_grid_longitude") or 0.0)
        projection = (
            f"+proj=ob_tran +o_proj=longlat +o_lon_p={turn:.12g} +o_lat_p={pole[0]:.12g} "
            f"+lon_0={(pole[1] + 180.0) % 360.0:.12g} "
        ) + (shape if shape and crs.ellipsoid != pyproj.CRS("EPSG:4326").ellipsoid else "+datum=WGS84")
        stated, own = (
            np.array(pyproj.Transformer.from_crs(each, each.source_crs, always_xy=True).transform([0, 5], [0, 3]))
            for each in (crs, pyproj.CRS(projection + " +no_defs +type=crs"))
        )
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: the rotated pole of the grid mapping {attributes} is not supported") from error
    difference = np.abs((stated - own + 180.0) % 360.0 - 180.0)
    if not (difference < 1e-6).all():
        raise DataError(f"{path}: the rotated pole of the grid mapping {attributes} is not supported")
    return projection + " +no_defs +type=crs"


def _regular(coordinate: "xr.DataArray", path: Path, *, wraps: bool) -> np.ndarray:
    """Return an evenly spaced coordinate, float64; degrees continue across 180 or 360."""
    values = coordinate.values.astype(np.float64)
    values = np.unwrap(values, period=360.0) if wraps else values
    if len(values) < 2:
        raise DataError(f"{path}: the coordinate {coordinate.name} has {len(values)} values; a grid needs at least 2")
    steps = np.diff(values)
    if not np.isfinite(values).all() or not np.ptp(steps) <= 0.01 * abs(steps.mean()) > 0:
        raise DataError(f"{path}: the coordinate {coordinate.name} is not evenly spaced; the grid must be regular")
    return values
