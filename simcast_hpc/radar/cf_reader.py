"""Reader of CF netCDF files (xarray): rain rate, rain accumulation, reflectivity or VIL on a regular map grid.

The field is selected by units and standard name, its map by ``grid_mapping`` or one-dimensional latitude and longitude.
``_FillValue`` is missing; no echo in dBZ is the stored value that the attribute ``undetect`` gives.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config import DataError

from .odim_reader import make_grid
from .radar_frame import RadarFrame, RadarGrid, Unit

if TYPE_CHECKING:
    import xarray as xr

_RATES = {
    "mm h-1": 1.0, "mm/h": 1.0, "mm hr-1": 1.0, "mm/hr": 1.0, "mm h**-1": 1.0, "mm h^-1": 1.0, "kg m-2 h-1": 1.0,
    "kg m-2 s-1": 3600.0, "kg/m2/s": 3600.0, "mm s-1": 3600.0, "mm/s": 3600.0, "m s-1": 3.6e6, "m/s": 3.6e6,
}  # fmt: skip
_DEPTHS = {"mm": 1.0, "kg m-2": 1.0, "kg/m2": 1.0, "kg/m^2": 1.0, "kg m^-2": 1.0, "m": 1000.0}
_RATE_NAMES = {"rainfall_rate", "lwe_precipitation_rate", "precipitation_flux", "rainfall_flux"}
_DEPTH_NAMES = {"lwe_thickness_of_precipitation_amount", "precipitation_amount", "rainfall_amount",
                "thickness_of_rainfall_amount"}  # fmt: skip
_REFLECTIVITY = "equivalent_reflectivity_factor"
_DIMENSIONS = {
    "y": {"projection_y_coordinate", "latitude", "grid_latitude"},
    "x": {"projection_x_coordinate", "longitude", "grid_longitude"},
}
_LENGTH = {"m": 1.0, "metre": 1.0, "meter": 1.0, "metres": 1.0, "meters": 1.0, "km": 1000.0, "kilometre": 1000.0}
_WGS84 = "+proj=longlat +datum=WGS84 +no_defs"


def times(path: Path) -> list[datetime]:
    """Return the times of the field."""
    with _opened(path) as dataset:
        field, _, _ = _field(dataset, path, "mm/h")
        return _times(dataset, field, path)


def frames(path: Path, prefer: Unit) -> list[RadarFrame]:
    """Return one frame per time."""
    with _opened(path) as dataset:
        field, unit, factor = _field(dataset, path, prefer)
        frame_times = _times(dataset, field, path)
        rows, columns = (_dimension(dataset, field, axis, path) for axis in ("y", "x"))
        values = _values(field, rows, columns, path, unit)
        if factor is None:
            factor = _depth_factor(dataset, field, path)
        grid, north_up = _grid(dataset, field, rows, columns, path)
        metadata = {"format": "CF netCDF", "quantity": str(field.attrs.get("standard_name") or field.name)}
        return [
            RadarFrame(np.ascontiguousarray(north_up(frame) * np.float32(factor)), unit, time, grid, path, metadata)
            for frame, time in zip(values, frame_times, strict=True)
        ]


def _opened(path: Path) -> "xr.Dataset":
    import xarray as xr

    with path.open("rb") as file:
        engine = "scipy" if file.read(3) == b"CDF" else "h5netcdf"
    return xr.open_dataset(path, engine=engine, decode_timedelta=False)


def _field(dataset: "xr.Dataset", path: Path, prefer: Unit) -> "tuple[xr.DataArray, Unit, float | None]":
    """Return the field, its unit and the factor to that unit; None for a depth, see :func:`_depth_factor`."""
    fields: dict[Unit, tuple[Any, Unit, float | None]] = {}
    descriptions = []
    for name, field in dataset.data_vars.items():
        if field.ndim < 2 or "grid_mapping_name" in field.attrs:
            continue
        kind = _kind(str(name), field)
        descriptions.append(f"{name} [{field.attrs.get('units', 'no units')}]")
        if kind is not None:
            fields.setdefault(kind[0], (field, *kind))
    order: tuple[Unit, ...] = (prefer, "mm/h", "dBZ", "kg/m^2")
    for unit in order:
        if unit in fields:
            return fields[unit]
    raise DataError(
        f"{path} contains {', '.join(descriptions) or 'no field'}; it must contain a rain rate (mm h-1), rain amount "
        "(mm), reflectivity (dBZ) or vertically integrated liquid (kg m-2), identified by units and standard_name"
    )


def _kind(name: str, field: "xr.DataArray") -> tuple[Unit, float | None] | None:
    units, standard = str(field.attrs.get("units", "")).strip(), str(field.attrs.get("standard_name", ""))
    words = f"{name} {standard} {field.attrs.get('long_name', '')}".lower().replace("_", " ")
    if units.lower() in ("dbz", "dbz1") or standard == _REFLECTIVITY:
        return ("dBZ", 1.0) if units.lower() == "dbz" else None
    if units in _RATES and (standard in _RATE_NAMES or (not standard and any(w in words for w in ("rain", "precip")))):
        return "mm/h", _RATES[units]
    if units in _DEPTHS and ("vertically integrated liquid" in words or "vil" in words.split()) and units[:2] == "kg":
        return "kg/m^2", 1.0
    if units in _DEPTHS and (
        standard in _DEPTH_NAMES or (not standard and any(w in words for w in ("rain", "precip")))
    ):
        return "mm/h", None
    return None


def _dimension(dataset: "xr.Dataset", field: "xr.DataArray", axis: str, path: Path) -> str:
    for name in field.dims:
        if name in dataset.coords:
            attributes = dataset.coords[name].attrs
            if attributes.get("standard_name") in _DIMENSIONS[axis] or attributes.get("axis", "").lower() == axis:
                return str(name)
    raise DataError(
        f"{path}: none of the dimensions {list(field.dims)} of {field.name} has a coordinate of standard_name "
        f"{' or '.join(sorted(_DIMENSIONS[axis]))}"
    )


def _times(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> list[datetime]:
    time = next(
        (dataset[name] for name in (*field.dims, *field.coords) if name in dataset and _is_time(dataset[name])), None
    )
    if time is None:
        raise DataError(f"{path}: {field.name} has no time coordinate; the file must contain the time of the field")
    seconds = np.atleast_1d(time.values).astype("datetime64[ms]").astype(np.int64) / 1000.0
    return [datetime.fromtimestamp(float(second), tz=UTC) for second in seconds]


def _is_time(variable: "xr.DataArray") -> bool:
    is_named_time = variable.name == "time" or variable.attrs.get("standard_name") == "time"
    return bool(is_named_time and np.issubdtype(variable.dtype, np.datetime64))


def _values(field: "xr.DataArray", rows: str, columns: str, path: Path, unit: Unit) -> np.ndarray:
    """Return the field as float32 ``[T, H, W]``, minus infinity where the file marks no echo."""
    others = [name for name in field.dims if name not in (rows, columns)]
    long = [name for name in others if field.sizes[name] > 1 and not _is_time(field[name])]
    if long:
        raise DataError(
            f"{path}: {field.name} has a dimension {long[0]} of size {field.sizes[long[0]]}; it must have size 1"
        )
    height, width = field.sizes[rows], field.sizes[columns]
    values = field.transpose(*others, rows, columns).values.astype(np.float32).reshape(-1, height, width)
    if "undetect" in field.attrs and unit == "dBZ":
        gain, offset = field.encoding.get("scale_factor", 1.0), field.encoding.get("add_offset", 0.0)
        no_echo = float(field.attrs["undetect"]) * gain + offset
        values[np.abs(values - no_echo) <= 1e-4 * max(abs(gain), 1e-3)] = -np.inf
    return values


def _depth_factor(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> float:
    """Return the factor from a depth to mm/h, computed from the bounds of its time."""
    time = dataset.get("time")
    bounds = dataset.get(time.attrs.get("bounds", "") or time.encoding.get("bounds", "")) if time is not None else None
    if bounds is None:
        raise DataError(
            f"{path}: {field.name} is an amount in {field.attrs['units']} and its time has no bounds; the file must "
            "contain the accumulation interval"
        )
    hours = np.diff(np.atleast_2d(bounds.values), axis=-1).astype("timedelta64[s]").astype(float) / 3600.0
    if not (hours > 0).all() or np.ptp(hours) > 0:
        raise DataError(
            f"{path}: the bounds of time span {hours.ravel()[:4].tolist()} hours; all must be equal and above 0"
        )
    return _DEPTHS[str(field.attrs["units"]).strip()] / float(hours.ravel()[0])


def _grid(dataset: "xr.Dataset", field: "xr.DataArray", rows: str, columns: str, path: Path):
    """Return the grid, and the function that flips a field to north up, west left."""
    y, x = (_regular(dataset.coords[name], path) for name in (rows, columns))
    units = {str(dataset.coords[name].attrs.get("units", "")) for name in (rows, columns)}
    if any(unit.startswith("degree") for unit in units):
        projection, scale = _WGS84, 1.0
    else:
        projection = _projection(dataset, field, path)
        scales = {_LENGTH.get(unit) for unit in units}
        if len(scales) != 1 or None in scales:
            raise DataError(f"{path}: the map coordinates are in {sorted(units)}; m or km is valid")
        scale = float(scales.pop() or 1.0)
    flip_rows, flip_columns = bool(y[1] > y[0]), bool(x[1] < x[0])
    x, y = np.sort(x) * scale, np.sort(y)[::-1] * scale
    dx, dy = (x[-1] - x[0]) / (len(x) - 1), (y[0] - y[-1]) / (len(y) - 1)
    grid: RadarGrid = make_grid(projection, x[0] - dx / 2, y[0] + dy / 2, dx, dy, (len(y), len(x)))

    def north_up(frame: np.ndarray) -> np.ndarray:
        frame = frame[::-1] if flip_rows else frame
        return frame[:, ::-1] if flip_columns else frame

    return grid, north_up


def _projection(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> str:
    import pyproj

    name = field.attrs.get("grid_mapping") or field.encoding.get("grid_mapping")
    if name not in dataset:
        raise DataError(f"{path}: {field.name} has no grid_mapping (got {name!r}); the file must contain a projection")
    attributes = dict(dataset[name].attrs)
    for key in ("proj4", "proj4_params", "proj4text"):
        if key in attributes:
            return str(attributes[key])
    return pyproj.CRS.from_cf(attributes).to_wkt()


def _regular(coordinate: "xr.DataArray", path: Path) -> np.ndarray:
    values = coordinate.values.astype(np.float64)
    steps = np.diff(values)
    if len(values) < 2 or np.ptp(steps) > 0.01 * abs(steps.mean()):
        raise DataError(f"{path}: the coordinate {coordinate.name} is not evenly spaced; the grid must be regular")
    return values
