"""Radar files read by an importer of pysteps, also of its plug-ins: ``--importer "pysteps:dwd_hdf5 qty=RATE"``.

The importers return no time. It is in the name of the file, see :mod:`path_times`, or in the metadata if the importer
writes one. The options ``unit`` and ``interval`` have priority over the metadata of the importer.
"""

import contextlib
import inspect
import io
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import DataError

from .odim_grid import grid_of_pysteps
from .path_times import TIME_OPTIONS, time_from_path
from .projection_text import check_projection
from .radar_frame import FieldChoice, RadarFrame
from .stated_unit import UNIT_OPTIONS, check_unit_option, option_minutes, to_unit

_OWN: tuple[str, ...] = (*TIME_OPTIONS, *UNIT_OPTIONS)
# Of all importers, by their decorator.
_POSTPROCESSING = ("fillna", "dtype")


def importers() -> dict[str, Callable[..., Any]]:
    """Return the importers of pysteps and its plug-ins by their short names."""
    with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints the path of its configuration file
        from pysteps.io import interface

        interface.discover_importers()
    return dict(interface._importer_methods)


def options(name: str) -> tuple[str, ...] | None:
    """Return the keys of an importer: its parameters, those its documentation lists, and those of this reader.

    None if it accepts any keyword and documents none.
    """
    function = importers()[name]
    parameters = list(inspect.signature(function).parameters.values())
    named = [one.name for one in parameters[1:] if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    accepts_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    documented = re.findall(r"^\s{4,8}(\w+)\s?:\s", function.__doc__ or "", re.MULTILINE) if accepts_any else []
    if accepts_any and not function.__doc__:
        return None
    own = {one for one in documented if one not in (parameters[0].name, "out")}
    return tuple(sorted({*named, *own, *_POSTPROCESSING, *_OWN}))


def times(path: Path, choice: FieldChoice, name: str) -> list[datetime]:
    """Return the time of the name of the file, or of the metadata of the importer."""
    time = time_from_path(path, choice)
    return [time] if time is not None else [frame.time for frame in frames(path, choice, name)]


def frames(path: Path, choice: FieldChoice, name: str) -> list[RadarFrame]:
    """Return the field of the importer as a frame.

    Raises:
        DataError: the importer fails, or returns no field with a grid, unit and time that can be used.
    """
    assert choice.importer is not None
    keywords = {key: _literal(value) for key, value in choice.importer.options if key not in _own_keys(name)}
    with contextlib.redirect_stdout(io.StringIO()):
        field, _, metadata = importers()[name](str(path.absolute()), **keywords)
    values = np.ma.filled(np.ma.asarray(field, np.float64), np.nan)
    if values.ndim != 2:
        raise DataError(f"{path}: the importer pysteps:{name} returned shape {values.shape}; two dimensions are valid")
    transform = metadata.get("transform")
    if transform and not (transform == "dB" and str(metadata.get("unit")).lower() == "dbz"):
        raise DataError(
            f"{path}: the importer pysteps:{name} returned the transform {transform!r} of "
            f"{metadata.get('unit')}; physical values are valid"
        )
    # 1. Unit; pysteps has no value for no echo other than the smallest one
    unit_text = check_unit_option(choice) or str(metadata.get("unit", ""))
    minutes = option_minutes(choice) or _minutes(metadata.get("accutime"))
    values, unit, interval = to_unit(values, unit_text, minutes, f"{name} rain", path)
    zero = metadata.get("zerovalue")
    if unit == "dBZ" and zero is not None and np.isfinite(zero):
        values[values <= np.float32(zero)] = -np.inf
    # 2. Grid, north up
    check_projection(str(metadata.get("projection", "")), path)
    grid = grid_of_pysteps(path, values, {"xpixelsize": None, "ypixelsize": None, **metadata})
    if str(metadata.get("yorigin", "upper")) == "lower":
        values = values[::-1]
    # 3. Time
    time = time_from_path(path, choice)
    if time is None:
        raise DataError(
            f"{path}: the importer pysteps:{name} returns no time and the name contains none; give a pattern of the "
            f'name: --importer "pysteps:{name} time=%Y%m%d%H%M"'
        )
    about: dict[str, Any] = {"format": f"pysteps {name}", "quantity": unit_text}
    start = None if interval is None else time - interval
    return [RadarFrame(np.ascontiguousarray(values), unit, time, grid, path, about, start)]


def _own_keys(name: str) -> set[str]:
    """Return the options that are not passed to the importer; a parameter of it has priority."""
    return {*_OWN} - set(inspect.signature(importers()[name]).parameters)


def _minutes(value: Any) -> float | None:
    try:
        minutes = float(value)
    except (TypeError, ValueError):
        return None
    return minutes if minutes > 0 else None


def _literal(text: str) -> Any:
    """Return a number, true, false or null for its text, and any other text unchanged."""
    if text.lower() in ("true", "false", "null", "none"):
        return {"true": True, "false": False}.get(text.lower())
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
