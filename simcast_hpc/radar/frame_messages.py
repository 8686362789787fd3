"""Messages between the reader process and its parent: a JSON header, followed by the bytes of the arrays.

A damaged file may have corrupted the process that sends, so nothing received is executed: the header contains only
JSON, an array only numbers, and every size is checked before memory is allocated.
"""

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from simcast_hpc.config import DataError

from .importer_choice import importer_from_mapping
from .projection_text import check_projection
from .radar_frame import FieldChoice, RadarFrame, RadarGrid, Unit

_PREFIX = struct.Struct("<4sIQ")  # magic, bytes of the header, bytes of the arrays
_MAGIC = b"SCF1"
PREFIX_BYTES = _PREFIX.size
MAX_HEADER_BYTES = 16 << 20
_MAX_DEPTH = 8
_CLASSES = {"RadarFrame": RadarFrame, "RadarGrid": RadarGrid}
_NUMBER_KINDS = "biuf"
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


class InvalidMessageError(Exception):
    """The bytes received are not a message."""


class Sizes(NamedTuple):
    """Bytes of the two parts of a message."""

    header: int
    arrays: int


def pack(content: Any) -> list[bytes | memoryview]:
    """Return the parts of a message.

    ``content`` consists of dicts, lists, tuples, frames, grids, arrays of numbers, numbers, strings, times and paths.
    """
    arrays: list[np.ndarray] = []
    header = json.dumps(_to_plain(content, arrays)).encode("ascii")
    prefix = _PREFIX.pack(_MAGIC, len(header), sum(array.nbytes for array in arrays))
    return [prefix, header, *(array.reshape(-1).view(np.uint8).data for array in arrays if array.size)]


def unpack_prefix(prefix: bytes, max_array_bytes: int) -> Sizes:
    """Return the sizes of a message from its first ``PREFIX_BYTES`` bytes.

    Raises:
        InvalidMessageError: the bytes are no message, or a size is above its limit.
    """
    magic, header, arrays = _PREFIX.unpack(prefix)
    if magic != _MAGIC or header > MAX_HEADER_BYTES or arrays > max_array_bytes:
        raise InvalidMessageError(f"a message of {header} and {arrays} bytes that begins with {magic!r}")
    return Sizes(header, arrays)


def unpack(header: bytes, arrays: bytearray) -> Any:
    """Return the content of a message.

    Raises:
        InvalidMessageError: a part is malformed, or a size contradicts the bytes received.
        DataError: a frame is invalid.
    """
    try:
        plain = json.loads(header)
        content, used = _Unpacker(arrays).content(plain)
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InvalidMessageError(f"a malformed message: {error}") from error
    if used != len(arrays):
        raise InvalidMessageError(f"{len(arrays)} bytes of arrays, of which {used} are used")
    return content


