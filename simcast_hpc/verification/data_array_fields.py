"""Observations and forecasts as ``xarray.DataArray``: axes by name, pixels and times by their coordinates."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from simcast_hpc.radar.cf_units import depth_factor, is_mass_per_area, is_unit, rate_factor

if TYPE_CHECKING:
    import xarray

TIME_NAMES = ("time", "valid_time", "t")
LEAD_NAMES = ("lead_time", "leadtime", "lead", "step", "forecast_period", "prediction_timedelta")
MEMBER_NAMES = ("member", "members", "realization", "number", "ensemble", "ens", "ens_member", "ensemble_member")
ROW_NAMES = ("y", "lat", "latitude", "rlat")
COLUMN_NAMES = ("x", "lon", "longitude", "rlon")
_REFERENCE_NAMES = ("forecast_reference_time", "reference_time", "init_time", "analysis_time", "time")
_DIMENSIONLESS = {"", "1", "none", "dimensionless", "-"}
_SECONDS = {"second": 1, "s": 1, "minute": 60, "min": 60, "hour": 3600, "h": 3600}


@dataclass(frozen=True)
class _Axes:
    """Names of the dimensions; ``batch`` and ``member`` are None if there is none."""

    batch: Any
    member: Any
    time: Any
    rows: Any
    columns: Any

    @property
    def order(self) -> list[Any]:
        return [name for name in (self.batch, self.member, self.time, self.rows, self.columns) if name is not None]


def is_data_array(fields: Any) -> "TypeGuard[xarray.DataArray]":
    """Return whether ``fields`` are a DataArray, without an import of xarray."""
    return type(fields).__name__ == "DataArray" and hasattr(fields, "coords")


def arrays_of(observation: Any, forecast: Any, valid: Any, *, unit: str | None) -> tuple[Any, Any, Any]:
    """Return observation, forecast and mask with DataArrays replaced by arrays, axes in the order of ``score``.

    The axes are recognized by name: rows and columns (``y`` and ``x``, latitude and longitude, else the last two),
    members, lead time or time, and at most one other, the windows. If both fields are DataArrays, rows and columns of
    the forecast are put into the order of the observation, and an observation without an axis of windows is read at the
    valid times of the forecast: its times, or reference time plus lead time.

    Args:
        observation: a DataArray, or anything else, which is returned unchanged.
        forecast: the same.
        valid: boolean DataArray with dimensions of the observation, an array, or None.
        unit: unit of the fields; None for encoded values.

    Raises:
        ValueError: a dimension cannot be recognized, the attribute ``units`` is another unit, or coordinates differ.
    """
    if not is_data_array(observation):
        if is_data_array(valid):
            raise TypeError("valid is a DataArray and the observation is not; give both as DataArrays")
        return observation, _plain(forecast, unit) if is_data_array(forecast) else forecast, valid
    _check_units(observation, unit, "observation")
    own = _axes(observation, "observation")
    if own.member is not None:
        raise ValueError(f"the observation has dimensions {observation.dims}; it cannot have members ({own.member})")
    if is_data_array(valid):
        missing = 255 if observation.dtype == np.uint8 else np.nan
        observation, valid = observation.where(_like(observation, valid), missing).transpose(*observation.dims), None
    observation = observation.transpose(*own.order)
    if not is_data_array(forecast):
        return observation.values, forecast, valid
    # 1. Pixels
    _check_units(forecast, unit, "forecast")
    axes = _axes(forecast, "forecast")
    forecast = forecast.transpose(*axes.order)
    for name, other in ((own.rows, axes.rows), (own.columns, axes.columns)):
        if name in observation.coords and other in forecast.coords:
            order = _same_order(observation[name].values, forecast[other].values, str(name))
            forecast = forecast.isel({other: order})
    _check_positions(observation, forecast, own, axes)
    # 2. Times
    expected, present = _valid_times(forecast, axes), _valid_times(observation, own)
    values = observation.values
    if (expected is None or present is None) and own.batch is None and len(values) != forecast.sizes[axes.time]:
        name, fields, axis = ("forecast", forecast, axes) if expected is None else ("observation", observation, own)
        raise ValueError(
            f"the observation has {len(values)} times, the forecast {forecast.sizes[axes.time]}, and the coordinates "
            f"of the {name} ({', '.join(map(str, fields.coords)) or 'none'}) give no valid times; it needs dates along "
            f"{axis.time}, or a reference time and {axis.time} as a timedelta or with units such as minutes"
        )
    if expected is not None and present is not None:
        if own.batch is None:
            values = values[_positions(present, expected)]
        elif present.shape[-1] != expected.shape[-1] or not np.all(present == expected):
            raise ValueError("observation and forecast have the same windows at different valid times; align them")
    if own.batch is not None and axes.batch is not None:
        _check_windows(observation, forecast, own.batch, axes.batch)
    return values, forecast.values, valid


def _plain(fields: Any, unit: str | None) -> np.ndarray:
    _check_units(fields, unit, "forecast")
    return fields.transpose(*_axes(fields, "forecast").order).values


def _axes(fields: Any, name: str) -> _Axes:
    left = list(fields.dims)

    def take(*groups: tuple[str, ...]) -> Any:
        found = next((one for names in groups for one in names if one in left), None)
        if found is not None:
            left.remove(found)
        return found

    member = take(MEMBER_NAMES)
    rows, columns = take(ROW_NAMES), take(COLUMN_NAMES)
    time = take(LEAD_NAMES, TIME_NAMES)
    if rows is None and columns is None and len(left) > 1:
        *left, rows, columns = left
    if time is None or rows is None or columns is None or len(left) > 1:
        raise ValueError(
            f"the {name} has dimensions {fields.dims}; rows and columns ({ROW_NAMES[0]}, {COLUMN_NAMES[0]}), a lead "
            f"time or time ({', '.join((*LEAD_NAMES[:2], *TIME_NAMES))}) and at most one dimension of windows are "
            "needed; rename or expand them"
        )
    return _Axes(left[0] if left else None, member, time, rows, columns)


def _check_units(fields: Any, unit: str | None, name: str) -> None:
    given = fields.attrs.get("units")
    units = "" if given is None else str(given).strip()
    if unit is None and units.lower() not in _DIMENSIONLESS and fields.dtype != np.uint8:
        raise ValueError(
            f"the {name} has units={units!r}, and encoded values are expected; give unit={units!r} (mm/h, dBZ, kg/m^2 "
            "or mm), or remove the attribute"
        )
    if unit is None or not units or is_unit(units, unit):
        return
    is_mass = is_mass_per_area(units)
    if unit == "mm" and depth_factor(units) == 1.0 and not is_mass:
        return
    factor = rate_factor(units) if unit == "mm/h" else depth_factor(units)
    is_same_kind = unit == "mm/h" or (unit != "dBZ" and is_mass == (unit == "kg/m^2"))
    remedy = f"multiply the field by {factor:g} and set its units" if factor and is_same_kind else "convert the fields"
    raise ValueError(f"the {name} has units={units!r}, and unit={unit!r} was given; {remedy}")


def _same_order(first: np.ndarray, second: np.ndarray, name: str, other: str = "forecast") -> Any:
    """Return the index of ``second``, a coordinate of the field ``other``, that gives the order of ``first``."""
    if first.shape == second.shape and first.dtype.kind in "iuf" and second.dtype.kind in "iuf":
        ordered = np.argsort(second)[np.argsort(np.argsort(first))]
        if np.allclose(first, second[ordered], rtol=0, atol=_tolerance(first, second)):
            return ordered
    elif np.array_equal(first, second):
        return slice(None)
    raise ValueError(
        f"observation and {other} have different coordinates {name} ({_range(first)} and {_range(second)}); "
        "interpolate one of them to the grid of the other"
    )


def _tolerance(first: np.ndarray, second: np.ndarray) -> float:
    """Return 1 % of the spacing, or the rounding error of the coarser type (float32) up to a quarter of the spacing."""
    floats = [one.dtype for one in (first, second) if one.dtype.kind == "f"]
    rounding = max((float(np.finfo(dtype).eps) for dtype in floats), default=0.0) * float(np.abs(first).max())
    if len(first) < 2:
        return rounding
    spacing = float(np.abs(np.diff(np.sort(first))).min())
    return max(0.01 * spacing, min(rounding, 0.25 * spacing))


def _like(observation: Any, valid: Any) -> Any:
    """Return a boolean mask with its pixels and times in the order of the observation.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: a dimension or a coordinate is not that of the observation.
    """
    if valid.dtype != np.bool_:
        raise TypeError(f"valid must be boolean (True where a pixel counts), got {valid.dtype}")
    for name in valid.dims:
        if name not in observation.dims or valid.sizes[name] != observation.sizes[name]:
            raise ValueError(
                f"valid has dimensions {dict(valid.sizes)}, and the observation {dict(observation.sizes)}; give those "
                "dimensions of the observation along which the mask differs"
            )
        if name in valid.coords and name in observation.coords:
            first, second = observation[name].values, valid[name].values
            valid = valid.isel({name: _same_order(first, second, str(name), "valid")})
    return valid.drop_vars(valid.coords).transpose(*(name for name in observation.dims if name in valid.dims))


def _check_positions(observation: Any, forecast: Any, own: _Axes, axes: _Axes) -> None:
    """Raise an error if both fields have two-dimensional coordinates of rows and columns that differ."""
    for names in zip(ROW_NAMES[1:], COLUMN_NAMES[1:], strict=True):
        for name in names:
            grids = [
                fields[name].transpose(axis.rows, axis.columns).values
                for fields, axis in ((observation, own), (forecast, axes))
                if name in fields.coords and set(fields[name].dims) == {axis.rows, axis.columns}
            ]
            if len(grids) == 2 and not (
                grids[0].shape == grids[1].shape and np.allclose(*grids, rtol=1e-6, atol=0, equal_nan=True)
            ):
                raise ValueError(
                    f"observation and forecast have different coordinates {name} of rows and columns; give both on one "
                    "grid, in the same order of rows and columns"
                )


def _range(values: np.ndarray) -> str:
    return f"{len(values)} from {values[0]} to {values[-1]}"


def _valid_times(fields: Any, axes: _Axes) -> np.ndarray | None:
    """Return the valid times ``[T]`` or ``[N, T]`` in UTC; None without coordinates."""
    dims = {axes.batch, axes.time}
    for name in dict.fromkeys((axes.time, *TIME_NAMES)):
        if name in fields.coords and axes.time in fields[name].dims and set(fields[name].dims) <= dims:
            times = _datetimes(fields, name)
            if times is not None:
                is_transposed = fields[name].dims == (axes.time, axes.batch)
                return times.T if is_transposed else times
    lead = next((name for name in (axes.time, *LEAD_NAMES) if _is_along(fields, name, (axes.time,))), None)
    offsets = None if lead is None else _offsets(fields[lead])
    for name in (axes.batch, *_REFERENCE_NAMES) if offsets is not None else ():
        if name in fields.coords and fields[name].dims in ((), (axes.batch,)):
            reference = _datetimes(fields, name)
            if reference is not None:
                return reference[..., None] + offsets
    return None


def _is_along(fields: Any, name: Any, dims: tuple[Any, ...]) -> bool:
    return name in fields.coords and fields[name].dims == dims


def _offsets(coordinate: Any) -> np.ndarray | None:
    values = coordinate.values
    if values.dtype.kind == "m":
        return values.astype("timedelta64[ns]")
    units = str(coordinate.attrs.get("units", "")).strip().lower()
    factor = _SECONDS.get(units, _SECONDS.get(units.removesuffix("s")))
    if factor is None or values.dtype.kind not in "iuf":
        return None
    return np.rint(values.astype(np.float64) * factor * 1e9).astype(np.int64).astype("timedelta64[ns]")


def values_in_utc(fields: Any, name: Any) -> np.ndarray:
    """Return the values of a coordinate of a DataArray; dates of cftime and of time zones as datetime64 in UTC."""
    index: Any = fields.indexes.get(name)
    if hasattr(index, "to_datetimeindex"):  # cftime
        return index.to_datetimeindex(time_unit="ns").values
    if getattr(index, "tz", None) is not None:
        return index.tz_convert("UTC").tz_localize(None).values
    return fields[name].values


def _datetimes(fields: Any, name: Any) -> np.ndarray | None:
    """Return a coordinate as datetime64 in UTC; None if it contains no dates."""
    values = values_in_utc(fields, name)
    return values.astype("datetime64[ns]") if values.dtype.kind == "M" else None


def _positions(present: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the positions of the expected times, any shape, among the times that are present."""
    order = np.argsort(present, kind="stable")
    if len(np.unique(present)) < len(present):
        raise ValueError("the observation has a time twice; remove the repeated frames")
    found = np.searchsorted(present[order], expected).clip(max=len(present) - 1)
    positions = order[found]
    absent = np.unique(expected[present[positions] != expected])
    if len(absent):
        raise ValueError(
            f"the observation has no frame at {len(absent)} of {len(np.unique(expected))} valid times of the forecast, "
            f"for example {absent[0]}; select forecasts with observations, or add frames of NaN by reindex"
        )
    return positions


def _check_windows(observation: Any, forecast: Any, first: Any, second: Any) -> None:
    labeled = first == second and first in observation.coords and first in forecast.coords
    if labeled and not np.array_equal(observation[first].values, forecast[first].values):
        raise ValueError(f"observation and forecast have different coordinates {first}; align them")
