"""Mutants of files: of their bytes, and for HDF5 of their attributes and datasets, which byte flips seldom reach."""

import contextlib
import io
import struct
from typing import Any, TypeVar

import h5py
import numpy as np

_T = TypeVar("_T")
_HUGE = (0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 40, 0x80000000, 1 << 16)
_NAMES = [
    "gain", "offset", "nodata", "undetect", "quantity", "date", "time", "startdate", "starttime", "enddate",
    "endtime", "product", "prodpar", "projdef", "xsize", "ysize", "xscale", "yscale", "LL_lon", "LL_lat", "UR_lon",
    "UR_lat", "UL_lon", "LR_lat", "object", "Conventions", "elangle", "nrays", "nbins", "rscale", "rstart",
    "a1gate", "lon", "lat", "height", "task", "malfunc", "scale_factor", "add_offset", "_FillValue",
    "missing_value", "valid_range", "valid_min", "valid_max", "flag_values", "flag_meanings", "units", "calendar",
    "standard_name", "grid_mapping", "bounds", "axis", "_Unsigned", "DIMENSION_LIST", "REFERENCE_LIST", "CLASS",
    "NAME", "geo_pixel_size_x", "geo_row_offset", "geo_dim_pixel", "calibration_formulas",
    "calibration_missing_data", "product_datetime_end", "image_geo_parameter", "grid_mapping_name",
]  # fmt: skip
_VALUES: tuple[Any, ...] = (
    0, 1, -1, 255, 2**31 - 1, -(2**63), 2**63 - 1, np.uint64(2**64 - 1), np.uint8(255), 0.0, -0.0, 1e-320, 1e308,
    -1e308, float("nan"), float("inf"), -float("inf"), np.float32(3.4e38), np.float16(6e4), True,
    "", "0", "nan", "1e999", "20241126", "010000", "00000000", "99999999", "240000", "005960", "\x00", "é", "a" * 3000,
    "9" * 3000, " " * 3000, "GEO=1*PV+0", "GEO=" + "1" * 500 + "*PV", "+proj=longlat", "+proj=laea +lat_0=1e300",
    "+proj=pipeline +step", "EPSG:4326", "PROJCS[", "PVOL", "COMP", "SCAN", "IMAGE", "DBZH", "RATE", "ACRR", "VRADH",
    "mm", "mm h-1", "dBZ", "kg m-2", "kg m-2 s-1", "m s-1", "days since 1-1-1", "seconds since 9999-12-31",
    "months since 0", "360_day", "noleap", "latitude_longitude", "polar_stereographic", "time", "x", "crs", "true",
    "26-NOV-2024;01:00:00",
    np.bytes_(b"\xff\xfe"), np.array([], np.float64), np.array([1.0, 2.0]), np.array([[0]], np.int8),
    np.array([b"a", b"b"]), np.zeros(1000, np.uint8), np.array(1, np.complex128), h5py.Empty("f4"), h5py.Empty("S1"),
)  # fmt: skip


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a copy with one to four kinds of damage."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        size, kind = len(data), rng.integers(7)
        if size < 8:
            break
        # Headers are small compared with fields, and more interesting.
        at = int(rng.integers(size if rng.random() < 0.5 else min(size, 2048)))
        if kind == 0:
            for position in rng.integers(size, size=rng.integers(1, 20)):
                data[position] = rng.integers(256)
        elif kind == 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:  # a partial transfer into a file of full size
            data[at:] = bytes(size - at)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            number = struct.pack("<Q" if rng.random() < 0.5 else ">Q", _HUGE[rng.integers(len(_HUGE))])
            data[at : at + 8] = number if rng.random() < 0.5 else number[-4:]
        elif kind == 5:
            data[at:at] = data[at : at + int(rng.integers(1, 512))]
        else:
            other, length = int(rng.integers(size)), int(rng.integers(1, 256))
            data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    return bytes(data)


class _Recipe:
    """Choices that a byte string determines."""

    def __init__(self, recipe: bytes):
        self._rest = list(recipe[:128])

    def __bool__(self) -> bool:
        return bool(self._rest)

    def number(self) -> int:
        return self._rest.pop(0) if self._rest else 0

    def choice(self, among: "tuple[_T, ...] | list[_T]") -> _T:
        return among[self.number() % len(among)]


def restructured(content: bytes, recipe: bytes) -> bytes:
    """Return an HDF5 file with attributes and datasets changed as a byte string determines."""
    buffer, choices = io.BytesIO(content), _Recipe(recipe)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = ["/"]
        file.visit(names.append)
        while choices:
            with contextlib.suppress(Exception):  # an invalid change is no change
                _change(file, choices.choice(names), choices)
    return buffer.getvalue()


def _change(file: h5py.File, name: str, choices: _Recipe) -> None:
    found: Any = file[name]
    kind = choices.number() % 10
    attributes = [*found.attrs, *_NAMES] if choices.number() % 4 == 0 else list(found.attrs) or _NAMES
    if kind < 5:
        found.attrs[choices.choice(attributes)] = choices.choice(_VALUES)
    elif kind == 5:
        del found.attrs[choices.choice(attributes)]
    elif kind == 6:
        del file[name]
    elif kind == 7:
        file.copy(name, choices.choice(["dataset2", "dataset1/data2", "dataset1/data1/quality1", "how", "rate2", "x2"]))
    elif kind == 8:
        target = choices.choice(["link", "dataset1/loop", "dataset3", "how"])
        file[target] = choices.choice([file[name], h5py.SoftLink(name), h5py.ExternalLink("/etc/passwd", "/")])
    elif isinstance(found, h5py.Dataset):
        shape = choices.choice(
            [(0,), (), (1,), (4, 6), (2, 4, 6), (6, 4), (1, 4, 6), (3, 3), (0, 6), (1 << 12, 1 << 10)]
        )
        dtype = choices.choice(["u1", "i1", "u2", ">u2", "i4", "u8", "f2", "f4", "f8", ">f8", "S4", "c8", "?"])
        attrs = dict(found.attrs)
        del file[name]
        options: dict[str, Any] = choices.choice([{}, {"compression": "gzip"}, {"fletcher32": True}]) if shape else {}
        created = file.create_dataset(name, shape, dtype, fillvalue=choices.choice([None, 0, 1]), **options)
        created.attrs.update(attrs)
