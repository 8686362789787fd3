"""Select the reader of a file by its content, and raise the same errors for all readers."""

import contextlib
import gzip
import importlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import h5py

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.data.hdf5_guard import check_hdf5

from . import cf_reader as cf
from . import fmi_reader as fmi
from . import knmi_reader as knmi
from . import mch_reader as mch
from . import mrms_reader as mrms
from . import odim_attributes, reader_process
from . import odim_reader as odim
from . import polar_reader as polar
from .importer_choice import ImporterChoice
from .radar_frame import FieldChoice, RadarFrame, Unit
from .reader_process import Stop

SUPPORTED_FORMATS = (
    "ODIM HDF5 composites and volumes, KNMI HDF5, MRMS GRIB2, FMI PGM, MeteoSwiss GIF, CF netCDF, CF Zarr"
)
_T = TypeVar("_T")
_HDF5, _GZIP = b"\x89HDF\r\n\x1a\n", b"\x1f\x8b"
# First bytes of other compressions.
_COMPRESSIONS = {
    b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z",
    b"\x1f\x9d": "compress", _GZIP: "gzip",
}  # fmt: skip
_STARTS = {b"GRIB": "mrms", b"P5": "fmi", b"GIF8": "mch", b"CDF": "cf", _HDF5: ""}


@dataclass(frozen=True)
class Format:
    """A file format: functions that read the times (cheap) and the frames, and the packages these need."""

    name: str
    times: Callable[[Path, FieldChoice], list[datetime]]
    frames: Callable[[Path, FieldChoice], list[RadarFrame]]
    packages: tuple[str, ...]
    has_datasets: bool = False
    reads_gzip: bool = False


_FORMATS = {
    "odim": Format("ODIM HDF5", odim.times, odim.frames, ("pyproj",), True),
    "knmi": Format("KNMI HDF5", knmi.times, knmi.frames, ("pyproj",)),
    "mrms": Format("MRMS GRIB2", mrms.times, mrms.frames, ("pygrib",), reads_gzip=True),
    "fmi": Format("FMI PGM", fmi.times, fmi.frames, ("pyproj",), reads_gzip=True),
    "mch": Format("MeteoSwiss GIF", mch.times, mch.frames, ()),
    "cf": Format("CF netCDF", cf.times, cf.frames, ("xarray", "h5netcdf", "pyproj")),
    "zarr": Format("CF Zarr", cf.times, cf.frames, ("xarray", "zarr", "pyproj")),
    "polar": Format("polar volume", polar.times, polar.frames, (), True),
}


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


def detect_format(path: Path) -> Format:
    """Return the format of a file by its first bytes and, for HDF5, its groups; the file name is not used.

    Raises:
        DataError: the file cannot be opened, or its format is not supported.
    """
    if is_zarr(path):
        _reject_links(path)
        return _FORMATS["zarr"]
    if path.exists() and not path.is_file():  # a pipe would block
        kind = "a folder without a Zarr group" if path.is_dir() else "not a regular file"
        raise DataError(f"{path} is {kind}; the supported formats are {SUPPORTED_FORMATS}")
    try:
        with path.open("rb") as file:
            head = file.read(16)
        is_gzipped = head.startswith(_GZIP)
        if is_gzipped:
            with gzip.open(path) as file:
                head = file.read(16)
        # The signature may follow a user block.
        if not is_gzipped and (head.startswith(_HDF5) or (not any(map(head.startswith, _STARTS)) and _is_hdf5(path))):
            return _FORMATS[_hdf5_format(path)]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    for start, name in _STARTS.items():
        if head.startswith(start):
            if is_gzipped and not (name and _FORMATS[name].reads_gzip):
                raise DataError(
                    f"{path} is {_FORMATS[name].name if name else 'HDF5'} compressed with gzip; only "
                    f"{' and '.join(one.name for one in _FORMATS.values() if one.reads_gzip)} are read so, others must "
                    "be decompressed first (gunzip)"
                )
            if head.startswith(b"CDF\x05"):
                raise DataError(
                    f"{path} is netCDF in the format CDF-5 (64-bit data); `nccopy -k nc4` converts it to netCDF-4"
                )
            return _FORMATS[name]
    for start, name in _COMPRESSIONS.items():
        if head.startswith(start):
            raise DataError(
                f"{path} is compressed with {name}{' twice' if start == _GZIP else ''}; decompress it first"
            )
    content = "is empty" if not head else f"begins with {head[:8]!r}"
    raise DataError(f"{path} {content}; the supported formats are {SUPPORTED_FORMATS}")


def is_zarr(path: Path) -> bool:
    """Return whether a path is a Zarr group (format 2 or 3), which is a folder."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def _reject_links(store: Path) -> None:
    """Check that a Zarr store contains only files: a symbolic link could return any file as pixel values."""
    for folder, folders, files in os.walk(store):
        for name in sorted(folders + files):
            mode = os.lstat(os.path.join(folder, name)).st_mode
            if stat.S_ISLNK(mode):
                raise DataError(f"{store}: {name} is a symbolic link; all data must be in the store")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe would block the reader until its limit
                raise DataError(f"{store}: {name} is not a regular file; all data must be in the store")


def _hdf5_format(path: Path) -> str:
    with h5py.File(path, "r") as file:
        check_hdf5(file, path)
        conventions = odim_attributes.text(file.attrs.get("Conventions", ""))
        if conventions.startswith("ODIM_H5") or {"what", "dataset1"} <= set(file):
            return "polar" if odim.object_of(file) in ("PVOL", "SCAN") else "odim"
        if {"overview", "scan1"} <= set(file):
            raise DataError(f"{path} is a KNMI polar volume; the supported formats are {SUPPORTED_FORMATS}")
        return "knmi" if {"overview", "geographic", "image1"} <= set(file) else "cf"


@contextmanager
def _uniform_errors(path: Path, choice: FieldChoice, on_start: Callable[[], None] | None) -> Iterator[Format]:
    """Detect the format, and turn any exception of its reader into a ``DataError`` that names the file."""
    name = "a radar file"
    try:
        file_format = detect_format(path)
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
