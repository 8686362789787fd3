"""Attributes of ODIM HDF5 files: inheritance between levels, legal string and array forms, times and sentinels."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

logger = logging.getLogger(__name__)
_TRUE = ("true", "1", "1.0", "yes")
_DATE, _TIME = re.compile(r"[0-9]{8}"), re.compile(r"[0-9]{4}([0-9]{2})?")
_SECONDS_LENGTH = 6


@dataclass(frozen=True, eq=False)
class OdimField:
    """A quantity of an ODIM file with its inherited attributes.

    Attributes:
        name: path of the data group, such as ``dataset1/data1``.
        data: stored values ``[H, W]``, an HDF5 dataset.
        what: attributes of ``what`` of the file, overridden by those of the dataset and of the data group.
        where: attributes of ``where``, inherited in the same way.
        how: attributes of ``how``, inherited in the same way.
    """

    name: str
    data: Any
    what: dict[str, Any]
    where: dict[str, Any]
    how: dict[str, Any]

    @property
    def quantity(self) -> str:
        """Return the ODIM name of the quantity, empty if the file contains none."""
        return text(self.what.get("quantity", ""))


def odim_fields(file: Any) -> list[OdimField]:
    """Return the data groups of a file in the order of their numbers; quality groups are skipped."""
    fields = []
    for dataset_name in _numbered(file, "dataset"):
        dataset = file[dataset_name]
        for data_name in _numbered(dataset, "data"):
            group = dataset[data_name]
            data = group.get("data")
            if not isinstance(data, h5py.Dataset):
                continue
            what, where, how = (
                {key: value for level in (file, dataset, group) for key, value in attributes_of(level, name).items()}
                for name in ("what", "where", "how")
            )
            fields.append(OdimField(f"{dataset_name}/{data_name}", data, what, where, how))
    return fields


def fields_of_dataset(fields: list[OdimField], number: int, path: Path) -> list[OdimField]:
    """Return the fields of ``datasetN``.

    Raises:
        DataError: the file contains no such dataset; names those that exist and their quantities.
    """
    chosen = [field for field in fields if field.name.startswith(f"dataset{number}/")]
    if not chosen:
        quantities: dict[str, list[str]] = {}
        for field in fields:
            quantities.setdefault(field.name.split("/")[0], []).append(field.quantity)
        existing = ", ".join(f"{name} ({', '.join(names)})" for name, names in quantities.items())
        raise DataError(f"{path} contains no field in dataset{number}; the datasets are {existing or 'none'}")
    return chosen


def working_fields(fields: list[OdimField], path: Path, *, log: bool = False) -> list[OdimField]:
    """Return the fields whose ``how/malfunc`` is not true; the others are logged.

    Raises:
        DataError: the attribute is true for all fields.
    """
    failed = [field for field in fields if text(field.how.get("malfunc", "")).lower() in _TRUE]
    if fields and len(failed) == len(fields):
        raise DataError(f"{path}: how/malfunc is true for all {len(failed)} fields; none can be used")
    if failed and log:
        logger.warning("%s: skipped %s, whose how/malfunc is true", path, ", ".join(field.name for field in failed))
    return [field for field in fields if field not in failed]


def attributes_of(group: Any, name: str) -> dict[str, Any]:
    """Return the attributes of the subgroup ``name`` as scalars; empty if the subgroup does not exist."""
    subgroup = group.get(name)
    if not isinstance(subgroup, h5py.Group):
        return {}
    scalars = {key: scalar(value) for key, value in subgroup.attrs.items()}
    return {key: value for key, value in scalars.items() if value is not None}


def scalar(value: Any) -> Any:
    """Return the element of an array of one element, and None for an empty attribute; decode strings."""
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    return text(value) if isinstance(value, bytes | str) else value


def text(value: Any) -> str:
    """Return a string attribute of fixed or variable length, also of one element, without padding."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    if isinstance(value, h5py.Empty):
        return ""
    decoded = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return decoded.rstrip("\x00").strip()


def number(attributes: Mapping[str, Any], name: str, path: Path, default: float | None = None) -> float | None:
    """Return a numeric attribute, or ``default`` if it is absent.

    Raises:
        DataError: the attribute is not one number.
    """
    if name not in attributes:
        return default
    try:
        return float(attributes[name])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: attribute {name} is {attributes[name]!r}; it must be one number") from error


