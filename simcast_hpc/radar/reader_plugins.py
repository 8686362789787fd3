"""Readers of other packages, found by the entry points of the group ``simcast.readers``.

An entry point is a function that reads one file::

    def read(path: Path, *, level: str = "1") -> RadarFrame | list[RadarFrame]: ...

Its keyword parameters are the keys of ``--importer "NAME key=value"``; their values are strings. Two attributes are
optional: ``read.times(path, **options)`` returns the times without the fields, and ``read.detect(path, head)`` returns
whether the function reads a file that starts with ``head``, 512 bytes after decompression, so that files are read
without ``--importer``. The built-in formats are detected first. Functions run in the reader process, within its limits.
"""

import inspect
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from simcast_hpc.config import ConfigError, DataError

from .radar_frame import FieldChoice, RadarFrame

GROUP = "simcast.readers"
logger = logging.getLogger(__name__)


@cache
def plugins() -> dict[str, EntryPoint]:
    """Return the entry points by name; of several with one name the first, which is logged."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if found.setdefault(point.name, point) != point:
            logger.warning("two packages have a reader %s; %s is used", point.name, found[point.name].value)
    return found


@cache
def load(name: str) -> Callable[..., Any]:
    """Return the function of a plug-in.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    point = plugins()[name]
    try:
        function = point.load()
    except Exception as error:
        raise ConfigError(f"the reader {name} ({point.value}) cannot be imported: {error}") from error
    if not callable(function):
        raise ConfigError(f"the reader {name} ({point.value}) is no function of a path")
    return function


def options(name: str) -> tuple[str, ...] | None:
    """Return the keys of a plug-in: the keyword parameters of its function; None if it accepts any."""
    parameters = list(inspect.signature(load(name)).parameters.values())[1:]
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return tuple(one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY))


def detecting(path: Path, head: bytes) -> str | None:
    """Return the name of the plug-in that detects a file; one whose detection fails is skipped, which is logged."""
    for name in sorted(plugins()):
        try:
            detect = getattr(load(name), "detect", None)
            if detect is not None and detect(path, head):
                return name
        except Exception as error:
            logger.warning("the reader %s is skipped: %s: %s", name, type(error).__name__, error)
    return None


def times(path: Path, choice: FieldChoice, name: str) -> list[datetime]:
    """Return the times of a file by the attribute ``times`` of a plug-in, or of its frames."""
    own = getattr(load(name), "times", None)
    if own is None:
        return [frame.time for frame in frames(path, choice, name)]
    found = list(own(path, **_options(choice)))
    if not all(isinstance(one, datetime) and one.tzinfo is not None for one in found):
        raise DataError(f"{path}: the times of the reader {name} must be datetimes with a time zone")
    return [one.astimezone(UTC) for one in found]


def frames(path: Path, choice: FieldChoice, name: str) -> list[RadarFrame]:
    """Return the frames of a plug-in.

    Raises:
        DataError: it returns something else.
    """
    found = load(name)(path, **_options(choice))
    listed = [found] if isinstance(found, RadarFrame) else list(found)
    for frame in listed:
        if not isinstance(frame, RadarFrame):
            raise DataError(f"{path}: the reader {name} returned {type(frame).__name__}; RadarFrame is valid")
        if frame.time.tzinfo is not UTC or (frame.start is not None and frame.start.tzinfo is not UTC):
            raise DataError(f"{path}: the reader {name} returned a time without the zone datetime.UTC")
        if frame.values.dtype.name != "float32":
            raise DataError(f"{path}: the reader {name} returned values of {frame.values.dtype}; float32 is valid")
    return listed


def _options(choice: FieldChoice) -> dict[str, str]:
    return {} if choice.importer is None else choice.importer.values
