"""Forecasts as files that appear whole: written under a hidden name, which no pattern of names takes, then renamed."""

import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

if TYPE_CHECKING:
    import xarray as xr

PARTIAL = ".partial"
_REPLACED = ".replaced"


def stem_of(issue: datetime) -> str:
    """Return the name of a forecast's files without its ending: ``forecast_20240611T1205Z``."""
    return f"forecast_{issue:%Y%m%dT%H%MZ}"


def write_netcdf(dataset: "xr.Dataset", path: Path) -> None:
    """Write netCDF-4, compressed without loss.

    Raises:
        OSError: it cannot be written; what stood under the name still stands.
    """
    encoding = {
        name: {**variable.encoding, **({"zlib": True, "complevel": 1, "shuffle": True} if variable.ndim >= 2 else {})}
        for name, variable in dataset.variables.items()
    }
    _whole(path, lambda partial: dataset.to_netcdf(partial, engine="h5netcdf", encoding=encoding))


def write_zarr(dataset: "xr.Dataset", path: Path) -> None:
    """Write a Zarr store (format 2, which all readers know, with consolidated metadata).

    An older store of the name steps aside by one rename and this one takes its place by another: between the two there
    is none, never half of one.

    Raises:
        OSError: it cannot be written; what stood under the name still stands.
    """
    encoding: dict[Any, Any] = {}
    for name, variable in dataset.variables.items():
        given = dict(variable.encoding)
        chunks = given.pop("chunksizes", None)
        encoding[name] = {**given, **({"chunks": chunks} if chunks else {})}
    plain = dataset.copy(deep=False)
    for variable in plain.variables.values():
        variable.encoding = {}
    _whole(path, lambda partial: plain.to_zarr(partial, mode="w", zarr_format=2, consolidated=True, encoding=encoding))


def write_by(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` write a file or folder beside ``path``, and rename it to that."""
    _whole(path, write)


def is_whole(path: Path) -> bool:
    """Say whether a netCDF file opens and a Zarr store has its metadata, which come last."""
    if path.suffix == ".zarr":
        return (path / ".zmetadata").is_file()
    try:
        with h5py.File(path, "r") as file:
            return "crs" in file
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file or folder if it is there; a folder disappears by a rename first."""
    if path.is_dir():
        aside = path.with_name(f".{path.name}{_REPLACED}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder``."""
    for left in (*folder.glob(f".*{PARTIAL}*"), *folder.glob(f".*{_REPLACED}")):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.stem}{PARTIAL}{path.suffix}")  # writers look at the ending
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        write(partial)
        if partial.is_dir():
            if path.exists():
                remove(path)
        else:
            _to_disk(partial)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
