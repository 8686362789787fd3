"""Reader of ODIM HDF5 polar volumes and sweeps: the lowest sweep of one radar on a 1 km grid around it.

Each pixel takes the value of the gate at its position. No correction is applied; prefer the composite of the weather
service where one exists.
"""

import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .odim_attributes import OdimField, attributes_of, fields_of_dataset, number, odim_fields, text, working_fields
from .odim_reader import nominal_time, physical_values
from .polar_grid import MAX_RANGE, Sweep, to_grid
from .radar_frame import FieldChoice, QuantityError, RadarFrame

logger = logging.getLogger(__name__)
_MIN_RANGE = 2_000.0  # smaller: the length of a gate is not in meters
_MAX_START = 20_000.0  # larger: the start of the first gate is not in the unit of the file's version
_ELEVATIONS = (-5.0, 45.0)  # steeper sweeps are no map
_SAME_ELEVATION = 0.01
_QUANTITY = "DBZH"
_SEPARATORS = ", \t\r\n\x00"


def times(path: Path, choice: FieldChoice) -> list[datetime]:
    """Return the nominal time of the volume.

    Raises:
        QuantityError: the volume, or the dataset that was chosen, contains no reflectivity.
    """
    with h5py.File(path, "r") as file:
        fields = odim_fields(file)
        _of_quantity(fields if choice.dataset is None else fields_of_dataset(fields, choice.dataset, path), path)
        return [nominal_time(file, path)]


def frames(path: Path, choice: FieldChoice) -> list[RadarFrame]:
    """Return the reflectivity of the lowest sweep that contains it, or of the dataset that was chosen.

    Sweeps whose ``how/malfunc`` is true are skipped.

    Raises:
        DataError: no sweep can be used, or its geometry is absent or invalid.
    """
    with h5py.File(path, "r") as file:
        time = nominal_time(file, path)
        field, elevation = _select(odim_fields(file), choice, path)
        sweep = _sweep(field, elevation, _start_unit(file), path)
        grid, values = to_grid(sweep, physical_values(field, path), _radar(field, path))
    metadata: dict[str, Any] = {
        "format": "polar volume",
        "quantity": field.quantity,
        "group": field.name,
        "elevation_degrees": elevation,
    }
    return [RadarFrame(values, "dBZ", time, grid, path, metadata)]


def _select(fields: list[OdimField], choice: FieldChoice, path: Path) -> tuple[OdimField, float]:
    """Return the field of the lowest sweep and its elevation; of several the first, which is logged."""
    if choice.dataset is not None:
        fields = fields_of_dataset(fields, choice.dataset, path)
    fields = working_fields(fields, path, log=True)
    candidates = _of_quantity(fields, path)
    # A vertical sweep, for calibration, is one of many volumes.
    is_flat = [_required(field, "elangle", _ELEVATIONS[0], 90.0, path) <= _ELEVATIONS[1] for field in candidates]
    candidates = [field for field, flat in zip(candidates, is_flat, strict=True) if flat] or candidates
    elevations = [_required(field, "elangle", *_ELEVATIONS, path) for field in candidates]
    lowest = min(elevations)
    equal = [k for k, one in enumerate(elevations) if one - lowest <= _SAME_ELEVATION]
    if len(equal) > 1:
        logger.warning(
            "%s contains %s at the lowest elevation %g degrees in %s; %s is read (the first), --dataset N selects",
            path,
            _QUANTITY,
            lowest,
            ", ".join(candidates[k].name for k in equal),
            candidates[equal[0]].name,
        )
    return candidates[equal[0]], elevations[equal[0]]


def _of_quantity(fields: list[OdimField], path: Path) -> list[OdimField]:
    """Return the fields of reflectivity.

    Raises:
        QuantityError: there is none.
    """
    if candidates := [field for field in fields if field.quantity == _QUANTITY]:
        return candidates
    quantities = sorted({field.quantity for field in fields})
    raise QuantityError(f"{path} is a polar volume of {quantities}; it must contain {_QUANTITY} (reflectivity)")


def _required(field: OdimField, name: str, low: float, high: float, path: Path) -> float:
    """Return an attribute of ``where``.

    Raises:
        DataError: it is absent or outside its limits.
    """
    value = number(field.where, name, path)
    if value is None or not low <= value <= high:
        raise DataError(f"{path}: where/{name} of {field.name} is {value}; it must be from {low:g} to {high:g}")
    return value


def _radar(field: OdimField, path: Path) -> tuple[float, float]:
    """Return longitude and latitude of the radar."""
    return _required(field, "lon", -180.0, 360.0, path), _required(field, "lat", -90.0, 90.0, path)


