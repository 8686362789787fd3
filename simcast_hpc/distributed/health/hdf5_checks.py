"""HDF5 as data and forecasts want it: the filters that shards are written with, and locks of files."""

import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from .disk_checks import file_system, standing
from .finding import Finding

_LOCKING = "HDF5_USE_FILE_LOCKING"
_VALUES = ("TRUE", "1", "FALSE", "0", "BEST_EFFORT")


def check_filters(environ: Mapping[str, str]) -> Finding:
    """Return whether LZ4 and Zstd write and read, in memory."""
    block = np.arange(4096, dtype=np.uint8).reshape(64, 64) // 8
    try:
        with h5py.File("filters.h5", "w", driver="core", backing_store=False) as file:
            for name, codec in (("lz4", hdf5plugin.LZ4()), ("zstd", hdf5plugin.Zstd())):
                file.create_dataset(name, data=block, chunks=(16, 64), **codec)
                if not np.array_equal(file[name], block):  # pyright: ignore[reportArgumentType]
                    raise OSError(f"{name} returned other values than were written")
    except (OSError, ValueError) as error:
        do = "reinstall: pip install --force-reinstall -c constraints.txt h5py hdf5plugin"
        return Finding("HDF5", "error", f"a filter does not work: {error}", do)
    path = environ.get("HDF5_PLUGIN_PATH")
    if path and not all(Path(one).is_dir() for one in path.split(":")):
        said = f"HDF5_PLUGIN_PATH={path} names a folder that is not there"
        return Finding("HDF5", "warning", said, "unset HDF5_PLUGIN_PATH: the filters come with hdf5plugin")
    return Finding("HDF5", "ok", f"LZ4 and Zstd work (HDF5 {h5py.version.hdf5_version})")


def check_locking(environ: Mapping[str, str], folder: Path, *, reading: bool) -> Finding:
    """Return whether HDF5 files can be opened in ``folder``, whose file system may know no locks.

    Args:
        environ: the environment, for ``HDF5_USE_FILE_LOCKING``.
        folder: of data, or where a run will write.
        reading: of data: the first HDF5 file that stands there is opened. Otherwise one is written and removed.
    """
    value = environ.get(_LOCKING)
    if value is not None and value.upper() not in _VALUES:
        said = f"{_LOCKING}={value!r} means nothing to HDF5"
        return Finding("file locking", "warning", said, f"set it to one of {', '.join(_VALUES)}")
    kind = file_system(folder)
    try:
        opened = _read_one(folder) if reading else _write_one(standing(folder))
    except OSError as error:
        if "lock" in str(error):
            said = f"HDF5 cannot lock a file in {folder} ({kind}): {error}"
            do = f"export {_LOCKING}=FALSE, or end the program that holds the file"
            return Finding("file locking", "error", said, do)
        if not reading and (error.errno in (errno.ENOSPC, errno.EDQUOT) or "errno = 28" in str(error)):
            return Finding("file locking", "warning", f"not tried: {folder} is full", "make room first")
        return Finding(
            "file locking",
            "error",
            f"HDF5 cannot open a file in {folder} ({kind}): {error}",
            "look at the file, its folder and their permissions",
        )
    how = f" ({_LOCKING}={value})" if value else ""
    return Finding("file locking", "ok", f"{opened} opened on {kind}{how}")


def _read_one(folder: Path) -> str:
    path = next((path for path in folder.rglob("*") if path.suffix in (".h5", ".hdf5")), None)
    if path is None:
        return f"{folder} holds no HDF5 file, so none was"
    with h5py.File(path, "r"):
        return str(path)


def _write_one(folder: Path) -> str:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".simcast-doctor-") as inside:
        path = Path(inside) / "probe.h5"
        with h5py.File(path, "w") as file:
            file["x"] = np.zeros(4)
        with h5py.File(path, "r"):
            return f"a file in {folder}"
