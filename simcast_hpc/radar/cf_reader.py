"""Reader of CF netCDF and Zarr (xarray): rain rate, rain accumulation, reflectivity or VIL on a regular map grid.

The field is selected by units and standard name, its map by ``grid_mapping`` or one-dimensional latitude and longitude.
See :mod:`cf_times` for times and intervals, and :mod:`cf_packing` for missing values and no echo. Files of Rainfields
(Bureau of Meteorology, Australia) are CF with their own names of times.
"""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcast_hpc.config import DataError

from .cf_grid import find_dimension, read_grid
from .cf_groups import Opened, groups_below, opened
from .cf_packing import Packing
from .cf_times import Moments, as_datetimes, is_time, missing_numbers, read_moments, with_interval
from .cf_units import depth_factor, is_mass_per_area, rate_factor
from .declared_size import check_array
from .radar_frame import FieldChoice, QuantityError, RadarFrame, Unit
from .stated_unit import option_minutes

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger(__name__)
_RATE_NAMES = {"rainfall_rate", "lwe_precipitation_rate", "precipitation_flux", "rainfall_flux", "precipitation_rate"}
_DEPTH_NAMES = {"lwe_thickness_of_precipitation_amount", "precipitation_amount", "rainfall_amount",
                "thickness_of_rainfall_amount"}  # fmt: skip
_REFLECTIVITY = "equivalent_reflectivity_factor"
# Words of names of variables that describe a field and are not the field.
_ANCILLARY = {"quality", "flag", "error", "uncertainty", "std", "stdev", "deviation", "bias", "count", "probability"}
_ANCILLARY |= {"number_of_observations", "status_flag", "standard_error", "detection_minimum"}


def times(path: Path, choice: FieldChoice) -> list[datetime]:
    """Return the times of the field."""
    with _opened_group(path, choice.option("endpoint_url")) as (dataset, _):
        field, _, _ = _field(dataset, path, choice.unit)
        moments = read_moments(dataset, field, path)
        return as_datetimes(np.delete(moments.ends, missing_numbers(dataset, moments, path)))


def frames(path: Path, choice: FieldChoice) -> list[RadarFrame]:
    """Return one frame per time.

    Raises:
        DataError: the file contains no supported field, or its times, grid, packing or size are invalid.
    """
    with _opened_group(path, choice.option("endpoint_url")) as (dataset, stored):
        field, unit, factor = _field(dataset, path, choice.unit)
        moments = read_moments(dataset, field, path)
        if factor is None:
            moments = with_interval(moments, dataset, option_minutes(choice))
        skipped = set(missing_numbers(dataset, moments, path))
        rows, columns = (find_dimension(dataset, field, axis, path) for axis in ("y", "x"))
        variable = _checked(stored[str(field.name)], field, rows, columns, len(moments), path)
        packing = Packing(variable.attrs, variable.dtype, f"{path}: {field.name}")
        grid, north_up = read_grid(dataset, field, rows, columns, path)
        quantity = str(field.attrs.get("standard_name") or field.name)
        metadata = {"format": "CF netCDF", "quantity": quantity, **packing.description}
        result = []
        numbers = [k for k in moments.numbers(choice) if k not in skipped]
        for k, frame_codes in _codes(variable, numbers, f"{path}: {field.name}"):
            start, end = moments.interval(k)
            scale = _depth_factor(field, moments, k, path) if factor is None else factor
            values, no_echo = packing.decode(frame_codes)
            values = (values * scale).astype(np.float32)
            values[no_echo] = -np.inf if unit == "dBZ" else 0.0
            if len(moments) > 1 and np.isnan(values).all():
                logger.warning("%s: all pixels of %s are missing; the frame is skipped", path, end)
                continue
            field_values = np.ascontiguousarray(north_up(values))
            result.append(RadarFrame(field_values, unit, end, grid, path, metadata, start))
        return result


@contextmanager
def _opened_group(path: Path, endpoint_url: str) -> Iterator[Opened]:
    """Open the group that contains the field for the block: the root, or the only other one with a field.

    Raises:
        DataError: several groups contain a field.
    """
    with ExitStack() as stack:
        root = stack.enter_context(opened(path, endpoint_url=endpoint_url))
        if not _candidates(root.decoded)[0] and (group := _inner_group(path)):
            yield stack.enter_context(opened(path, group, endpoint_url=endpoint_url))
        else:
            yield root


