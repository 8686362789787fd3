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
_DATE, _TIME = re.compile(r"\d{8}"), re.compile(r"\d{4}(\d{2})?")


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
            if not isinstance(group.get("data"), h5py.Dataset):
                continue
            what, where, how = (
                {key: value for level in (file, dataset, group) for key, value in attributes_of(level, name).items()}
                for name in ("what", "where", "how")
            )
            fields.append(OdimField(f"{dataset_name}/{data_name}", group["data"], what, where, how))
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
    if not isinstance(group.get(name), h5py.Group):
        return {}
    scalars = {key: scalar(value) for key, value in group[name].attrs.items()}
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
        DataError: an attribute is absent or not of this form.
    """
    day, clock = text(attributes.get(date, "")), text(attributes.get(time, ""))
    try:
        if not _DATE.fullmatch(day) or not _TIME.fullmatch(clock):
            raise ValueError("invalid number of digits")
        return datetime.strptime(day + clock.ljust(6, "0"), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(
            f"{path}: what/{date} and what/{time} are {day + clock!r}; they must be YYYYMMDD and HHmmss or HHmm"
        ) from error


def equals_sentinel(stored: np.ndarray, sentinel: Any) -> np.ndarray:
    """Return where the stored values equal a sentinel, compared in the less precise dtype of the two, bool ``[H, W]``.

    A sentinel that the integer dtype of the data cannot represent matches nothing. NaN matches NaN.
    """
    nothing = np.zeros(stored.shape, bool)
    if sentinel is None:
        return nothing
    if stored.dtype.kind in "iu":
        limits = np.iinfo(stored.dtype)
        valid = np.isfinite(sentinel) and limits.min <= sentinel <= limits.max and float(sentinel).is_integer()
        return stored == stored.dtype.type(int(sentinel)) if valid else nothing
    if np.isnan(sentinel):
        return np.isnan(stored)
    own = np.asarray(sentinel).dtype
    dtype = own if own.kind == "f" and own.itemsize < stored.dtype.itemsize else stored.dtype
    with np.errstate(over="ignore"):
        return stored.astype(dtype, copy=False) == dtype.type(sentinel)


def check_sentinel(stored: np.ndarray, sentinel: float, name: str) -> None:
    """Check that the integer dtype of the data can represent a sentinel; if not, it matches nothing and is logged.

    Raises:
        DataError: the data contain the value to which the sentinel is converted in this dtype, such as 255 for -1 in
            uint8. It may be the sentinel or a measurement.
    """
    if stored.dtype.kind not in "iu":
        return
    limits = np.iinfo(stored.dtype)
    if np.isfinite(sentinel) and float(sentinel).is_integer():
        if limits.min <= sentinel <= limits.max:
            return
        codes = 2 ** (8 * stored.dtype.itemsize)
        converted = (int(sentinel) - limits.min) % codes + limits.min
        # A number far outside, such as -9999000, was never meant as a value of this dtype; 65535 has all bits set.
        is_near = abs(sentinel) <= codes or (int(sentinel) & (int(sentinel) + 1)) == 0
        if is_near and (stored == converted).any():
            raise DataError(
                f"{name} is {sentinel:g}, which {stored.dtype} cannot represent, and the data contain {converted}, to "
                f"which it is converted; it must be from {limits.min} to {limits.max}"
            )
    logger.warning("%s is %g, which %s cannot represent; no pixel has this value", name, sentinel, stored.dtype)


def _numbered(group: Any, prefix: str) -> list[str]:
    """Return the subgroups ``prefix1``, ``prefix2``, ... in the order of their numbers."""
    matches = [re.fullmatch(rf"{prefix}(\d+)", name) for name in group]
    names = [match[0] for match in sorted(filter(None, matches), key=lambda match: int(match[1]))]
    return [name for name in names if isinstance(group.get(name), h5py.Group)]
