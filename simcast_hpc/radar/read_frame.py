"""Read the frames of radar files by the reader of their format, and raise the same errors for all readers."""

import contextlib
import importlib
import io
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import h5py

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.data.hdf5_guard import check_hdf5

from . import reader_process
from .format_detection import detect_format, require_regular
from .format_registry import Format, importer_format
from .importer_choice import ImporterChoice
from .radar_frame import FieldChoice, RadarFrame, Unit
from .reader_process import Stop
from .zarr_store import is_zarr as is_zarr

_T = TypeVar("_T")


def frame_times(
    path: Path | str,
    *,
    prefer: Unit = "mm/h",
    dataset: int | None = None,
    importer: ImporterChoice | None = None,
    stop: Stop | None = None,
    short: bool = False,
) -> list[datetime]:
    """Return the times of the frames in a file, UTC and ascending, without reading its fields.

    The file is read in a child process; see :mod:`reader_process` for its limits.

    Args:
        path: a file of any supported format, or the URL of a Zarr store, ``s3://BUCKET/STORE``.
        prefer: as in :func:`read_frames`; the time of an accumulation is the end of its interval.
        dataset: as in :func:`read_frames`.
        importer: as in :func:`read_frames`.
        stop: as in :func:`read_frames`.
        short: as in :func:`read_frames`.

    Raises:
        DataError: the format is not supported, or the file is damaged, exceeds a limit, or contains no time or
            one time twice.
        ConfigError: a package that the reader needs is not installed, or the importer or a key of it does not exist.
        ReadingStopped: ``stop`` returned true.
    """
    return reader_process.read_times(Path(path), FieldChoice(prefer, dataset, importer), stop=stop, short=short)


def read_frames(
    path: Path | str,
    *,
    prefer: Unit = "mm/h",
    dataset: int | None = None,
    times: Collection[datetime] | None = None,
    importer: ImporterChoice | None = None,
    stop: Stop | None = None,
    short: bool = False,
) -> list[RadarFrame]:
    """Return the frames of a file, in ascending order of their times.

    The file is read in a child process; see :mod:`reader_process` for its limits.

    Args:
        path: a file of any supported format, or the URL of a Zarr store, ``s3://BUCKET/STORE``.
        prefer: unit to read if the file contains several quantities; another unit is returned if this one is absent.
        dataset: number N of ``datasetN`` in an ODIM file; None reads the lowest level or the first.
        times: aware times, as :func:`frame_times` returns them; frames of other times are not returned, and those in
            netCDF files and Zarr stores are not read. None returns all; a time that the file does not contain is
            ignored, so the result may be empty.
        importer: reads the file, see :func:`parse_importer`; None detects the format by the content.
        stop: returns whether to stop; called several times per second.
        short: allow only a sixth of the time of :mod:`reader_process`, at least 2 s.

    Raises:
        DataError: the format is not supported, the file is damaged or exceeds a limit, or its field contradicts its
            metadata, or two fields are of one time.
        ConfigError: a package that the reader needs is not installed, or the importer or a key of it does not exist.
        ReadingStopped: ``stop`` returned true.
    """
    chosen = None if times is None else frozenset(times)
    if any(time.tzinfo is None for time in chosen or ()):
        raise ValueError("times must be aware, in UTC")
    choice = FieldChoice(prefer, dataset, importer, chosen)
    return reader_process.read_frames(Path(path), choice, stop=stop, short=short)


def frame_times_in_process(
    path: Path, choice: FieldChoice, *, on_start: Callable[[], None] | None = None
) -> list[datetime]:
    """Return the times as :func:`frame_times` does, in this process and without limits.

    ``on_start`` is called when the packages of the reader are imported.
    """
    with _uniform_errors(path, choice, on_start) as file_format:
        return _in_order(file_format.times(path, choice), lambda time: time, path)


def read_frames_in_process(
    path: Path, choice: FieldChoice, *, on_start: Callable[[], None] | None = None
) -> list[RadarFrame]:
    """Return the frames as :func:`read_frames` does, in this process and without limits."""
    with _uniform_errors(path, choice, on_start) as file_format:
        frames = [frame for frame in file_format.frames(path, choice) if choice.includes(frame.time)]
        return _in_order(frames, lambda frame: frame.time, path) if frames or choice.times is None else []


def _in_order(found: list[_T], time_of: Callable[[_T], datetime], path: Path) -> list[_T]:
    """Return times or frames in the order of their times.

    Raises:
        DataError: there is none, or two are of one time.
    """
    if not found:
        raise DataError(f"{path} contains no field: its dimension of time has length 0")
    ordered = sorted(found, key=time_of)
    for one, following in pairwise(map(time_of, ordered)):
        if one == following:
            raise DataError(f"{path} contains the time {one:%Y-%m-%d %H:%M:%S} UTC twice; a time must occur once")
    return ordered


@contextmanager
def _uniform_errors(path: Path, choice: FieldChoice, on_start: Callable[[], None] | None) -> Iterator[Format]:
    """Detect the format, and turn any exception of its reader into a ``DataError`` that names the file."""
    name = "a radar file"
    try:
        file_format = detect_format(path) if choice.importer is None else _of_importer(path, choice.importer)
        name = file_format.name
        for package in file_format.packages:
            _import(package, file_format)
        if choice.dataset is not None and not file_format.has_datasets:
            raise DataError(f"{path} is {name} without numbered datasets; --dataset applies to ODIM HDF5")
        if on_start is not None:
            on_start()
        yield file_format
    except (DataError, ConfigError, MemoryError):
        raise
    # External readers do not document what they raise on a damaged file, and one bad file must not end
    # `simcast predict --watch`.
    except Exception as error:
        cause = (
            "it may be damaged or truncated"
            if _is_damage(error)
            else "the reader does not support its layout"
            if _is_hdf5(path)
            else "it may be damaged or truncated, or the reader does not support its layout"
        )
        raise DataError(f"{path} cannot be read as {name}: {type(error).__name__}: {error}; {cause}") from error


def _of_importer(path: Path, importer: ImporterChoice) -> Format:
    file_format = importer_format(importer)
    if not (importer.is_composite and path.is_dir()):
        require_regular(path)
    if path.is_file() and _is_hdf5(path):
        with h5py.File(path, "r") as file:
            check_hdf5(file, path)
    return file_format


def _is_hdf5(path: Path) -> bool:
    try:
        return h5py.is_hdf5(path)
    except Exception:
        return False


def _is_damage(error: Exception) -> bool:
    """Return whether an error of a reader shows damaged content, and not a missing or unexpected object."""
    unreadable = isinstance(error, KeyError) and "Unable to" in str(error) and "doesn't exist" not in str(error)
    return unreadable or isinstance(error, OSError | EOFError | RuntimeError | zlib.error)


def _import(package: str, file_format: Format) -> ModuleType:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints the path of its configuration file
            return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{file_format.name} needs the package {package} ({error}): pip install -c constraints.txt -e '.[io]'"
        ) from error