def _start_unit(file: Any) -> float:
    """Return the meters per unit of ``where/rstart``: kilometers up to version 2.3, meters from 2.4."""
    for words in (text(file.attrs.get("Conventions", "")), text(attributes_of(file, "what").get("version", ""))):
        if match := re.search(r"(\d+)[._](\d+)", words):
            return 1.0 if (int(match[1]), int(match[2])) >= (2, 4) else 1000.0
    return 1000.0


def _sweep(field: OdimField, elevation: float, start_unit: float, path: Path) -> Sweep:
    """Return the geometry of a sweep.

    Raises:
        DataError: it is absent, invalid, or contradicts the shape of the data.
    """
    # 1. Rays and gates
    shape = field.data.shape
    stated = tuple(number(field.where, name, path, size) for name, size in zip(("nrays", "nbins"), shape, strict=False))
    if len(shape) != 2 or stated != shape or 0 in shape:
        raise DataError(f"{path}: {field.name} has shape {shape}, but where/nrays and where/nbins are {stated}")
    rays, gates = shape
    # 2. Range
    gate = _required(field, "rscale", 1e-3, MAX_RANGE, path)
    start = (number(field.where, "rstart", path, 0.0) or 0.0) * start_unit
    if not -gate <= start <= _MAX_START:
        raise DataError(
            f"{path}: where/rstart of {field.name} is {start / start_unit:g} {'km' if start_unit > 1 else 'm'}; "
            f"it must be from {-gate / start_unit:g} to {_MAX_START / start_unit:g} "
            "(km up to ODIM 2.3, m from 2.4)"
        )
    if gate * gates < _MIN_RANGE:
        raise DataError(
            f"{path}: {gates} gates with where/rscale {gate:g} m in {field.name} reach only {gate * gates:g} m; "
            "rscale must be in meters"
        )
    # 3. Azimuth
    azimuths, half_widths = _azimuths(field, rays, path)
    return Sweep(elevation, azimuths, half_widths, start, gate, gates)


def _azimuths(field: OdimField, rays: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the centers of the rays in degrees, and the distance from the center that belongs to a ray, ``[rays]``.

    Row 0 starts at north plus ``how/astart``, if there are no start and stop azimuths of the rays. ``where/a1gate`` is
    only the ray that was measured first. A gap as wide as a ray is closed; pixels in a wider one are missing.
    """
    start, stop = (_array(field, name, rays, path) for name in ("startazA", "stopazA"))
    if start is None and "azangles" in field.how:
        start, stop = _azimuth_pairs(field, rays, path)
    if start is None and stop is not None:
        start = stop - np.median(_signed(np.diff(stop, prepend=stop[-1:])))
    if start is None:
        width = 360.0 / rays
        centers = (number(field.how, "astart", path, 0.0) or 0.0) + width * (np.arange(rays) + 0.5)
        return centers % 360.0, np.full(rays, width)
    if stop is None:
        steps = _signed(np.diff(start, append=start[:1]))
        turn = np.full(rays, np.median(steps))
    else:
        turn = _signed(stop - start)
    centers = (start + turn / 2) % 360.0
    spacing = np.median(np.abs(_signed(np.diff(centers)))) if rays > 1 else 0.0
    return centers, np.maximum(np.abs(turn), spacing)


def _array(field: OdimField, name: str, size: int, path: Path) -> np.ndarray | None:
    """Return an attribute of ``how`` with one number per ray, None if it is absent."""
    if name not in field.how:
        return None
    try:
        values = np.asarray(field.how[name], np.float64).ravel()
    except (TypeError, ValueError):
        values = np.array([])
    if values.shape != (size,) or not np.isfinite(values).all():
        raise DataError(f"{path}: how/{name} of {field.name} must contain {size} finite numbers, one per ray")
    return values


def _azimuth_pairs(field: OdimField, size: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return start and stop azimuths of ODIM 2.0: ``how/azangles`` contains ``start:stop`` of each ray."""
    stated = field.how["azangles"]
    # Some writers end the text, or each string of an array, with a comma.
    words = [text(word).strip(_SEPARATORS) for word in np.ravel(stated)]
    words = ",".join(words).strip(_SEPARATORS).split(",")
    try:
        pairs = np.array([word.split(":") for word in words]).astype(np.float64)
    except ValueError:
        pairs = np.array([])
    if pairs.shape != (size, 2) or not np.isfinite(pairs).all():
        raise DataError(f"{path}: how/azangles of {field.name} must contain {size} pairs start:stop, one per ray")
    return pairs[:, 0], pairs[:, 1]


def _signed(degrees: np.ndarray) -> np.ndarray:
    """Return angles from -180 to 180 degrees."""
    return (degrees + 180.0) % 360.0 - 180.0
