"""Times and intervals of CF variables: bounds of time, and the ``start_time`` and ``valid_time`` of Rainfields."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config import DataError

if TYPE_CHECKING:
    import xarray as xr

# Reference times of forecasts are no times of the field.
_OTHER_NAMES = {"forecast_reference_time", "forecast_period"}
_NAMES = ("valid_time", "time")
_CALENDARS = {"", "standard", "gregorian", "proleptic_gregorian"}


@dataclass(frozen=True)
class Moments:
    """Ends of the intervals of the fields, UTC, and their starts; no starts if the fields are instantaneous."""

    ends: list[datetime]
    starts: list[datetime] | None


def read_moments(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> Moments:
    """Return the times of a field, one per frame.

    The interval is that of the bounds of time, or from ``start_time`` to ``valid_time``. A field whose ``cell_methods``
    contain ``time: point`` is instantaneous at its time.

    Raises:
        DataError: the field has no time, or times are missing or of another calendar.
    """
    time = _time(dataset, field, path)
    moments = np.atleast_1d(time.values)
    edges = (
        None if re.search(r"\btime: point\b", str(field.attrs.get("cell_methods", ""))) else _edges(dataset, time, path)
    )
    ends = _datetimes(moments if edges is None else edges[1], field, path)
    return Moments(ends, None if edges is None else _datetimes(edges[0], field, path))


def is_time(variable: "xr.DataArray") -> bool:
    """Return whether a variable is the time of fields, decoded."""
    return _is_named_time(variable) and np.issubdtype(variable.dtype, np.datetime64)


def _is_named_time(variable: "xr.DataArray") -> bool:
    standard = variable.attrs.get("standard_name", "")
    return standard == "time" or (variable.name in _NAMES and standard not in _OTHER_NAMES)


def _time(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> "xr.DataArray":
    """Return the time of a field: a coordinate, or a variable without dimensions.

    Raises:
        DataError: there is none, or it is not in the Gregorian calendar.
    """
    scalars = [name for name, variable in dataset.variables.items() if variable.ndim == 0]
    named = [
        dataset[name] for name in dict.fromkeys((*field.dims, *field.coords, *scalars)) if name in dataset.variables
    ]
    named = [variable for variable in named if _is_named_time(variable)]
    # A standard name is more certain than a name.
    named.sort(key=lambda variable: variable.attrs.get("standard_name") != "time")
    decoded = [variable for variable in named if is_time(variable)]
    if decoded:
        return decoded[0]
    for variable in named:
        about = {**variable.encoding, **variable.attrs}
        calendar = str(about.get("calendar", "")).lower()
        first: Any = np.ravel(variable.values)[:1]
        calendar = calendar or str(getattr(first[0] if len(first) else None, "calendar", ""))
        if calendar not in _CALENDARS:
            raise DataError(f"{path}: {variable.name} is in the calendar {calendar!r}; the Gregorian calendar is valid")
        raise DataError(
            f"{path}: {variable.name} has the units {about.get('units')!r} and cannot be decoded; units such as "
            "'minutes since 2024-01-01 00:00:00' are valid"
        )
    raise DataError(f"{path}: {field.name} has no time coordinate; the file must contain the time of the field")


def _edges(dataset: "xr.Dataset", time: "xr.DataArray", path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return starts and ends of the intervals, datetime64 ``[T]``; None without them."""
    name = str(time.attrs.get("bounds", "") or time.encoding.get("bounds", ""))
    if name in dataset.variables:
        bounds = np.atleast_2d(dataset[name].values)
        if bounds.shape != (time.size, 2) or not np.issubdtype(bounds.dtype, np.datetime64):
            raise DataError(
                f"{path}: {name}, the bounds of {time.name}, has shape {bounds.shape} and type {bounds.dtype}; it must "
                f"have two times for each of {time.size}"
            )
        return bounds.min(axis=-1), bounds.max(axis=-1)
    start = dataset.variables.get("start_time")
    if time.name == "valid_time" and start is not None and np.issubdtype(start.dtype, np.datetime64):
        starts, ends = np.atleast_1d(start.values), np.atleast_1d(time.values)
        if starts.shape == ends.shape:
            return starts, ends
    return None


def _datetimes(moments: np.ndarray, field: "xr.DataArray", path: Path) -> list[datetime]:
    if np.isnat(moments).any():
        raise DataError(f"{path}: the time of {field.name} contains missing values; every frame must have a time")
    milliseconds = np.round(moments.astype("datetime64[us]").astype(np.int64) / 1000.0)
    return [datetime.fromtimestamp(float(moment) / 1000.0, tz=UTC) for moment in milliseconds]
