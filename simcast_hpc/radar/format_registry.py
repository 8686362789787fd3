"""The readers of radar files by name: built in, of pysteps and xradar, and plug-ins."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from simcast_hpc.config import ConfigError

from .importer_choice import ImporterChoice
from .radar_frame import FieldChoice, RadarFrame

GROUP = "simcast.readers"
_PACKAGE = "simcast_hpc.radar"


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: for messages.
        times: returns the times of a file, cheaply.
        frames: returns the frames of a file, at least those of ``choice.times``.
        packages: that the functions need.
        has_datasets: whether ``FieldChoice.dataset`` selects a field.
        compressions: of gzip, bzip2, in which files are read.
        options: keys of ``FieldChoice.importer``; None accepts any, which the reader checks.
    """

    name: str
    times: Callable[[Path, FieldChoice], list[datetime]]
    frames: Callable[[Path, FieldChoice], list[RadarFrame]]
    packages: tuple[str, ...]
    has_datasets: bool = False
    compressions: tuple[str, ...] = ()
    options: tuple[str, ...] | None = ()


class _Lazy:
    """Functions of a reader module that is imported when they are called."""

    def __init__(self, module: str):
        self._module = module

    def _load(self) -> ModuleType:
        return importlib.import_module(f"{_PACKAGE}.{self._module}")

    def times(self, path: Path, choice: FieldChoice) -> list[datetime]:
        return self._load().times(path, choice)

    def frames(self, path: Path, choice: FieldChoice) -> list[RadarFrame]:
        return self._load().frames(path, choice)


def _format(module: str, name: str, packages: tuple[str, ...], **settings: object) -> Format:
    reader = _Lazy(module)
    return Format(name, reader.times, reader.frames, packages, **settings)  # type: ignore[arg-type]


_GEOTIFF_OPTIONS = (
    "time", "utc_offset", "unit", "interval", "band", "crs", "nodata", "undetect", "scale", "offset",
)  # fmt: skip
BUILT_IN = {
    "odim": _format("odim_reader", "ODIM HDF5", ("pyproj",), has_datasets=True),
    "knmi": _format("knmi_reader", "KNMI HDF5", ("pyproj",)),
    "mrms": _format("mrms_reader", "MRMS GRIB2", ("pygrib",), compressions=("gzip",)),
    "fmi": _format("fmi_reader", "FMI PGM", ("pyproj",), compressions=("gzip",)),
    "mch": _format("mch_reader", "MeteoSwiss GIF", ()),
    "cf": _format("cf_reader", "CF netCDF", ("xarray", "h5netcdf", "pyproj")),
    "zarr": _format("cf_reader", "CF Zarr", ("xarray", "zarr", "pyproj"), options=("endpoint_url",)),
    "polar": _format("polar_reader", "polar volume", (), has_datasets=True),
    "radolan": _format("radolan_reader", "RADOLAN", ("pyproj",), compressions=("gzip", "bzip2")),
    "geotiff": _format("geotiff_reader", "GeoTIFF", ("rasterio", "pyproj"), options=_GEOTIFF_OPTIONS),
}  # fmt: skip


def importer_format(importer: ImporterChoice) -> Format:
    """Return the format that an importer reads.

    Raises:
        ConfigError: there is no such importer, or no such key; names those that exist and the nearest.
    """
    chosen = BUILT_IN.get(importer.name)
    if chosen is None:
        raise ConfigError(_unknown(importer.name, available_importers()))
    check_options(importer, chosen.options)
    return chosen


def available_importers() -> list[str]:
    """Return the names of all importers."""
    return sorted(BUILT_IN)


def check_options(importer: ImporterChoice, valid: Iterable[str] | None) -> None:
    """Check the keys of an importer.

    Raises:
        ConfigError: one is not in ``valid``; names the nearest.
    """
    if valid is None:
        return
    keys = sorted(valid)
    for key, _ in importer.options:
        if key not in keys:
            near = get_close_matches(key, keys, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = f"its keys are {', '.join(keys)}" if keys else "it has no keys"
            raise ConfigError(f"the importer {importer.name} has no key {key!r}{hint}; {known}")


def _unknown(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no importer {name!r}{hint}; available are {', '.join(names)}"
