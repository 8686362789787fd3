"""HDF5 compression filters and file locking."""

import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from .disk_checks import existing_parent, file_system
from .finding import Finding

_LOCKING = "HDF5_USE_FILE_LOCKING"
_VALUES = ("TRUE", "1", "FALSE", "0", "BEST_EFFORT")


def check_filters(environ: Mapping[str, str]) -> Finding:
    """Check whether LZ4 and Zstd write and read a block in memory."""
    block = np.arange(4096, dtype=np.uint8).reshape(64, 64) // 8
    try:
        with h5py.File("filters.h5", "w", driver="core", backing_store=False) as file:
            for name, codec in (("lz4", hdf5plugin.LZ4()), ("zstd", hdf5plugin.Zstd())):
                file.create_dataset(name, data=block, chunks=(16, 64), **codec)
                if not np.array_equal(file[name], block):  # pyright: ignore[reportArgumentType]
                    raise OSError(f"{name} returned values that differ from those written")
    except (OSError, ValueError) as error:
        remedy = "reinstall: pip install --force-reinstall -c constraints.txt h5py hdf5plugin"
        return Finding("HDF5", "error", f"a filter fails: {error}", remedy)
    path = environ.get("HDF5_PLUGIN_PATH")
    if path and not all(Path(one).is_dir() for one in path.split(":")):
        message = f"HDF5_PLUGIN_PATH={path} contains a folder that does not exist"
        return Finding("HDF5", "warning", message, "unset HDF5_PLUGIN_PATH: hdf5plugin provides the filters")
    return Finding("HDF5", "ok", f"LZ4 and Zstd work (HDF5 {h5py.version.hdf5_version})")


def check_locking(environ: Mapping[str, str], folder: Path, *, reading: bool) -> Finding:
    """Check whether HDF5 files open in ``folder``; some network file systems support no locks.

    Args:
        environ: the environment, for ``HDF5_USE_FILE_LOCKING``.
        folder: of data, or the run directory.
        reading: open the first HDF5 file in the folder; otherwise write a file and remove it.
    """
    value = environ.get(_LOCKING)
    if value is not None and value.upper() not in _VALUES:
        return Finding("file locking", "warning", f"{_LOCKING}={value!r} is invalid", f"set it to {', '.join(_VALUES)}")
    kind = file_system(folder)
    try:
        opened = _read_one(folder) if reading else _write_one(existing_parent(folder))
    except OSError as error:
        if "lock" in str(error):
            message = f"HDF5 cannot lock a file in {folder} ({kind}): {error}"
            return Finding(
                "file locking", "error", message, f"export {_LOCKING}=FALSE, or end the program that uses it"
            )
        if not reading and (error.errno in (errno.ENOSPC, errno.EDQUOT) or "errno = 28" in str(error)):
            return Finding("file locking", "warning", f"not tested: {folder} is full", "free space first")
        message = f"HDF5 cannot open a file in {folder} ({kind}): {error}"
        return Finding("file locking", "error", message, "check the file, its folder and their permissions")
    suffix = f" ({_LOCKING}={value})" if value else ""
    return Finding("file locking", "ok", f"{opened} opened on {kind}{suffix}")


def _read_one(folder: Path) -> str:
    path = next((path for path in folder.rglob("*") if path.suffix in (".h5", ".hdf5")), None)
    if path is None:
        return f"{folder} contains no HDF5 file; none"
    with h5py.File(path, "r"):
        return str(path)


def _write_one(folder: Path) -> str:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".simcast-doctor-") as inside:
        path = Path(inside) / "probe.h5"
        with h5py.File(path, "w") as file:
            file["x"] = np.zeros(4)
        with h5py.File(path, "r"):
            return f"a file in {folder}"