def pack_times(times: Iterable[datetime]) -> np.ndarray:
    """Return aware times as microseconds since 1970, int64 ``[N]``: a store may contain millions of them."""
    return np.array([(time - _EPOCH) // _MICROSECOND for time in times], np.int64)


def unpack_times(stored: Any) -> list[datetime]:
    """Return the inverse of :func:`pack_times`, in UTC.

    Raises:
        InvalidMessageError: ``stored`` is no such array, or a number is no date.
    """
    if not isinstance(stored, np.ndarray) or stored.dtype != np.int64 or stored.ndim != 1:
        raise InvalidMessageError("no array of times")
    try:
        return [_EPOCH + timedelta(microseconds=number) for number in stored.tolist()]
    except OverflowError as error:
        raise InvalidMessageError("a time out of range") from error


def choice_to_json(choice: FieldChoice) -> dict[str, Any]:
    """Return a choice of fields as JSON."""
    importer = choice.importer
    return {
        "unit": choice.unit,
        "dataset": choice.dataset,
        "importer": None if importer is None else {"name": importer.name, "options": importer.options},
        "times": None if choice.times is None else pack_times(sorted(choice.times)).tolist(),
    }


def choice_from_json(content: dict[str, Any]) -> FieldChoice:
    """Return the inverse of :func:`choice_to_json`."""
    times = content["times"]
    return FieldChoice(
        content["unit"],
        content["dataset"],
        importer_from_mapping(content["importer"]),
        None if times is None else frozenset(unpack_times(np.array(times, np.int64))),
    )


def _to_plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """Return ``value`` as JSON; every object other than a list, number, string or None is ``{kind: content}``."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_to_plain(one, arrays) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [_to_plain(one, arrays) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[str(key), _to_plain(one, arrays)] for key, one in value.items()]}
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBER_KINDS:
        stored = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(value.shape)
        arrays.append(stored)
        return {"array": [stored.dtype.str, list(stored.shape)]}
    if isinstance(value, RadarFrame | RadarGrid):
        return {type(value).__name__: {one.name: _to_plain(getattr(value, one.name), arrays) for one in fields(value)}}
    return str(value)  # of metadata


class _Unpacker:
    """Inverse of :func:`_to_plain`; takes the arrays in order."""

    def __init__(self, arrays: bytearray):
        self._arrays, self._used = arrays, 0

    def content(self, plain: Any) -> tuple[Any, int]:
        """Return the content and the bytes used."""
        return self._value(plain, 0), self._used

    def _value(self, plain: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if isinstance(plain, list):
            return [self._value(one, depth + 1) for one in plain]
        if not isinstance(plain, dict):
            return plain
        ((kind, content),) = plain.items()
        if kind == "tuple":
            return tuple(self._value(one, depth + 1) for one in content)
        if kind == "dict":
            return {_of_type(key, str): self._value(one, depth + 1) for key, one in content}
        if kind == "time":
            return datetime.fromisoformat(_of_type(content, str))
        if kind == "path":
            return Path(_of_type(content, str))
        if kind == "array":
            return self._array(*content)
        own = {one.name: self._value(content[one.name], depth + 1) for one in fields(_CLASSES[kind])}
        return _frame(own) if kind == "RadarFrame" else _grid(own)

    def _array(self, code: str, shape: list[int]) -> np.ndarray:
        dtype = np.dtype(_of_type(code, str))
        if dtype.kind not in _NUMBER_KINDS or any(_of_type(size, int) < 0 for size in shape):
            raise ValueError(f"an array of {code} {shape}")
        count, begin = math.prod(shape), self._used
        self._used += count * dtype.itemsize
        if self._used > len(self._arrays):
            raise ValueError(f"an array of {code} {shape} in {len(self._arrays)} bytes")
        return np.frombuffer(self._arrays, dtype, count, begin if count else 0).reshape(shape)


def _grid(own: dict[str, Any]) -> RadarGrid:
    for name, value in own.items():
        if name in ("height", "width"):
            _of_type(value, int)
        elif name in ("left", "top", "spacing_x", "spacing_y"):
            if not math.isfinite(_of_type(value, int | float)):
                raise ValueError(f"{name} is {value}")
        elif name in ("projection", "unit"):
            _of_type(value, str)
    if own["projection"]:  # this process parses it as well
        check_projection(own["projection"], Path("the radar file"))
    return RadarGrid(**own)


def _frame(own: dict[str, Any]) -> RadarFrame:
    if _of_type(own["values"], np.ndarray).dtype != np.float32 or own["unit"] not in get_args(Unit):
        raise ValueError(f"a field of {own['values'].dtype} in {own['unit']}")
    for moment in (own["time"], *filter(None, [own["start"]])):
        if _of_type(moment, datetime).tzinfo is not UTC:
            raise ValueError(f"the time {moment} is not in UTC")
    for name, kind in (("grid", RadarGrid), ("path", Path), ("metadata", dict)):
        _of_type(own[name], kind)
    return RadarFrame(**own)


def _of_type(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r:.80} is not of type {kind}")
    return value
