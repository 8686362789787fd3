"""Read issued forecasts: CF netCDF files and Zarr stores of ``simcast predict``, of all versions, packed or not."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.radar.radar_frame import RadarGrid, Unit
from simcast_hpc.storage.run_directory import file_hash

if TYPE_CHECKING:
    import xarray as xr

_UNITS: dict[str, Unit] = {"rainfall_rate": "mm/h", "reflectivity": "dBZ", "vertically_integrated_liquid": "kg/m^2"}
_AXES = (("y", "x"), ("latitude", "longitude"), ("rlat", "rlon"))
_PROBABILITY = "probability_of_exceedance"
_CREATED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ): simcast predict")
_NONE = ("", "none", "no", "0", "false")
# Bins of a probability whose number of members is unknown or above the limit.
_DEFAULT_BINS, _MOST_BINS = 10, 50


@dataclass(frozen=True)
class IssuedGrid:
    """Map of a forecast: projection as PROJ or WKT, and the centers of rows and columns in its unit."""

    projection: str
    y: np.ndarray
    x: np.ndarray
    is_in_degrees: bool

    def difference(self, grid: RadarGrid) -> str:
        """Return how the grid of a frame differs; empty if it is the same within a hundredth of a pixel."""
        shape = (len(self.y), len(self.x))
        if shape != grid.shape:
            return f"{grid.height} x {grid.width} pixels instead of {shape[0]} x {shape[1]}"
        if not _same_projection(self.projection, grid.projection):
            return f"projection {grid.projection!r} instead of {self.projection!r}"
        for name, own, other in (("y", self.y, grid.y), ("x", self.x, grid.x)):
            far = np.abs(own - other).max()
            if not far <= 0.01 * grid.spacing_x:
                unit = "degrees" if grid.unit == "degree" else "m"
                return (
                    f"{name} from {other[0]:.10g} to {other[-1]:.10g} {unit} instead of {own[0]:.10g} to {own[-1]:.10g}"
                )
        return ""


@dataclass(frozen=True, eq=False)
class IssuedForecast:
    """Metadata of an issued forecast.

    Attributes:
        path: netCDF file or Zarr store.
        issue: issue time, UTC.
        leads_minutes: lead times.
        unit: physical unit of the fields.
        grid: map of the fields.
        variable: name of the forecast field; that of the mean if members were not written; empty if there are only
            probabilities.
        members: number of members in the file; 1 for a single field.
        bins: highest index of the probability bins: the number of members behind the probabilities.
        thresholds: of the probabilities, in ``unit``; empty without.
        attributes: global attributes as text.
    """

    path: Path
    issue: datetime
    leads_minutes: tuple[float, ...]
    unit: Unit
    grid: IssuedGrid
    variable: str
    members: int
    bins: int
    thresholds: tuple[float, ...]
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def valid(self) -> list[datetime]:
        """The valid times."""
        return [self.issue + timedelta(minutes=lead) for lead in self.leads_minutes]

    @property
    def step_minutes(self) -> float:
        """Minutes between two lead times; with one lead time, this."""
        return self.leads_minutes[0] if len(self.leads_minutes) == 1 else self.leads_minutes[1] - self.leads_minutes[0]

    @property
    def fallback(self) -> str:
        """Why, or by which method, the forecast replaces that of the model; empty for the model's own forecast."""
        text = self.attributes.get("simcast_fallback", "").strip()
        return "" if text.lower() in _NONE else text

    @property
    def method(self) -> dict[str, str]:
        """Attributes that identify model, version and form of the forecast; forecasts of equal ones are one series."""
        names = {
            "model": "simcast_model", "run": "simcast_run", "stage": "simcast_stage",
            "weights": "simcast_weights_sha256", "version": "simcast_version",
            "postprocessing": "simcast_postprocessing", "sampling": "simcast_sampling",
        }  # fmt: skip
        method = {name: self.attributes.get(key, "") for name, key in names.items()}
        field_text = {"": "probabilities only"}.get(self.variable, "")
        if self.variable.endswith("_mean"):
            field_text = "ensemble mean"
        elif self.variable:
            field_text = f"{self.members} members" if self.members > 1 else "deterministic"
        leads = f"{len(self.leads_minutes)} x {self.step_minutes:g} min"
        fallback = "fallback" if self.fallback else ""
        return method | {"field": field_text, "leads": leads, "fallback": fallback, "unit": self.unit}

    @property
    def created(self) -> datetime | None:
        """Time at which the program wrote the forecast, from the attribute ``history``; None if it is not there."""
        found = _CREATED.search(self.attributes.get("history", ""))
        return datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) if found else None

    @property
    def inputs(self) -> int:
        """Number of input frames by the attributes, including interpolated ones; 0 if unknown."""
        try:
            named = len(json.loads(self.attributes.get("simcast_inputs", "[]")))
        except (ValueError, TypeError):
            return 0
        bridged = self.attributes.get("simcast_bridged", "none")
        return named + (0 if bridged in _NONE else len(bridged.split(",")))


@dataclass(frozen=True, eq=False)
class IssuedFields:
    """Fields of a forecast in its physical unit, NaN where missing: ``values`` ``[M, T, H, W]``, probabilities."""

    values: np.ndarray | None
    probability: np.ndarray | None


