"""Times and intervals of CF variables: bounds of time, and the ``start_time`` and ``valid_time`` of Rainfields."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config import DataError

from .radar_frame import FieldChoice

if TYPE_CHECKING:
    import xarray as xr

# Reference times of forecasts are no times of the field.
_OTHER_NAMES = {"forecast_reference_time", "forecast_period"}
_NAMES = ("valid_time", "time")
_START, _END = "start_time", "valid_time"  # of the interval in Rainfields files
_CALENDARS = {"", "standard", "gregorian", "proleptic_gregorian"}
# UDUNITS: a number is the offset of the zone from UTC; of the names of zones only those of UTC are units.
_UNITS = re.compile(
    r"(?P<unit>[a-z]+)\s+since\s+(?P<date>-?\d{1,4}-\d{1,2}-\d{1,2}|\d{8})"
    r"(?:(?:\s*t\s*|\s+)(?P<clock>\d{1,2}(?::\d{1,2}(?::\d{1,2}(?:\.\d*)?)?)?|\d{4}(?:\d{2}(?:\.\d*)?)?))?"
    r"\s*(?P<zone>z|utc|gmt|(?:(?P<sign>[+-])|(?<=\s))(?P<hours>\d{1,2}):?(?P<minutes>\d{2})?)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Moments:
    """Ends of the intervals of the fields, UTC, and their starts; no starts if the fields are instantaneous.

    Both are datetime64 ``[T]`` in milliseconds: a store may contain millions of times.
    """

    ends: np.ndarray
    starts: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ends)

    def numbers(self, choice: FieldChoice) -> list[int]:
        """Return the numbers of the fields whose times are chosen."""
        if choice.times is None:
            return list(range(len(self)))
        chosen = np.array([time.astimezone(UTC).replace(tzinfo=None) for time in choice.times], "datetime64[ms]")
        return np.flatnonzero(np.isin(self.ends, chosen)).tolist()

    def interval(self, number: int) -> tuple[datetime | None, datetime]:
        """Return start and end of a field, aware UTC; no start if it is instantaneous or the interval is empty."""
        (end,) = as_datetimes(self.ends[number : number + 1])
        if self.starts is None or self.starts[number] == self.ends[number]:
            return None, end
        return as_datetimes(self.starts[number : number + 1])[0], end


def as_datetimes(moments: np.ndarray) -> list[datetime]:
    """Return datetime64 ``[T]`` as aware UTC times."""
    return [time.replace(tzinfo=UTC) for time in moments.astype("datetime64[ms]").tolist()]


def read_moments(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> Moments:
    """Return the times of a field, one per frame.

    The interval is that of the bounds of time, or from ``start_time`` to ``valid_time``. A field whose ``cell_methods``
    contain ``time: point`` is instantaneous at its time.

    Raises:
        DataError: the field has no time, or times are missing or of another calendar.
    """
    time = _time(dataset, field, path)
    moments = _decoded(time, path)
    edges = (
        None if re.search(r"\btime: point\b", str(field.attrs.get("cell_methods", ""))) else _edges(dataset, time, path)
    )
    ends = _milliseconds(moments if edges is None else edges[1], field, path)
    return Moments(ends, None if edges is None else _milliseconds(edges[0], field, path))


def with_interval(moments: Moments, dataset: "xr.Dataset", minutes: float | None) -> Moments:
    """Return moments with starts for an amount without bounds.

    The interval is ``minutes``, or the cadence in data sets of mlcast, whose amounts are those of a time step and end
    at their time.
    """
    if moments.starts is not None:
        return moments
    if minutes is not None:
        return Moments(moments.ends, moments.ends - np.timedelta64(round(minutes * 60_000), "ms"))
    is_mlcast = any(str(name).lower().startswith("mlcast") for name in dataset.attrs)
    if not is_mlcast or len(moments) < 2:
        return moments
    steps, counts = np.unique(np.diff(np.sort(moments.ends)), return_counts=True)
    return Moments(moments.ends, moments.ends - steps[counts.argmax()])


def missing_numbers(dataset: "xr.Dataset", moments: Moments, path: Path) -> list[int]:
    """Return the numbers of the fields whose times are listed in ``missing_times``, as data sets of mlcast have it."""
    if "missing_times" not in dataset.variables or not _is_since(dataset["missing_times"]):
        return []
    missing = _decoded(dataset["missing_times"], path)
    return np.flatnonzero(np.isin(moments.ends, missing[~np.isnat(missing)].astype("datetime64[ms]"))).tolist()


def is_time(variable: "xr.DataArray") -> bool:
    """Return whether a variable is the time of fields."""
    return _is_named_time(variable) and _is_since(variable)


def _is_since(variable: "xr.DataArray | xr.Variable") -> bool:
    return bool(re.search(r"\ssince\s", str(variable.attrs.get("units", "")).lower()))


def _decoded(
    variable: "xr.DataArray | xr.Variable", path: Path, attributes: "dict[str, Any] | None" = None
) -> np.ndarray:
    """Return a variable in a unit of time since a date as datetime64, in UTC, at least one-dimensional.

    Args:
        variable: with ``units`` and ``calendar``.
        path: named in messages.
        attributes: with ``units`` and ``calendar`` for a variable that has no units.

    Raises:
        DataError: the calendar is not the Gregorian one, the units are not a time since a date in UTC or with an
            offset from it as a number, or the numbers are no dates.
    """
    import xarray as xr

    about = variable.attrs if "units" in variable.attrs else (attributes or {})
    name, units, calendar = getattr(variable, "name", "time"), str(about.get("units", "")), about.get("calendar", "")
    if str(calendar).lower() not in _CALENDARS:
        raise DataError(f"{path}: {name} is in the calendar {calendar!r}; the Gregorian calendar is valid")
    match = _UNITS.fullmatch(units.strip().lower())
    try:
        if match is None or {**variable.encoding, **variable.attrs}.get("scale_factor") == 0:
            raise ValueError("not a time since a date")
        zone = f"{match['sign'] or '+'}{int(match['hours']):02d}:{match['minutes'] or '00'}" if match["hours"] else ""
        date, clock = (match[part] or "" for part in ("date", "clock"))
        if date.isdecimal():
            date = f"{date[:4]}-{date[4:6]}-{date[6:]}"
        clock = f"{clock[:2]}:{clock[2:4]}:{clock[4:] or '00'}" if clock[:4].isdecimal() and len(clock) > 3 else clock
        clock = clock or "0"
        clock = clock + ":00" if ":" not in clock else clock
        text = f"{match['unit']} since {date} {clock}{zone}"
        stored = xr.Variable("t", np.ravel(variable.values), {"units": text, "calendar": calendar or "standard"})
        moments = xr.decode_cf(xr.Dataset({"moments": stored}))["moments"].values
        if not np.issubdtype(moments.dtype, np.datetime64):
            raise ValueError("not dates")
    except Exception as error:  # xarray does not document what it raises
        raise DataError(
            f"{path}: {name} has the units {units!r} and cannot be decoded; units such as 'minutes since 2024-01-01 "
            "00:00:00' are valid, in UTC or with an offset such as +02:00"
        ) from error
    return moments.reshape(np.shape(np.atleast_1d(variable.values)))


def _is_named_time(variable: "xr.DataArray") -> bool:
    standard = variable.attrs.get("standard_name", "")
    return standard == "time" or (variable.name in _NAMES and standard not in _OTHER_NAMES)


def _time(dataset: "xr.Dataset", field: "xr.DataArray", path: Path) -> "xr.DataArray":
    """Return the time of a field: a coordinate, or a variable without dimensions if the field has none.

    A ``start_time`` without bounds is not the time of a field, but the start of its interval.

    Raises:
        DataError: there is none, or there are several that differ.
    """
    # 1. Coordinates of the field, else variables without dimensions
    linked = {name.rpartition("/")[2] for name in str({**field.encoding, **field.attrs}.get("coordinates", "")).split()}
    scalars = [str(name) for name, variable in dataset.variables.items() if variable.ndim == 0]
    candidates = [
        variable
        for name in dict.fromkeys((*field.dims, *field.coords, *scalars))
        if name in dataset.variables
        and _is_named_time(variable := dataset[name])
        and not (name == _START and name not in field.dims and _bounds_name(variable) not in dataset.variables)
    ]
    coordinates = [one for one in candidates if one.name in field.dims or one.name in linked]
    candidates = [one for one in coordinates or candidates if _is_since(one)] or candidates
    if not candidates:
        raise DataError(f"{path}: {field.name} has no time coordinate; the file must contain the time of the field")
    # 2. A standard name is more certain than a name.
    standard = [one for one in candidates if one.attrs.get("standard_name") == "time"]
    first, *others = sorted(standard or candidates, key=lambda one: (one.name not in field.dims, one.name != _END))
    moments = _decoded(first, path)
    for other in others if standard else []:
        if not np.isin(_decoded(other, path), moments).all():
            raise DataError(
                f"{path}: {first.name} and {other.name} of {field.name} both have the standard_name time and differ; "
                "one time must be that of the field"
            )
    return first


def _edges(dataset: "xr.Dataset", time: "xr.DataArray", path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return starts and ends of the intervals, datetime64 ``[T]``; None without them."""
    name = _bounds_name(time)
    if name in dataset.variables:
        bounds = np.atleast_2d(_decoded(dataset[name], path, {**time.encoding, **time.attrs}))
        if bounds.shape != (time.size, 2):
            raise DataError(
                f"{path}: {name}, the bounds of {time.name}, has shape {bounds.shape}; it must have two times for each "
                f"of {time.size}"
            )
        return bounds.min(axis=-1), bounds.max(axis=-1)
    if time.name == _END and _START in dataset.variables and _is_since(dataset[_START]):
        starts, ends = _decoded(dataset[_START], path), _decoded(time, path)
        if starts.shape == ends.shape:
            return starts, ends
    return None


def _bounds_name(time: "xr.DataArray") -> str:
    return str(time.attrs.get("bounds", "") or time.encoding.get("bounds", "")).rpartition("/")[2]


def _milliseconds(moments: np.ndarray, field: "xr.DataArray", path: Path) -> np.ndarray:
    """Return times rounded to milliseconds; floating-point numbers of days or hours are not exact.

    Raises:
        DataError: a time is missing, or outside of the years 1 to 9999.
    """
    if np.isnat(moments).any():
        raise DataError(f"{path}: the time of {field.name} contains missing values; every frame must have a time")
    microseconds = moments.astype("datetime64[us]").astype(np.int64)
    rounded = np.round(microseconds / 1000.0).astype(np.int64).astype("datetime64[ms]")
    if rounded.size and not (
        np.datetime64("0001-01-01") <= rounded.min() <= rounded.max() < np.datetime64("9999-12-31")
    ):
        raise DataError(
            f"{path}: the times of {field.name} are from {rounded.min()} to {rounded.max()}; years 1 to 9999 are valid"
        )
    return rounded
