"""Reader of polar volumes by xradar: the lowest sweep of reflectivity on a 1 km grid around the radar.

The formats are those of xradar, such as Vaisala IRIS (Sigmet raw), Gematronik Rainbow, GAMIC HDF5, NEXRAD level 2 and
CfRadial 1 and 2. Most have one code for gates without a signal; within range it is no echo, not missing. The option
``fill=missing`` of the importer makes it missing.
"""

import bz2
import gzip
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError, DataError

from .declared_size import MAX_BYTES, check_pixels
from .path_times import parse_time
from .polar_grid import MAX_RANGE, Sweep, to_grid
from .radar_frame import FieldChoice, RadarFrame

logger = logging.getLogger(__name__)
_QUANTITIES = ("DBZH", "DBZ", "DBZHC", "reflectivity", "REF", "corrected_reflectivity", "DBTH", "TH", "UZ", "CZ")
_UNFILTERED = ("DBTH", "TH", "UZ")
_STANDARD = ("equivalent_reflectivity_factor", "radar_equivalent_reflectivity_factor_h")
_FOLDED = {"nexradlevel2": 1}  # code of range folding, which is missing
_NO_SIGNAL = {"nexradlevel2": 0, "rainbow": 0}
_IRIS_NO_SIGNAL = (-32.0, -327.68)  # code 0 in one and in two bytes
_IRIS_NOT_SCANNED = (95.5, 327.67)
_ELEVATIONS = (-5.0, 45.0)
_MIN_GATES, _MAX_GATE = 2, 10_000.0


def times(path: Path, _choice: FieldChoice, engine: str) -> list[datetime]:
    """Return the start of the volume."""
    with _opened(path, engine) as tree:
        return [_time(tree, path)]


def frames(path: Path, choice: FieldChoice, engine: str) -> list[RadarFrame]:
    """Return the reflectivity of the lowest sweep, or of the options ``sweep`` and ``quantity``.

    Raises:
        DataError: the volume contains no reflectivity, or its geometry is invalid.
        ConfigError: an option is invalid.
    """
    with _opened(path, engine) as tree:
        time = _time(tree, path)
        name, dataset, elevation = _lowest(tree, choice, path)
        quantity = _quantity(dataset, choice, path)
        height, width = dataset[quantity].shape
        check_pixels(height, width, path)
        polar = _values(dataset[quantity], engine, choice)
        sweep = _sweep(dataset, elevation, polar.shape, path)
        radar = _position(tree, dataset, path)
    grid, values = to_grid(sweep, polar, radar)
    metadata: dict[str, Any] = {
        "format": f"polar volume ({engine})", "quantity": quantity, "group": name, "elevation_degrees": elevation,
    }  # fmt: skip
    return [RadarFrame(values, "dBZ", time, grid, path, metadata)]


@contextmanager
def _opened(path: Path, engine: str) -> Iterator[Any]:
    import xarray as xr
    import xradar

    with _plain_file(path) as file:
        if engine == "cfradial2":
            tree: Any = xr.open_datatree(file, engine="h5netcdf", mask_and_scale=False, phony_dims="access")
        else:
            tree = getattr(xradar.io, f"open_{engine}_datatree")(str(file), **_settings(engine))
        try:
            yield tree
        finally:
            tree.close()


def _settings(engine: str) -> dict[str, Any]:
    return {} if engine == "iris" else {"mask_and_scale": False}


@contextmanager
def _plain_file(path: Path) -> Iterator[Path]:
    """Yield a file, decompressed to a temporary one if it is in gzip or bzip2.

    Raises:
        DataError: its content is too large.
    """
    with path.open("rb") as file:
        start = file.read(3)
    opens: Any = gzip.open if start.startswith(b"\x1f\x8b") else bz2.open if start == b"BZh" else None
    if opens is None:
        yield path
        return
    with opens(path) as content, tempfile.NamedTemporaryFile(suffix=path.stem[-20:]) as plain:
        size = 0
        while block := content.read(1 << 20):
            size += len(block)
            if size > MAX_BYTES:
                raise DataError(f"{path} contains more than {MAX_BYTES} bytes; this is no volume of a supported size")
            plain.write(block)
        plain.flush()
        yield Path(plain.name)


def _time(tree: Any, path: Path) -> datetime:
    """Return the start of the volume by its metadata, or the first time of a ray."""
    if "time_coverage_start" in tree.ds:
        stated = tree.ds["time_coverage_start"].values
        text = b"".join(stated.ravel()).decode("ascii", "replace") if stated.dtype.kind == "S" else str(stated.item())
        if time := parse_time(text.rstrip("\x00").strip()):
            return time
    first = [np.nanmin(dataset["time"].values) for _, dataset in _sweeps(tree) if "time" in dataset]
    first = [one for one in first if np.issubdtype(one.dtype, np.datetime64) and not np.isnat(one)]
    if not first:
        raise DataError(f"{path} contains no time of the volume")
    return min(first).astype("datetime64[s]").item().replace(tzinfo=UTC)


def _sweeps(tree: Any) -> list[tuple[str, Any]]:
    names = sorted((name for name in tree.children if name.startswith("sweep_")), key=lambda name: (len(name), name))
    return [(name, tree[name].ds) for name in names]


