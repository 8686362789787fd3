"""License and attribution that radar files state: HDF5, ODIM, netCDF-3 and netCDF-4, and Zarr in folders."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.data.hdf5_guard import HDF5_ERRORS

_LICENSE, _ATTRIBUTION = ("license", "licence"), ("attribution", "institution")  # of the CF and ACDD conventions
_LONGEST = 500  # characters
_MOST_BYTES = 1 << 20  # of a header
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8}  # bytes of a value of the types of netCDF-3


def stated_terms(path: str) -> tuple[str, str]:
    """Return license and attribution of a file or Zarr store, empty if it states none.

    The attribution is the global attribute ``attribution`` or ``institution``; of ODIM files without them, the
    identifiers of the center in ``what/source``, such as ``ORG:247``.
    """
    source = ""
    try:
        if (folder := Path(path)).is_dir():
            attributes = _zarr_attributes(folder)
        elif _starts_with_cdf(path):
            attributes = _classic_attributes(path)
        else:
            with h5py.File(path, "r") as file:
                attributes = dict(file.attrs)
                if "what" in file:
                    source = _first(dict(file["what"].attrs), ("source",))
    except (*HDF5_ERRORS, ValueError, TypeError, struct.error):
        return "", ""
    return _first(attributes, _LICENSE), _first(attributes, _ATTRIBUTION) or (f"ODIM source {source}" if source else "")


def _first(attributes: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        value = attributes.get(name, "")
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if isinstance(text, str) and text.strip():
            return " ".join(text.split())[:_LONGEST]
    return ""


def _zarr_attributes(folder: Path) -> dict[str, Any]:
    """Return the attributes of the root group of a Zarr store of format 2 or 3."""
    for name in (".zattrs", "zarr.json"):
        if (path := folder / name).is_file() and path.stat().st_size <= _MOST_BYTES:
            content = json.loads(path.read_text(encoding="utf-8"))
            attributes = content.get("attributes", {}) if name == "zarr.json" else content
            return attributes if isinstance(attributes, dict) else {}
    return {}


def _starts_with_cdf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(3) == b"CDF"


def _classic_attributes(path: str) -> dict[str, Any]:
    """Return the global text attributes of a netCDF-3 file (CDF-1 and CDF-2), from its header.

    Raises:
        struct.error: the header is damaged.
    """
    with open(path, "rb") as file:
        header = file.read(_MOST_BYTES)
    at = 8  # magic number and number of records

    def number() -> int:
        nonlocal at
        (value,) = struct.unpack_from(">i", header, at)
        at += 4
        if value < 0:
            raise struct.error("a negative count")
        return value

    def padded_bytes(count: int) -> bytes:
        nonlocal at
        part = header[at : at + count]
        at += -(-count // 4) * 4
        return part

    # 1. Dimensions
    _, count = number(), number()
    for _ in range(count):
        padded_bytes(number())
        number()
    # 2. Global attributes
    attributes: dict[str, Any] = {}
    _, count = number(), number()
    for _ in range(count):
        name = padded_bytes(number()).decode("utf-8", "replace")
        kind, length = number(), number()
        content = padded_bytes(length * _SIZES.get(kind, 1))
        if kind == 2:
            attributes[name] = content
    return attributes
