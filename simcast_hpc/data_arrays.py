"""Forecasts of ``xarray.DataArray``: dimensions, cadence, units and grid of the input, coordinates of the output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.radar.cf_units import is_unit
from simcast_hpc.radar.frame_encoding import spacing_problem
from simcast_hpc.radar.radar_frame import RadarGrid
from simcast_hpc.verification.data_array_fields import COLUMN_NAMES, ROW_NAMES, TIME_NAMES, is_data_array, values_in_utc

__all__ = [
    "ArrayModel", "attributes_of", "forecast_data_array", "is_data_array", "require_encoded", "require_unit",
]  # fmt: skip

if TYPE_CHECKING:
    import xarray

# Attributes (CF conventions) of encoded values, which do not describe a forecast in [0, 1].
_ENCODING_ATTRIBUTES = {
    "units", "_FillValue", "missing_value", "scale_factor", "add_offset", "valid_range", "valid_min", "valid_max",
    "_Unsigned",
}  # fmt: skip
_DIMENSIONLESS = {"", "1", "none", "dimensionless", "-"}
_METERS: dict[str, float] = dict.fromkeys(("m", "meter", "metre", "meters", "metres"), 1.0)
_METERS |= dict.fromkeys(("km", "kilometer", "kilometre", "kilometers", "kilometres"), 1000.0)
_CADENCE_TOLERANCE_SECONDS = 1.0


@dataclass(frozen=True)
class ArrayModel:
    """What the coordinates and attributes of an input are compared with; ``spacing_km`` is None for any pixel size."""

    name: str
    unit: str
    step_minutes: float
    spacing_km: float | None


def attributes_of(frames: Any) -> dict[Any, Any]:
    """Return the attributes that do not describe the encoding of the values."""
    return {name: value for name, value in frames.attrs.items() if name not in _ENCODING_ATTRIBUTES}


def require_encoded(fields: Any, unit: str, name: str = "forecast") -> None:
    """Raise an error if the attribute ``units`` contradicts encoded values; uint8 may have ``unit``, as archives do.

    Raises:
        ValueError: the values are in a physical unit.
    """
    units = str(fields.attrs.get("units", ""))
    is_codes = fields.dtype == np.uint8 and is_unit(units, unit)
    if units.strip().lower() not in _DIMENSIONLESS and not is_codes:
        raise ValueError(
            f"the DataArray has units={units!r}, and {name} needs uint8 encoded values or encoded values / 255 in "
            f"[0, 1]; convert values in {unit} by Forecaster.from_physical, or remove the attribute"
        )


def require_unit(values: Any, unit: str) -> None:
    """Raise an error if the attribute ``units`` is another unit than ``unit``; an absent or empty one is accepted.

    Raises:
        ValueError: names both units.
    """
    units = str(values.attrs.get("units", ""))
    if units.strip() and not is_unit(units, unit):
        raise ValueError(f"the DataArray has units={units!r}, and from_physical needs {unit}; convert the values")


def forecast_data_array(
    frames: "xarray.DataArray",
    forecast: Callable[[np.ndarray], np.ndarray],
    model: ArrayModel,
    steps: Sequence[int],
    *,
    is_ensemble: bool,
) -> "xarray.DataArray":
    """Return the forecast of a DataArray with the coordinates of the lead times, the grid and the members.

    Args:
        frames: past frames with a time dimension.
        forecast: maps an array ``[T, H, W]`` or ``[B, T, H, W]``, row 0 north, to its forecast at ``steps``.
        model: unit, time step and pixel size that the frames must have.
        steps: lead times in steps.
        is_ensemble: whether the forecast has an axis of members.

    Raises:
        ValueError: dimensions, times, units or grid coordinates are not those that the model needs.
    """
    import xarray

    require_encoded(frames, model.unit)
    # 1. Order of the dimensions: batch, time, rows, columns
    time = next((name for name in TIME_NAMES if name in frames.dims), None)
    if time is None or len(frames.dims) not in (3, 4):
        raise ValueError(
            f"the DataArray has dimensions {frames.dims}; a time dimension ({', '.join(TIME_NAMES)}), rows and "
            "columns are needed, with at most one batch dimension"
        )
    others = [name for name in frames.dims if name != time]
    grid = [name for names in (ROW_NAMES, COLUMN_NAMES) for name in others if name in names]
    if len(grid) == 2:
        others = [*(name for name in others if name not in grid), *grid]
    if "lead_time" in others or (is_ensemble and "member" in others):
        raise ValueError(f"the DataArray has dimensions {frames.dims}; the forecast adds lead_time and member: rename")
    ordered = frames.transpose(*others[:-2], time, *others[-2:])
    # 2. Cadence and grid: those of the training data, row 0 north and column 0 west
    last = _check_cadence(ordered, str(time), model)
    flips = _check_grid(ordered, others[-2], others[-1], model)
    result = forecast(ordered.values[flips])[flips]
    # 3. Coordinates of the result
    dims = [*others[:-2], *(["member"] if result.ndim > len(frames.dims) else []), time, *others[-2:]]
    kept = {name: coord for name, coord in ordered.coords.items() if time not in coord.dims and name != time}
    leads = np.array([round(step * model.step_minutes * 60e9) for step in steps], dtype="timedelta64[ns]")
    labeled = xarray.DataArray(result, dims=dims, coords=kept, name=frames.name, attrs=attributes_of(frames))
    labeled = labeled.assign_coords(lead_time=(time, leads))
    if "member" in dims:
        labeled = labeled.assign_coords(member=np.arange(labeled.sizes["member"]))
    if last is None:
        return labeled
    return labeled.assign_coords({time: last + leads, "forecast_reference_time": last})


def _check_cadence(frames: Any, time: str, model: ArrayModel) -> Any:
    """Return the last time of a DataArray in UTC, None where it has no time coordinate."""
    if time not in frames.coords:
        return None
    times = values_in_utc(frames, time)
    if times.dtype.kind not in "mM" or np.isnat(times).any():
        raise ValueError(
            f"the coordinate {time} has dtype {times.dtype} and values {list(map(str, times))}; dates "
            f"(datetime64) are needed, or no coordinate: drop_vars({time!r})"
        )
    times = times.astype(f"{'timedelta64' if times.dtype.kind == 'm' else 'datetime64'}[ns]")
    seconds = np.diff(times).astype("timedelta64[ns]").astype(np.float64) / 1e9
    expected = model.step_minutes * 60
    if np.any(np.abs(seconds - expected) > _CADENCE_TOLERANCE_SECONDS):
        raise ValueError(
            f"the times are {sorted({float(s) for s in seconds})} s apart; {model.name} needs "
            f"{expected:g} s between frames, oldest first"
        )
    return times[-1]


def _check_grid(frames: Any, rows: Any, columns: Any, model: ArrayModel) -> tuple[Any, ...]:
    """Return the index that flips the last two axes to row 0 north and column 0 west.

    Coordinates without a unit of length or degrees, such as pixel numbers, must be evenly spaced; their direction and
    size are not defined.

    Raises:
        ValueError: a coordinate is not evenly spaced, or the pixel size is not that of the training data.
    """
    axes = [_axis(frames, name) for name in (rows, columns)]
    units = [None if axis is None else axis[1] for axis in axes]
    if None in axes or None in units:
        return (...,)
    (y, unit), (x, other) = axes  # type: ignore[misc]
    if unit != other:
        raise ValueError(
            f"the coordinate {rows} is in {unit} and {columns} in {other}; both must be in m or km, or both in degrees"
        )
    dy, dx = (float(axis[-1] - axis[0]) / (len(axis) - 1) for axis in (y, x))
    if model.spacing_km is not None:
        top, left = max(y[0], y[-1]) + abs(dy) / 2, min(x[0], x[-1]) - abs(dx) / 2
        grid = RadarGrid("", float(left), float(top), abs(dx), abs(dy), len(y), len(x), unit)
        problem = spacing_problem(grid, 1, model.spacing_km)
        if problem:
            raise ValueError(f"{problem}. any_spacing=True uses the frames unchanged")
    return (..., slice(None, None, -1 if dy > 0 else 1), slice(None, None, -1 if dx < 0 else 1))


def _axis(frames: Any, name: Any) -> tuple[np.ndarray, Any] | None:
    """Return a coordinate in meters or degrees with its unit (None if unknown); None without a numeric coordinate."""
    if name not in frames.coords or frames.sizes[name] < 2 or frames[name].dtype.kind not in "iuf":
        return None
    units = str(frames[name].attrs.get("units", "")).strip().lower()
    values = frames[name].values.astype(np.float64)
    is_degree = units.startswith("degree") or (not units and name in (*ROW_NAMES[1:], *COLUMN_NAMES[1:]))
    values = np.unwrap(values, period=360.0) if is_degree else values * _METERS.get(units, 1.0)
    steps = np.diff(values)
    if not np.isfinite(values).all() or np.ptp(steps) > 0.01 * abs(steps.mean()) or not steps.all():
        raise ValueError(
            f"the coordinate {name} is not evenly spaced (steps from {steps.min():g} to {steps.max():g}); the grid of "
            "the frames must be regular"
        )
    return values, "degree" if is_degree else "m" if units in _METERS else None
