"""Reader of ODIM HDF5 composites and Cartesian images (OPERA data information model, EUMETNET).

Attributes are inherited from the file by its datasets, and by their data groups. The values of ``undetect`` are no
echo, those of ``nodata`` are missing; a value that is both is no echo.
"""

import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .odim_attributes import (
    OdimField,
    attributes_of,
    check_sentinel,
    equals_sentinel,
    fields_of_dataset,
    number,
    odim_fields,
    sentinel_of,
    text,
    time_of,
    working_fields,
)
from .odim_grid import odim_grid
from .radar_frame import FieldChoice, QuantityError, RadarFrame, Unit

logger = logging.getLogger(__name__)

# Quantities in order of preference per unit: rates before accumulations, measured before derived.
_QUANTITIES: dict[Unit, tuple[str, ...]] = {
    "mm/h": ("RATE", "ACRR", "DBZH"),
    "dBZ": ("DBZH", "RATE", "ACRR"),
    "kg/m^2": ("RATE", "ACRR", "DBZH"),  # none is in kg/m^2; frame_encoding rejects the unit
}
_UNIT: dict[str, Unit] = {"RATE": "mm/h", "ACRR": "mm/h", "DBZH": "dBZ"}
# Products whose prodpar is a height or an elevation.
_LEVELS = ("CAPPI", "PCAPPI", "PPI")


def object_of(file: Any) -> str:
    """Return the object type of an ODIM file, such as ``COMP`` (composite), ``IMAGE`` or ``PVOL`` (polar volume)."""
    return text(attributes_of(file, "what").get("object", ""))


def times(path: Path, choice: FieldChoice) -> list[datetime]:
    """Return the end of the interval of an accumulation, and the nominal time of another composite."""
    with h5py.File(path, "r") as file:
        return [_interval(file, select_field(_fields(file, path), choice, path), path)[1]]


def nominal_time(file: Any, path: Path) -> datetime:
    """Return the nominal time of an ODIM file.

    Raises:
        DataError: the file contains none.
    """
    return time_of(attributes_of(file, "what"), "date", "time", path)


def frames(path: Path, choice: FieldChoice) -> list[RadarFrame]:
    """Return the rain rate or reflectivity of the composite."""
    with h5py.File(path, "r") as file:
        field = select_field(_fields(file, path), choice, path, log=True)
        start, time = _interval(file, field, path)
        values = physical_values(field, path)
        metadata: dict[str, Any] = {"format": "ODIM HDF5", "quantity": field.quantity, "group": field.name}
        metadata |= {"stored_type": str(field.data.dtype), "gain": number(field.what, "gain", path, 1.0)}
        metadata["offset"] = number(field.what, "offset", path, 0.0)
    if start is not None and field.quantity == "ACRR":
        values = values * np.float32(3600.0 / (time - start).total_seconds())
    grid = odim_grid(field.where, values.shape, path)
    return [RadarFrame(values, _UNIT[field.quantity], time, grid, path, metadata, start)]


def _fields(file: Any, path: Path) -> list[OdimField]:
    object_type = object_of(file)
    if object_type not in ("COMP", "IMAGE"):
        raise DataError(
            f"{path} is an ODIM object {object_type!r}; it must be a composite (COMP) or a Cartesian image (IMAGE)"
        )
    return odim_fields(file)


def _interval(file: Any, field: OdimField, path: Path) -> tuple[datetime | None, datetime]:
    """Return the interval of an accumulation, or None and the nominal time of another field.

    The rain rate of an accumulation product (``RR``) is the mean over the interval.

    Raises:
        DataError: a time is absent or invalid, or the interval ends before it starts.
    """
    is_mean_rate = field.quantity == "RATE" and text(field.what.get("product", "")).upper() == "RR"
    if field.quantity != "ACRR" and not is_mean_rate:
        return None, nominal_time(file, path)
    start, end = (time_of(field.what, f"{name}date", f"{name}time", path) for name in ("start", "end"))
    if start >= end:
        raise DataError(f"{path}: the accumulation interval starts at {start} and ends at {end}; the end must be later")
    return start, end


