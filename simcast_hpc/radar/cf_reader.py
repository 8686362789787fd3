"""Reader of CF netCDF and Zarr (xarray): rain rate, rain accumulation, reflectivity or VIL on a regular map grid.

The field is selected by units and standard name, its map by ``grid_mapping`` or one-dimensional latitude and longitude.
The time of a frame is the end of its bounds. See :mod:`cf_packing` for missing values and no echo.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config import DataError

from .cf_grid import find_dimension, read_grid
from .cf_packing import Packing
from .cf_units import depth_factor, is_mass_per_area, rate_factor
from .radar_frame import FieldChoice, RadarFrame, Unit

if TYPE_CHECKING:
    import xarray as xr

_RATE_NAMES = {"rainfall_rate", "lwe_precipitation_rate", "precipitation_flux", "rainfall_flux"}
_DEPTH_NAMES = {"lwe_thickness_of_precipitation_amount", "precipitation_amount", "rainfall_amount",
                "thickness_of_rainfall_amount"}  # fmt: skip
_REFLECTIVITY = "equivalent_reflectivity_factor"


def times(path: Path, choice: FieldChoice) -> list[datetime]:
    """Return the times of the field."""
    with _opened(path) as dataset:
        field, _, _ = _field(dataset, path, choice.unit)
        return _times(dataset, field, path)


def frames(path: Path, choice: FieldChoice) -> list[RadarFrame]:
    """Return one frame per time."""
    with _opened(path) as dataset, _opened(path, decodes=False) as stored:
        field, unit, factor = _field(dataset, path, choice.unit)
        frame_times = _times(dataset, field, path)
        rows, columns = (find_dimension(dataset, field, axis, path) for axis in ("y", "x"))
        codes = _codes(stored[str(field.name)], field, rows, columns, path)
        packing = Packing(stored[str(field.name)].attrs, codes.dtype, f"{path}: {field.name}")
        if factor is None:
            factor = _depth_factor(dataset, field, path)
        grid, north_up = read_grid(dataset, field, rows, columns, path)
        metadata = {"format": "CF netCDF", "quantity": str(field.attrs.get("standard_name") or field.name)}
        result = []
        for frame_codes, time in zip(codes, frame_times, strict=True):
            values, no_echo = packing.decode(frame_codes)
            values = (values * factor).astype(np.float32)
            values[no_echo] = -np.inf if unit == "dBZ" else 0.0
            result.append(RadarFrame(np.ascontiguousarray(north_up(values)), unit, time, grid, path, metadata))
        return result


def _opened(path: Path, *, decodes: bool = True) -> "xr.Dataset":
    import xarray as xr

    if path.is_dir():
        return xr.open_dataset(
            path, engine="zarr", chunks=None, consolidated=False, decode_timedelta=False, decode_cf=decodes
        )
    with path.open("rb") as file:
        engine = "scipy" if file.read(3) == b"CDF" else "h5netcdf"
    return xr.open_dataset(path, engine=engine, decode_timedelta=False, decode_cf=decodes)


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
    is_rain = not standard and any(word in words for word in ("rain", "precip"))
    if (rate := rate_factor(units)) is not None and (standard in _RATE_NAMES or is_rain):
        return "mm/h", rate
    depth = depth_factor(units)
    if depth is None:
        return None
    if is_mass_per_area(units) and ("vertically integrated liquid" in words or "vil" in words.split()):
        return "kg/m^2", depth
    return ("mm/h", None) if standard in _DEPTH_NAMES or is_rain else None


def _times(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> list[datetime]:
    """Return the ends of the bounds of time, or the times if there are none or the field is of one instant."""
    time = _time(dataset, field, path)
    bounds = _bounds(dataset, time)
    is_instant = "time: point" in str(field.attrs.get("cell_methods", ""))
    moments = np.atleast_1d(time.values) if bounds is None or is_instant else bounds.max(axis=-1)
    if np.isnat(moments).any():
        raise DataError(f"{path}: the time of {field.name} contains missing values; every frame must have a time")
    seconds = moments.astype("datetime64[ms]").astype(np.int64) / 1000.0
    return [datetime.fromtimestamp(float(second), tz=UTC) for second in seconds]


def _time(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> "xr.DataArray":
    for name in (*field.dims, *field.coords):
        if name in dataset and _is_time(dataset[name]):
            return dataset[name]
    raise DataError(f"{path}: {field.name} has no time coordinate; the file must contain the time of the field")


def _bounds(dataset: "xr.Dataset", time: "xr.DataArray") -> np.ndarray | None:
    """Return the bounds of time, datetime64 ``[T, 2]``, None without them."""
    bounds = dataset.get(str(time.attrs.get("bounds", "") or time.encoding.get("bounds", "")))
    return None if bounds is None else np.atleast_2d(bounds.values)


def _is_time(variable: "xr.DataArray") -> bool:
    is_named_time = variable.name == "time" or variable.attrs.get("standard_name") == "time"
    return bool(is_named_time and np.issubdtype(variable.dtype, np.datetime64))


def _codes(stored: "xr.DataArray", field: "xr.DataArray", rows: str, columns: str, path: Path) -> np.ndarray:
    """Return the stored values ``[T, H, W]``."""
    others = [name for name in field.dims if name not in (rows, columns)]
    long = [name for name in others if field.sizes[name] > 1 and not _is_time(field[name])]
    if long:
        raise DataError(
            f"{path}: {field.name} has a dimension {long[0]} of size {field.sizes[long[0]]}; it must have size 1"
        )
    values = stored.transpose(*others, rows, columns).values
    return values.reshape(-1, *values.shape[-2:])


def _depth_factor(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> float:
    """Return the factor from a depth to mm/h, computed from the bounds of its time."""
    units = str(field.attrs["units"])
    bounds = _bounds(dataset, _time(dataset, field, path))
    if bounds is None:
        raise DataError(
            f"{path}: {field.name} is an amount in {units} and its time has no bounds; the file must "
            "contain the accumulation interval"
        )
    hours = np.diff(bounds, axis=-1).astype("timedelta64[s]").astype(float) / 3600.0
    if not (hours > 0).all() or np.ptp(hours) > 0:
        raise DataError(
            f"{path}: the bounds of time span {hours.ravel()[:4].tolist()} hours; all must be equal and above 0"
        )
    return (depth_factor(units) or 1.0) / float(hours.ravel()[0])