def _inner_group(path: Path) -> str:
    """Return the group below the root that contains a field, empty if there is none.

    Raises:
        DataError: there are several.
    """
    found = []
    for group, names in groups_below(path).items():
        with opened(path, group) as (dataset, _):
            fields = [field for fields in _candidates(dataset)[0].values() for field, _, _ in fields]
            if any(field.name in names for field in fields):
                found.append(group)
    if len(found) > 1:
        raise DataError(
            f"{path} contains fields in the groups {', '.join(found)}; the field must be in the root or in one group"
        )
    return found[0] if found else ""


def _field(dataset: "xr.Dataset", path: Path, prefer: Unit) -> "tuple[xr.DataArray, Unit, float | None]":
    """Return the field, its unit and the factor to that unit; None for a depth, see :func:`_depth_factor`.

    Of several fields of one unit, a rate is preferred to an amount, then a standard name to none, then the first.

    Raises:
        DataError: there is none.
    """
    fields, descriptions = _candidates(dataset)
    order: tuple[Unit, ...] = (prefer, "mm/h", "dBZ", "kg/m^2")
    for unit in order:
        if candidates := fields.get(unit):
            candidates.sort(key=lambda field: (field[2] is None, not field[0].attrs.get("standard_name")))
            if len(candidates) > 1:
                names = [str(field[0].name) for field in candidates]
                logger.warning("%s contains %s in %s; %s is read", path, ", ".join(names), unit, names[0])
            return candidates[0]
    error = QuantityError if descriptions else DataError
    raise error(
        f"{path} contains {', '.join(descriptions) or 'no field'}; it must contain a rain rate (mm h-1), rain amount "
        "(mm), reflectivity (dBZ) or vertically integrated liquid (kg m-2), named by units and standard_name, such "
        "as rainfall_rate, precipitation_amount or equivalent_reflectivity_factor, or by units and a name with rain or "
        "precip and no standard_name; in time, cell_methods of an amount must be sum, of others mean or point"
    )


def _candidates(
    dataset: "xr.Dataset",
) -> "tuple[dict[Unit, list[tuple[xr.DataArray, Unit, float | None]]], list[str]]":
    """Return the fields by unit, and descriptions of all variables that have the dimensions of a field."""
    ancillary = {
        name
        for variable in dataset.variables.values()
        for name in str(variable.attrs.get("ancillary_variables")).split()
    }
    fields: dict[Unit, list[tuple[Any, Unit, float | None]]] = {}
    descriptions = []
    for name, field in dataset.data_vars.items():
        if field.ndim < 2 or "grid_mapping_name" in field.attrs:
            continue
        kind = None if name in ancillary or _is_ancillary(str(name), field) else _kind(str(name), field)
        statistic = None if kind is None else _other_statistic(field, *kind)
        is_of = f", cell_methods {field.attrs['cell_methods']!r}" if statistic else ""
        standard = str(field.attrs.get("standard_name", ""))
        named = f", standard_name {standard}" if kind is None and standard and name not in ancillary else ""
        descriptions.append(f"{name} [{field.attrs.get('units', 'no units')}{named}{is_of}]")
        if kind is not None and not statistic:
            fields.setdefault(kind[0], []).append((field, *kind))
    return fields, descriptions


def _is_ancillary(name: str, field: "xr.DataArray") -> bool:
    """Return whether a variable describes another one: a flag without units, a quality or an error."""
    words = f"{name} {field.attrs.get('standard_name', '')}".lower()
    has_only_flags = "flag_meanings" in field.attrs and not str(field.attrs.get("units", "")).strip("1 ")
    return has_only_flags or bool({*words.split(), *words.replace("_", " ").split()} & _ANCILLARY)


def _kind(name: str, field: "xr.DataArray") -> tuple[Unit, float | None] | None:
    units, standard = str(field.attrs.get("units", "")).strip(), str(field.attrs.get("standard_name", ""))
    words = f"{name} {standard} {field.attrs.get('long_name', '')}".lower().replace("_", " ")
    if units.lower() in ("dbz", "dbze", "dbz1") or standard == _REFLECTIVITY:
        return ("dBZ", 1.0) if units.lower() in ("dbz", "dbze", "db") else None
    is_rain = not standard and any(word in words for word in ("rain", "precip"))
    if (rate := rate_factor(units)) is not None and (standard in _RATE_NAMES or is_rain):
        return "mm/h", rate
    depth = depth_factor(units)
    if depth is None:
        return None
    if is_mass_per_area(units) and ("vertically integrated liquid" in words or "vil" in words.split()):
        return "kg/m^2", depth
    return ("mm/h", None) if standard in _DEPTH_NAMES or is_rain else None