def select_field(fields: list[OdimField], choice: FieldChoice, path: Path, *, log: bool = False) -> OdimField:
    """Return the field of the preferred quantity: of several the lowest level, or the first, which is logged.

    Raises:
        DataError: the file, or the dataset that was chosen, contains no supported quantity.
    """
    if choice.dataset is not None:
        fields = fields_of_dataset(fields, choice.dataset, path)
    fields = working_fields(fields, path, log=log)
    found = sorted({field.quantity for field in fields})
    quantity = next((name for name in _QUANTITIES[choice.unit] if name in found), None)
    if quantity is None:
        raise QuantityError(f"{path} contains the quantities {found}; it must contain RATE, ACRR or DBZH")
    candidates = [field for field in fields if field.quantity == quantity]
    levels = [level for field in candidates if (level := _level(field)) is not None]
    comparable = len(levels) == len(candidates) and len({text(field.what["product"]) for field in candidates}) == 1
    chosen = candidates[int(np.argmin(levels))] if comparable else candidates[0]
    if len(candidates) > 1 and log:
        logger.warning(
            "%s contains %s in %s; %s is read (%s), --dataset N selects",
            path,
            quantity,
            ", ".join(field.name for field in candidates),
            chosen.name,
            f"lowest prodpar, {min(levels):g}" if comparable and levels.count(min(levels)) == 1 else "the first",
        )
    return chosen


def _level(field: OdimField) -> float | None:
    """Return the height or elevation of a field; None if it is not of a product at one level."""
    try:
        level = float(field.what["prodpar"]) if text(field.what.get("product", "")) in _LEVELS else np.nan
    except (KeyError, TypeError, ValueError):
        return None
    return level if np.isfinite(level) else None


def physical_values(field: OdimField, path: Path) -> np.ndarray:
    """Return physical values, float32 ``[H, W]``: NaN where missing, no echo as 0 or, in dBZ, minus infinity.

    Raises:
        DataError: the field is not a two-dimensional array of numbers, or gain or offset is invalid.
    """
    data, what = field.data, field.what
    if data.ndim != 2 or data.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: {field.name} has shape {data.shape} and type {data.dtype}; it must be two-dimensional and numeric"
        )
    gain, offset = number(what, "gain", path, 1.0), number(what, "offset", path, 0.0)
    if gain is None or offset is None or not np.isfinite([gain, offset]).all() or gain == 0:
        raise DataError(f"{path}: {field.name} has gain {gain} and offset {offset}; both must be finite, gain not 0")
    stored = data[...]
    if "gain" not in what and stored.dtype.kind in "iu":
        logger.warning("%s: %s is of type %s without a gain; 1 is used", path, field.name, stored.dtype)
    # Floats have NaN, and a sentinel among them is outside the valid values of a frame; any integer is a measurement.
    for name, meaning in (("nodata", "missing"), ("undetect", "without echo")):
        if name not in what and stored.dtype.kind in "iu":
            logger.warning(
                "%s: %s is of type %s without %s; no pixel is %s", path, field.name, stored.dtype, name, meaning
            )
    nodata, undetect = (sentinel_of(what, name, path) for name in ("nodata", "undetect"))
    check_sentinel(stored, nodata, f"{path}: nodata of {field.name}")
    check_sentinel(stored, undetect, f"{path}: undetect of {field.name}")
    no_echo = -np.inf if field.quantity == "DBZH" else 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        values = (stored * np.float64(gain) + offset).astype(np.float32)
    infinite = np.isposinf(values) if field.quantity == "DBZH" else np.isinf(values)
    values[infinite | equals_sentinel(stored, nodata)] = np.nan
    values[equals_sentinel(stored, undetect)] = no_echo
    return values