def _lowest(tree: Any, choice: FieldChoice, path: Path) -> tuple[str, Any, float]:
    """Return name, content and elevation of the chosen sweep; of several at the lowest elevation the first."""
    sweeps = [(name, ds, float(np.ravel(ds["sweep_fixed_angle"].values)[0])) for name, ds in _sweeps(tree)]
    if text := choice.option("sweep"):
        chosen = [one for one in sweeps if one[0] == f"sweep_{text}"]
        if not chosen:
            raise ConfigError(f"sweep={text!r} is invalid; {path} has the sweeps {[one[0][6:] for one in sweeps]}")
        return chosen[0]
    usable = [one for one in sweeps if _ELEVATIONS[0] <= one[2] <= _ELEVATIONS[1] and _candidates(one[1])]
    if not usable:
        raise DataError(
            f"{path} contains no sweep of reflectivity (dBZ) from {_ELEVATIONS[0]:g} to {_ELEVATIONS[1]:g} degrees"
        )
    return min(usable, key=lambda one: one[2])


def _candidates(dataset: Any) -> list[str]:
    """Return the names of reflectivity, the preferred first."""
    found = [
        str(name)
        for name, field in dataset.data_vars.items()
        if field.ndim == 2
        and (str(name) in _QUANTITIES or field.attrs.get("standard_name") in _STANDARD)
        and str(field.attrs.get("units", "dBZ")).lower() in ("dbz", "dbze")
    ]
    return sorted(found, key=lambda name: _QUANTITIES.index(name) if name in _QUANTITIES else len(_QUANTITIES))


def _quantity(dataset: Any, choice: FieldChoice, path: Path) -> str:
    chosen, names = choice.option("quantity"), _candidates(dataset)
    if chosen and chosen not in names:
        raise ConfigError(f"quantity={chosen!r} is invalid; the reflectivities of {path} are {names}")
    if not names:
        raise DataError(f"{path} contains {sorted(map(str, dataset.data_vars))}; a reflectivity in dBZ is required")
    quantity = chosen or names[0]
    if quantity in _UNFILTERED and not chosen:
        logger.warning("%s contains no reflectivity without clutter; %s is read", path, quantity)
    return quantity


def _values(field: Any, engine: str, choice: FieldChoice) -> np.ndarray:
    """Return reflectivity in dBZ, float32 ``[rays, gates]``: NaN where missing, minus infinity without echo."""
    fill = choice.option("fill", "no_echo")
    if fill not in ("no_echo", "missing"):
        raise ConfigError(f"fill={fill!r} is invalid; no_echo and missing are valid")
    no_signal = -np.inf if fill == "no_echo" else np.nan
    stored = field.transpose("azimuth", "range").values if "azimuth" in field.dims else field.values
    if engine == "iris":  # decoded by xradar, also the codes that are no values
        values = np.ma.filled(np.ma.asarray(stored, np.float32), np.nan)
        codes = [np.isclose(values, one, rtol=0, atol=1e-3) for one in (*_IRIS_NO_SIGNAL, *_IRIS_NOT_SCANNED)]
        values = np.where(np.isnan(values) | codes[0] | codes[1], np.float32(no_signal), values)
        return np.where(codes[2] | codes[3], np.float32(np.nan), values)
    attributes = field.attrs
    scale = float(np.ravel(attributes.get("scale_factor", 1.0))[0])
    offset = float(np.ravel(attributes.get("add_offset", 0.0))[0])
    values = (stored * scale + offset).astype(np.float32)
    empty = np.isnan(stored) if stored.dtype.kind == "f" else np.zeros(stored.shape, bool)
    for name in ("_FillValue", "missing_value"):
        if attributes.get(name) is not None:
            empty |= stored == np.ravel(attributes[name])[0]
    undetect = attributes.get("_Undetect", _NO_SIGNAL.get(engine))
    # With a code of its own for no echo, the fill value is missing.
    has_own = undetect is not None and attributes.get("_FillValue") not in (None, undetect)
    values[empty] = np.nan if has_own else no_signal
    if undetect is not None:
        values[stored == np.ravel(undetect)[0]] = no_signal
    if engine in _FOLDED:
        values[stored == _FOLDED[engine]] = np.nan
    return values


def _sweep(dataset: Any, elevation: float, shape: tuple[int, ...], path: Path) -> Sweep:
    """Return the geometry of a sweep.

    Raises:
        DataError: it is absent, invalid, or contradicts the shape of the data.
    """
    azimuths = np.ravel(dataset["azimuth"].values).astype(np.float64)
    ranges = np.ravel(dataset["range"].values).astype(np.float64)
    if (len(azimuths), len(ranges)) != shape or len(ranges) < _MIN_GATES or not len(azimuths):
        raise DataError(f"{path}: the sweep has shape {shape}, {len(azimuths)} azimuths and {len(ranges)} gates")
    gate = (ranges[-1] - ranges[0]) / (len(ranges) - 1)
    steps = np.diff(ranges)
    is_even = np.isfinite(ranges).all() and np.isfinite(azimuths).all() and np.ptp(steps) <= 0.01 * abs(gate)
    if not is_even or not 0 < gate <= _MAX_GATE or not -gate <= ranges[0] - gate / 2 <= MAX_RANGE:
        raise DataError(f"{path}: the gates from {ranges[0]:g} to {ranges[-1]:g} m are not evenly spaced in meters")
    ordered = np.sort(azimuths % 360.0)
    widths = np.diff(ordered, append=ordered[:1] + 360.0)
    width = float(np.median(widths[widths > 0])) if (widths > 0).any() else 360.0
    return Sweep(
        elevation, azimuths % 360.0, np.full(len(azimuths), width), ranges[0] - gate / 2, float(gate), len(ranges)
    )


def _position(tree: Any, dataset: Any, path: Path) -> tuple[float, float]:
    position = []
    for name, limit in (("longitude", 360.0), ("latitude", 90.0)):
        source = dataset if name in dataset else tree.ds
        value = float(np.ravel(source[name].values)[0]) if name in source else np.nan
        if not abs(value) <= limit:
            raise DataError(f"{path}: {name} of the radar is {value:g}; it must be from {-limit:g} to {limit:g}")
        position.append(value)
    return position[0], position[1]