def read_issued(path: Path) -> IssuedForecast:
    """Return the metadata of an issued forecast.

    Raises:
        DataError: the file cannot be read, or is not a forecast of ``simcast predict``.
    """
    with _opened(path) as dataset:
        return _metadata(path, dataset)


def read_fields(forecast: IssuedForecast) -> IssuedFields:
    """Return the fields of an issued forecast.

    Raises:
        DataError: the file cannot be read any more.
    """
    with _opened(forecast.path) as dataset:
        values = probability = None
        try:
            if forecast.variable:
                values = np.asarray(dataset[forecast.variable].values)
                values = values if values.ndim == 4 else values[None]
            if _PROBABILITY in dataset:
                probability = np.asarray(dataset[_PROBABILITY].values)
        except Exception as error:  # the libraries do not document what they raise on damaged chunks
            raise DataError(f"{forecast.path} cannot be read: {type(error).__name__}: {error}") from error
    return IssuedFields(values, probability)


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of the files of a Zarr store."""
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for part in sorted(one for one in path.rglob("*") if one.is_file()):
        digest.update(f"{part.relative_to(path).as_posix()}\n{file_hash(part)}\n".encode())
    return digest.hexdigest()


class _opened:
    """Context manager that opens a data set with decoded packing, and turns any error into a DataError."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> "xr.Dataset":
        import xarray as xr

        engine = "zarr" if self._path.is_dir() else "h5netcdf"
        try:
            self._dataset = xr.open_dataset(self._path, engine=engine, decode_timedelta=False)
        except Exception as error:
            raise DataError(
                f"{self._path} cannot be read as a forecast: {type(error).__name__}: {error}; it may be damaged or "
                "not netCDF-4 or Zarr"
            ) from error
        return self._dataset

    def __exit__(self, *_: object) -> None:
        self._dataset.close()


def _metadata(path: Path, dataset: "xr.Dataset") -> IssuedForecast:
    # 1. Fields
    names = [name for base in _UNITS for name in (base, f"{base}_mean") if name in dataset]
    if "forecast_reference_time" not in dataset or "time" not in dataset or not (names or _PROBABILITY in dataset):
        raise DataError(
            f"{path} is not a forecast of simcast predict: it has no forecast_reference_time with time and one of "
            f"{', '.join(_UNITS)}"
        )
    variable = names[0] if names else ""
    shown = dataset[variable or _PROBABILITY]
    space = next((axes for axes in _AXES if shown.dims[-2:] == axes), None)
    if space is None:
        raise DataError(f"{path}: {shown.name} has the dimensions {shown.dims}; the last two must be one of {_AXES}")
    # 2. Times
    issue = _moment(dataset["forecast_reference_time"].values, path)
    valid = [_moment(one, path) for one in np.atleast_1d(dataset["time"].values)]
    leads = tuple(round((one - issue).total_seconds() / 60, 6) for one in valid)
    if not leads or list(leads) != sorted(set(leads)) or leads[0] <= 0:
        raise DataError(f"{path}: the lead times {list(leads)} minutes must be above 0 and ascending")
    # 3. Members, probabilities and map
    attributes = {str(key): str(text) for key, text in dataset.attrs.items()}
    members = dataset.sizes.get("realization", 1) if variable and not variable.endswith("_mean") else 1
    axis = str(dataset[_PROBABILITY].dims[0]) if _PROBABILITY in dataset else ""
    levels = dataset[axis] if axis.startswith("threshold") and axis in dataset.coords else None
    thresholds = () if levels is None else tuple(float(value) for value in np.atleast_1d(levels.values))
    unit = _UNITS[variable.removesuffix("_mean")] if variable else _unit_of(path, levels)
    crs = dataset["crs"].attrs if "crs" in dataset else {}
    projection = str(crs.get("proj4") or crs.get("crs_wkt") or crs.get("spatial_ref") or "")
    rows, columns = (np.asarray(dataset[axis].values, np.float64) for axis in space)
    grid = IssuedGrid(projection, rows, columns, space != ("y", "x"))
    return IssuedForecast(
        path, issue, leads, unit, grid, variable, members, _bins(members, attributes), thresholds, attributes
    )


def _unit_of(path: Path, levels: "xr.DataArray | None") -> Unit:
    spelled = "" if levels is None else str(levels.attrs.get("units", ""))
    by_units: dict[str, Unit] = {"mm h-1": "mm/h", "dBZ": "dBZ", "kg m-2": "kg/m^2"}
    if spelled not in by_units:
        raise DataError(f"{path}: the threshold has units {spelled!r}; expected one of {', '.join(by_units)}")
    return by_units[spelled]


def _bins(members: int, attributes: dict[str, str]) -> int:
    if members < 2:
        try:
            members = int(json.loads(attributes.get("simcast_sampling", "{}")).get("members", 0))
        except (ValueError, TypeError, AttributeError):
            members = 0
    return members if 2 <= members <= _MOST_BINS else _DEFAULT_BINS


def _moment(value: Any, path: Path) -> datetime:
    stamp = np.datetime64(np.asarray(value).item() if np.asarray(value).dtype == object else value, "us")
    if np.isnat(stamp):
        raise DataError(f"{path} has an empty time")
    return stamp.astype(datetime).replace(tzinfo=UTC)


@lru_cache(maxsize=64)
def _same_projection(first: str, second: str) -> bool:
    if first == second:
        return True
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        return CRS.from_user_input(first).equals(CRS.from_user_input(second), ignore_axis_order=True)
    except CRSError:
        return False