def time_of(attributes: Mapping[str, Any], date: str, time: str, path: Path) -> datetime:
    """Return the UTC time of a date and a time attribute; the time contains 6 digits, or 4 without seconds.

    Raises:
        DataError: an attribute is absent or not of this form. A time that is stored as a number must have 6 digits,
            because a number has lost leading zeros.
    """
    day, clock = text(attributes.get(date, "")), text(attributes.get(time, ""))
    try:
        is_number = not isinstance(attributes.get(time, ""), str)
        if not _DATE.fullmatch(day) or not _TIME.fullmatch(clock) or (is_number and len(clock) < _SECONDS_LENGTH):
            raise ValueError("invalid number of digits")
        return datetime.strptime(day + clock.ljust(_SECONDS_LENGTH, "0"), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(
            f"{path}: what/{date} and what/{time} are {day + clock!r}; they must be YYYYMMDD and HHmmss or HHmm"
        ) from error


def sentinel_of(what: Mapping[str, Any], name: str, path: Path) -> Any:
    """Return ``nodata`` or ``undetect`` in the dtype of the attribute, also from a string; None if it is absent.

    Raises:
        DataError: the attribute is not one number.
    """
    value = number(what, name, path)
    return value if isinstance(what.get(name), str) else what.get(name)


def equals_sentinel(stored: np.ndarray, sentinel: Any) -> np.ndarray:
    """Return where the stored values equal a sentinel, compared in the less precise dtype of the two, bool ``[H, W]``.

    A sentinel that the integer dtype of the data cannot represent matches nothing. NaN matches NaN.
    """
    nothing = np.zeros(stored.shape, bool)
    if sentinel is None:
        return nothing
    if stored.dtype.kind in "iu":
        code = _integer(sentinel, stored.dtype)
        return stored == stored.dtype.type(code) if _fits(code, stored.dtype) else nothing
    if np.isnan(sentinel):
        return np.isnan(stored)
    own = np.asarray(sentinel).dtype
    dtype = own if own.kind == "f" and own.itemsize < stored.dtype.itemsize else stored.dtype
    with np.errstate(over="ignore"):
        return stored.astype(dtype, copy=False) == dtype.type(sentinel)


def check_sentinel(stored: np.ndarray, sentinel: Any, name: str) -> None:
    """Check that the integer dtype of the data can represent a sentinel; if not, it matches nothing and is logged.

    Raises:
        DataError: the data contain the value to which the sentinel is converted in this dtype, such as 255 for -1 in
            uint8. It may be the sentinel or a measurement.
    """
    if sentinel is None or stored.dtype.kind not in "iu":
        return
    code = _integer(sentinel, stored.dtype)
    if _fits(code, stored.dtype):
        return
    if code is not None:
        limits, codes = np.iinfo(stored.dtype), 2 ** (8 * stored.dtype.itemsize)
        converted = (code - limits.min) % codes + limits.min
        # A number far outside, such as -9999000, was never meant as a value of this dtype; 65535 has all bits set.
        is_near = abs(code) <= codes or (code & (code + 1)) == 0
        if is_near and (stored == converted).any():
            raise DataError(
                f"{name} is {code}, which {stored.dtype} cannot represent, and the data contain {converted}, to "
                f"which it is converted; it must be from {limits.min} to {limits.max}"
            )
    logger.warning("%s is %g, which %s cannot represent; no pixel has this value", name, sentinel, stored.dtype)


def _integer(sentinel: Any, dtype: np.dtype) -> int | None:
    """Return a sentinel as an integer, None if it is none; a float64 that rounds the largest integer is that one."""
    if not np.isfinite(sentinel) or int(sentinel) != sentinel:
        return None
    largest = int(np.iinfo(dtype).max)
    return largest if float(sentinel) == float(largest) else int(sentinel)


def _fits(code: int | None, dtype: np.dtype) -> bool:
    limits = np.iinfo(dtype)
    return code is not None and limits.min <= code <= limits.max


def _numbered(group: Any, prefix: str) -> list[str]:
    """Return the subgroups ``prefix1``, ``prefix2``, ... in the order of their numbers."""
    matches = [re.fullmatch(rf"{prefix}(\d+)", name) for name in group]
    names = [match[0] for match in sorted(filter(None, matches), key=lambda match: int(match[1]))]
    return [name for name in names if isinstance(group.get(name), h5py.Group)]
