"""The dates of a MeteoNet file: an array of ``datetime`` that NumPy stored as a pickle, read without unpickling.

An unpickler calls what the file names, and the names that an array needs suffice to read foreign memory. Here the
instructions of the pickle are followed with values of this module only: nothing of the file is imported or called.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

LARGEST_PICKLE = 2**20
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NAMES = {
    **{(module, "_reconstruct"): "array" for module in _MODULES},
    ("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): "dtype",
    ("datetime", "datetime"): "datetime", ("_codecs", "encode"): "encode",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = (
    "BININT", "BININT1", "BININT2", "INT", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINBYTES", "SHORT_BINBYTES",
    "BINSTRING", "SHORT_BINSTRING",
)  # fmt: skip


class PickleError(ValueError):
    """The pickle is damaged, or contains something else than an array of dates."""


@dataclass(frozen=True)
class _Name:
    """A name that the pickle refers to, by its meaning here."""

    meaning: str


@dataclass
class _Array:
    """An array under construction."""

    dates: list[Any] | None = None


@dataclass
class _Machine:
    """Stack, marks and memo of a pickle."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self, count: int) -> list[Any]:
        """Remove and return the last ``count`` values."""
        begin = len(self.stack) - count
        if begin < (self.marks[-1] if self.marks else 0):
            raise PickleError("the pickle uses more values than it has")
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def pop_mark(self) -> list[Any]:
        """Remove and return the values after the last mark."""
        if not self.marks:
            raise PickleError("the pickle has no mark")
        count = len(self.stack) - self.marks[-1]
        values = self.pop(count)
        self.marks.pop()
        return values


def read_dates(content: bytes, *, count: int) -> list[datetime]:
    """Return the dates of a pickled array of ``count`` datetimes without time zone.

    Raises:
        PickleError: the pickle is damaged, larger than 1 MiB, or contains anything else.
    """
    if len(content) > LARGEST_PICKLE:
        raise PickleError(f"the dates are larger than {LARGEST_PICKLE / 2**20:g} MiB")
    machine = _Machine()
    operations = iter(pickletools.genops(content))
    try:
        for operation, argument, _ in operations:
            if operation.name == "STOP":
                break
            _step(machine, operation.name, argument)
        [array] = machine.stack
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PickleError(f"the pickle of the dates is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(array, _Array) or array.dates is None or len(array.dates) != count:
        raise PickleError(f"the pickle is not an array of {count} dates")
    if not all(type(date) is datetime for date in array.dates):
        raise PickleError("the array contains other objects than dates")
    return list(array.dates)


def _step(machine: _Machine, name: str, argument: Any) -> None:
    """Follow one instruction."""
    stack = machine.stack
    # 1. Constants and literals
    if name in ("PROTO", "FRAME"):
        return
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _LITERALS:
        stack.append(argument)
    # 2. Tuples and lists
    elif name == "EMPTY_TUPLE":
        stack.append(())
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack.append(tuple(machine.pop(int(name[-1]))))
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "MARK":
        machine.marks.append(len(stack))
    elif name in ("TUPLE", "LIST"):
        values = machine.pop_mark()
        stack.append(tuple(values) if name == "TUPLE" else values)
    elif name in ("APPEND", "APPENDS"):
        values = machine.pop(1) if name == "APPEND" else machine.pop_mark()
        if not isinstance(stack[-1], list):
            raise PickleError("the pickle appends to something else than a list")
        stack[-1].extend(values)
    # 3. Memo
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        machine.memo[len(machine.memo) if name == "MEMOIZE" else argument] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(machine.memo[argument])
    # 4. Names, calls and states
    elif name == "GLOBAL":
        stack.append(_find(*argument.split(" ", 1)))
    elif name == "STACK_GLOBAL":
        stack.append(_find(*machine.pop(2)))
    elif name == "REDUCE":
        called, arguments = machine.pop(2)
        if not isinstance(called, _Name) or called.meaning not in _CALLS or not isinstance(arguments, tuple):
            raise PickleError("the pickle calls something else than the constructor of an array or a date")
        stack.append(_CALLS[called.meaning](*arguments))
    elif name == "BUILD":
        [state] = machine.pop(1)
        _build(stack[-1], state)
    else:
        raise PickleError(f"the pickle contains the instruction {name}, which an array of dates does not need")


def _find(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleError("the pickle names an object by something else than text")
    if (module, name) not in _NAMES:
        raise PickleError(f"it contains {module[:60]}.{name[:60]}, which is not a date")
    return _Name(_NAMES[module, name])


def _build(built: Any, state: Any) -> None:
    """Set the state of an array; that of its dtype is always the one of objects."""
    if isinstance(built, _Name) and built.meaning == "objects":
        return
    if not isinstance(built, _Array) or not isinstance(state, tuple) or len(state) != 5:
        raise PickleError("the pickle sets the state of something else than an array")
    _, shape, dtype, fortran, dates = state
    is_valid = isinstance(shape, tuple) and len(shape) == 1 and isinstance(dtype, _Name) and dtype.meaning == "objects"
    if not is_valid or fortran not in (False, True) or not isinstance(dates, list) or shape[0] != len(dates):
        raise PickleError("the pickle is not an array of objects with one axis")
    built.dates = dates


def _dtype(kind: Any, *_flags: Any) -> _Name:
    if kind not in ("O", "O8", b"O8"):
        raise PickleError("the array has another dtype than object")
    return _Name("objects")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError("the pickle encodes something else than bytes")
    return text.encode("latin1")


def _datetime(state: Any, *more: Any) -> datetime:
    """Return the datetime of Python's own 10 bytes: year (2), month, day, hour, minute, second, microsecond (3)."""
    content = state.encode("latin1") if isinstance(state, str) else state
    if more or not isinstance(content, bytes) or len(content) != 10:
        raise PickleError("a date has a time zone, or is not stored as 10 bytes")
    month, day, hour, minute, second = content[2:7]
    return datetime(int.from_bytes(content[:2]), month, day, hour, minute, second, int.from_bytes(content[7:]))


_CALLS: dict[str, Callable[..., Any]] = {
    "array": lambda *_arguments: _Array(),
    "dtype": _dtype,
    "encode": _encode,
    "datetime": _datetime,
}
