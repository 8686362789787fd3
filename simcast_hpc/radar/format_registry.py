"""The readers of radar files by name: built in, those of pysteps and xradar, and plug-ins."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType

from simcast_hpc.config import ConfigError

from . import pysteps_reader, reader_plugins
from .importer_choice import ImporterChoice
from .radar_frame import FieldChoice, RadarFrame

XRADAR_NAMES = (
    "cfradial1", "cfradial2", "datamet", "furuno", "gamic", "hpl", "iris", "metek", "nexradlevel2", "odim", "rainbow",
    "uf",
)  # fmt: skip
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
COMPOSITES = ("maximum", "nearest")
_COMPOSITE_OPTIONS = (
    "time", "utc_offset", "pattern", "tolerance", "spacing", "projection", "center", "extent", "least",
)  # fmt: skip
_XRADAR_OPTIONS = ("sweep", "quantity", "fill")
BUILT_IN = {
    "odim": _format("odim_reader", "ODIM HDF5", ("pyproj",), has_datasets=True),
    "knmi": _format("knmi_reader", "KNMI HDF5", ("pyproj",)),
    "knmi-polar": _format("knmi_polar_reader", "KNMI polar volume", ("pyproj",)),
    "mrms": _format("mrms_reader", "MRMS GRIB2", ("pygrib",), compressions=("gzip",)),
    "fmi": _format("fmi_reader", "FMI PGM", ("pyproj",), compressions=("gzip",)),
    "mch": _format("mch_reader", "MeteoSwiss GIF", ()),
    "cf": _format("cf_reader", "CF netCDF", ("xarray", "h5netcdf", "pyproj"), options=("interval",)),
    "zarr": _format("cf_reader", "CF Zarr", ("xarray", "zarr", "pyproj"), options=("endpoint_url", "interval")),
    "polar": _format("polar_reader", "polar volume", (), has_datasets=True),
    "radolan": _format("radolan_reader", "RADOLAN", ("pyproj",), compressions=("gzip", "bzip2")),
    "iris": _format("iris_product_reader", "IRIS product", ("pyproj",), compressions=("gzip", "bzip2")),
    "geotiff": _format("geotiff_reader", "GeoTIFF", ("rasterio", "pyproj"), options=_GEOTIFF_OPTIONS),
}  # fmt: skip


def importer_format(importer: ImporterChoice) -> Format:
    """Return the format that an importer reads.

    Raises:
        ConfigError: there is no such importer, or no such key; names those that exist and the nearest.
    """
    package, _, name = importer.name.partition(":")
    if importer.name in BUILT_IN:
        chosen = BUILT_IN[importer.name]
    elif package == "xradar" and name in XRADAR_NAMES:
        chosen = xradar_format(name)
    elif package == "composite" and name in COMPOSITES:
        chosen = _named("composite_reader", name, importer.name, ("pyproj",), _COMPOSITE_OPTIONS)
    elif package == "pysteps":
        chosen = _pysteps_format(name)
    elif importer.name in reader_plugins.plugins():
        chosen = plugin_format(importer.name)
    else:
        raise ConfigError(_unknown(importer.name, available_importers()))
    check_options(importer, chosen.options)
    return chosen


def available_importers() -> list[str]:
    """Return the names of all importers, those of pysteps if it is installed."""
    names = [*BUILT_IN, *reader_plugins.plugins(), *(f"xradar:{name}" for name in XRADAR_NAMES)]
    names += [f"composite:{name}" for name in COMPOSITES]
    try:
        names += [f"pysteps:{name}" for name in pysteps_reader.importers()]
    except ImportError:
        names.append("pysteps:NAME (not installed)")
    return sorted(names)


def xradar_format(name: str) -> Format:
    """Return the format of a reader of xradar."""
    return _named("xradar_reader", name, f"polar volume ({name})", ("xradar", "pyproj"), _XRADAR_OPTIONS)


def plugin_format(name: str) -> Format:
    """Return the format of a plug-in."""
    return _named("reader_plugins", name, name, (), reader_plugins.options(name))


def _named(module: str, name: str, title: str, packages: tuple[str, ...], options: tuple[str, ...] | None) -> Format:
    """Return the format of a reader module whose functions have the name of an importer as third argument."""

    def call(function: str, path: Path, choice: FieldChoice) -> list:
        return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), function)(path, choice, name)

    return Format(
        title,
        partial(call, "times"),
        partial(call, "frames"),
        packages,
        compressions=("gzip", "bzip2"),
        options=options,
    )


def _pysteps_format(name: str) -> Format:
    try:
        known = pysteps_reader.importers()
    except ImportError as error:
        raise ConfigError(
            f"pysteps:{name} needs the package pysteps ({error}): pip install -c constraints.txt -e '.[io]'"
        ) from error
    if name not in known:
        raise ConfigError(_unknown(f"pysteps:{name}", [f"pysteps:{one}" for one in sorted(known)]))
    return _named("pysteps_reader", name, f"pysteps {name}", ("pysteps",), pysteps_reader.options(name))


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