def _other_statistic(field: "xr.DataArray", unit: Unit, factor: float | None) -> str:
    """Return the entry of ``cell_methods`` that makes a field something else than its quantity; empty if none does.

    A maximum in time is no mean rate, and a standard deviation is no rain. The maximum of reflectivity in a column is
    a product of weather services.
    """
    elsewhere = {"mean", "point", "median"} | {"dBZ": {"maximum"}, "kg/m^2": {"sum"}}.get(unit, set())
    methods = re.sub(r"\([^)]*\)", " ", str(field.attrs.get("cell_methods", ""))).lower()
    times = {"time"} | {str(name).lower() for name in field.dims if is_time(field[name])}
    for axes, method in re.findall(r"((?:\S+:\s*)+)(\w+)", methods):
        in_time = {"sum"} if factor is None else {"mean", "point"}
        if method not in (in_time if times & set(re.split(r":\s*", axes)) else elsewhere):
            return f"{axes}{method}"
    return ""


def _checked(
    stored: "xr.DataArray", field: "xr.DataArray", rows: str, columns: str, count: int, path: Path
) -> "xr.DataArray":
    """Return the stored variable ``[..., H, W]`` without its values.

    Raises:
        DataError: it has another dimension, or a number of fields other than ``count``, or is not numeric.
    """
    others = [name for name in field.dims if name not in (rows, columns)]
    long = [name for name in others if field.sizes[name] > 1 and not is_time(field[name])]
    if long:
        raise DataError(
            f"{path}: {field.name} has a dimension {long[0]} of size {field.sizes[long[0]]}; it must have size 1"
        )
    if stored.dtype.kind not in "iuf":
        raise DataError(f"{path}: {field.name} has the type {stored.dtype}; it must be numeric")
    if (fields := math.prod(field.sizes[name] for name in others)) != count:
        raise DataError(f"{path}: {field.name} has {fields} fields and {count} times")
    check_array([1, field.sizes[rows], field.sizes[columns]], stored.dtype.itemsize, f"{path}: {field.name}")
    return stored.transpose(*others, rows, columns)


def _codes(variable: "xr.DataArray", numbers: list[int], where: str) -> "Iterator[tuple[int, np.ndarray]]":
    """Yield the number and the stored values ``[H, W]`` of each field of ``numbers``, which ascend.

    The fields of a chunk are read together, and only chunks with one of these fields.

    Raises:
        DataError: a chunk, or the fields of one that are read together, are too large.
    """
    height, width = variable.shape[-2:]
    axis = next((name for name in variable.dims[:-2] if variable.sizes[name] > 1), None)
    sizes = variable.encoding.get("preferred_chunks") or {}
    length = int(sizes.get(axis, 1)) if axis is not None else 1
    chunk = [int(sizes.get(name, 1)) for name in variable.dims]
    for _, group in groupby(numbers, key=lambda number: number // max(1, length)):
        own = list(group)
        first, last = own[0], own[-1]
        check_array([last - first + 1, height, width], variable.dtype.itemsize, where)
        check_array(chunk, variable.dtype.itemsize, f"{where}, in a chunk,")
        block = variable if axis is None else variable[{axis: slice(first, last + 1)}]
        values = block.values.reshape(-1, height, width)
        yield from ((number, values[number - first]) for number in own)


def _depth_factor(field: "xr.DataArray", moments: Moments, number: int, path: Path) -> float:
    """Return the factor from a depth to mm/h by the interval of a time.

    Raises:
        DataError: the file contains no interval, or it does not end after its start.
    """
    units = str(field.attrs["units"])
    if moments.starts is None:
        raise DataError(
            f"{path}: {field.name} is an amount in {units} and its time has no bounds; the file must contain the "
            'accumulation interval, or the importer state it in minutes: --importer "cf interval=5" (or zarr)'
        )
    hours = (moments.ends[number] - moments.starts[number]) / np.timedelta64(1, "h")
    if not hours > 0:
        raise DataError(f"{path}: the interval of {field.name} spans {hours:g} hours; it must be above 0")
    return (depth_factor(units) or 1.0) / hours
