"""Open CF netCDF files and Zarr stores, also a group of one with what it inherits from the groups above it."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py

from simcast_hpc.config import DataError

from .zarr_store import is_remote, is_zarr, open_store

if TYPE_CHECKING:
    import xarray as xr

_MAX_GROUPS = 100


class Opened(NamedTuple):
    """A file: ``decoded`` with unpacked values, ``stored`` with the values and attributes of the file."""

    decoded: "xr.Dataset"
    stored: "xr.Dataset"


@contextmanager
def opened(path: Path, group: str = "", *, endpoint_url: str = "") -> Iterator[Opened]:
    """Open a file for the block.

    Times are not decoded: one that is not used may have any units, see :mod:`cf_times`. The file is opened once for
    both data sets, because opening takes most of the time of a small file.

    Args:
        path: a netCDF file or a Zarr store.
        group: path of a group. Variables of the groups above it are included, unless it contains one of their name or
            another dimension of the name of theirs.
        endpoint_url: of a store in a bucket, see :mod:`zarr_store`.
    """
    import xarray as xr

    parts = [part for part in group.split("/") if part]
    levels = ["/".join(parts[:depth]) for depth in range(len(parts) + 1)]
    with ExitStack() as stack:
        datasets = [stack.enter_context(_open(path, level, endpoint_url=endpoint_url)) for level in levels]
        merged = datasets[0]
        for inner in datasets[1:]:
            inherited = {
                name: variable
                for name, variable in merged.variables.items()
                if name not in inner.variables
                and all(inner.sizes.get(size, length) == length for size, length in variable.sizes.items())
            }
            coordinates = {*merged.coords, *inner.coords}
            merged = xr.Dataset({**inherited, **inner.variables}, attrs={**merged.attrs, **inner.attrs})
            merged = merged.set_coords([name for name in coordinates if name in merged.variables])
        yield Opened(xr.decode_cf(merged, decode_times=False, decode_timedelta=False), merged)


def _open(path: Path, group: str, *, endpoint_url: str) -> "xr.Dataset":
    import xarray as xr

    options: Any = {"decode_cf": False} | ({"group": group} if group else {})
    if is_zarr(path):
        # Consolidated metadata saves requests to a bucket; in a folder they may be older than the arrays.
        consolidated = None if is_remote(path) else False
        store: Any = open_store(path, endpoint_url)
        return xr.open_dataset(store, engine="zarr", chunks=None, consolidated=consolidated, **options)
    with path.open("rb") as file:
        engine = "scipy" if file.read(3) == b"CDF" else "h5netcdf"
    if engine == "h5netcdf":
        options["phony_dims"] = "access"  # its default, without the warning; other HDF5 files have no named dimensions
    return xr.open_dataset(path, engine=engine, **options)


def groups_below(path: Path) -> dict[str, set[str]]:
    """Return the groups of a file except for the root, and the names of the variables in each; none of a bucket.

    Raises:
        DataError: there are more than 100.
    """
    found: dict[str, set[str]] = {}
    if path.is_dir():
        for folder, folders, _ in os.walk(path):
            name = Path(folder).relative_to(path).as_posix()
            if name != "." and _is_zarr_group(Path(folder)):
                found[name] = set(folders)
    elif h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            names: list[str] = []
            file.visit(names.append)
            for name in names:
                if isinstance(group := file[name], h5py.Group):
                    found[name] = set(group)
    if len(found) > _MAX_GROUPS:
        raise DataError(f"{path} contains {len(found)} groups and no field in the root; at most {_MAX_GROUPS} are read")
    return found


def _is_zarr_group(folder: Path) -> bool:
    if (folder / ".zgroup").is_file():
        return True
    try:
        metadata = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("node_type") == "group"
