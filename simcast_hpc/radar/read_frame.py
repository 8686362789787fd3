"""Which reader a file needs, told by its content, and one way for every reader to fail."""

import contextlib
import gzip
import importlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType

import h5py

from simcast_hpc.config import ConfigError, DataError

from . import cf_reader as cf
from . import fmi_reader as fmi
from . import knmi_reader as knmi
from . import mch_reader as mch
from . import mrms_reader as mrms
from . import odim_reader as odim
from . import polar_reader as polar
from .radar_frame import RadarFrame, Unit

KNOWN = "ODIM HDF5 composites and volumes, KNMI HDF5, MRMS GRIB2, FMI PGM, MeteoSwiss GIF, CF netCDF"
_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Format:
    """A kind of file: a cheap look at its times, and its frames, in the preferred unit where it holds several."""

    name: str
    times: Callable[[Path], list[datetime]]
    frames: Callable[[Path, Unit], list[RadarFrame]]
    needs: tuple[str, ...]


_FORMATS = {
    "odim": Format("ODIM HDF5", odim.times, odim.frames, ("pysteps", "pyproj")),
    "knmi": Format("KNMI HDF5", knmi.times, knmi.frames, ("pysteps", "pyproj")),
    "mrms": Format("MRMS GRIB2", mrms.times, mrms.frames, ("pygrib",)),
    "fmi": Format("FMI PGM", fmi.times, fmi.frames, ("pysteps", "pyproj")),
    "mch": Format("MeteoSwiss GIF", mch.times, mch.frames, ("pysteps",)),
    "cf": Format("CF netCDF", cf.times, cf.frames, ("xarray", "h5netcdf", "pyproj")),
    "polar": Format("polar volume", polar.times, polar.frames, ("xradar",)),
}


def frame_times(path: Path) -> list[datetime]:
    """Return the times of the frames in a file, UTC, without reading its fields.

    Raises:
        DataError: it is none of the formats, damaged, or says no time.
        ConfigError: a package that reads it is not installed.
    """
    form = recognise(path)
    with _failing_as_one(path, form):
        return form.times(path)


def read_frames(path: Path, *, prefer: Unit = "mm/h") -> list[RadarFrame]:
    """Return the frames of a file, in the order of its times.

    Args:
        path: a file of any known format.
        prefer: the unit wanted where a file holds several quantities; another is given where this one is missing.

    Raises:
        DataError: it is none of the formats, damaged, or its field is not what it says.
        ConfigError: a package that reads it is not installed.
    """
    form = recognise(path)
    with _failing_as_one(path, form):
        return form.frames(path, prefer)


def recognise(path: Path) -> Format:
    """Return the format of a file, by its first bytes and, of HDF5, its groups; the name says nothing.

    Raises:
        DataError: it cannot be opened, or is none of them.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as file:
                head = file.read(16)
        if head.startswith(_HDF5):
            return _FORMATS[_of_hdf5(path)]
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    for start, name in ((b"GRIB", "mrms"), (b"P5", "fmi"), (b"GIF8", "mch"), (b"CDF", "cf")):
        if head.startswith(start):
            return _FORMATS[name]
    what = "is empty" if not head else f"begins with {head[:8]!r}"
    raise DataError(f"{path} {what}; the formats that are read are {KNOWN}")


def _of_hdf5(path: Path) -> str:
    with h5py.File(path, "r") as file:
        conventions = file.attrs.get("Conventions", "")
        conventions = conventions.decode() if isinstance(conventions, bytes) else str(conventions)
        if conventions.startswith("ODIM_H5") or {"what", "where", "dataset1"} <= set(file):
            return "polar" if odim.object_of(file) in ("PVOL", "SCAN") else "odim"
        return "knmi" if {"overview", "geographic", "image1"} <= set(file) else "cf"


@contextmanager
def _failing_as_one(path: Path, form: Format) -> Iterator[None]:
    """Turn whatever a foreign reader raises into a refusal that names the file."""
    for package in form.needs:
        _import(package, form)
    try:
        yield
    except (DataError, ConfigError, MemoryError):
        raise
    # What the readers of others raise on a damaged file is not written down anywhere, and one bad file must not end
    # a watch.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as {form.name}: {type(error).__name__}: {error}; it may be damaged or cut short"
        ) from error


def _import(package: str, form: Format) -> ModuleType:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints the place of its configuration file
            return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{form.name} needs the package {package} ({error}): pip install -c constraints.txt -e '.[io]'"
        ) from error
