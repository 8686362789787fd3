"""Detect the format of a radar file by its content; the name of the file is not used."""

import bz2
import gzip
import zlib
from pathlib import Path

import h5py

from simcast_hpc.config import DataError
from simcast_hpc.data.hdf5_guard import check_hdf5

from . import odim_attributes, odim_reader
from .format_registry import BUILT_IN, Format, plugin_format, xradar_format
from .iris_product_reader import is_iris, is_raw
from .radolan_header import is_radolan
from .radolan_reader import is_tar
from .reader_plugins import detecting
from .zarr_store import is_zarr

SUPPORTED_FORMATS = (
    "ODIM HDF5 composites and volumes, KNMI HDF5, MRMS GRIB2, FMI PGM, MeteoSwiss GIF, CF netCDF, CF Zarr, RADOLAN, "
    "GeoTIFF, IRIS, Rainbow, GAMIC HDF5, NEXRAD level 2 and CfRadial; --importer selects others"
)
_HDF5, _GZIP, _BZIP2 = b"\x89HDF\r\n\x1a\n", b"\x1f\x8b", b"BZh"
_HEAD_BYTES = 512
# First bytes of other compressions.
_COMPRESSIONS = {
    _BZIP2: "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z",
    b"\x1f\x9d": "compress", _GZIP: "gzip",
}  # fmt: skip
_COMMANDS = {"gzip": "gunzip", "bzip2": "bunzip2"}
_STARTS = {
    b"GRIB": "mrms", b"P5": "fmi", b"GIF8": "mch", b"CDF": "cf", _HDF5: "",
    b"AR2V": "xradar:nexradlevel2", b"ARCHIVE2": "xradar:nexradlevel2", b"<volume": "xradar:rainbow",
    b"II*\x00": "geotiff", b"MM\x00*": "geotiff", b"II+\x00": "geotiff", b"MM\x00+": "geotiff",
}  # fmt: skip


def detect_format(path: Path) -> Format:
    """Return the format of a file by its first bytes and, for HDF5, its groups.

    Raises:
        DataError: the file cannot be opened, or its format is not supported.
    """
    if is_zarr(path):
        return BUILT_IN["zarr"]
    require_regular(path)
    try:
        head, compression = _head(path)
        # The signature may follow a user block.
        if not compression and (head.startswith(_HDF5) or (not _is_known(head) and _is_hdf5(path))):
            return _of_hdf5(path, head)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if compression and head.startswith(_HDF5):
        raise _compressed_error(path, "HDF5", compression)
    name = _name_by_head(head, path)
    if name is not None:
        found = _of_name(name)
        if compression and compression not in found.compressions:
            raise _compressed_error(path, found.name, compression)
        if head.startswith(b"CDF\x05"):
            raise DataError(
                f"{path} is netCDF in the format CDF-5 (64-bit data); `nccopy -k nc4` converts it to netCDF-4"
            )
        return found
    if (plugin := detecting(path, head)) is not None:
        return plugin_format(plugin)
    for start, inner in _COMPRESSIONS.items():
        if head.startswith(start):
            twice = " twice" if inner == compression else f" and {compression}" if compression else ""
            raise DataError(f"{path} is compressed with {inner}{twice}; decompress it first")
    content = "is empty" if not head else f"begins with {head[:8]!r}"
    raise DataError(f"{path} {content}; the supported formats are {SUPPORTED_FORMATS}")


def require_regular(path: Path) -> None:
    """Check that a path is a file, a Zarr store, or absent, which is reported when it is opened.

    Raises:
        DataError: it is another folder, a pipe or a device.
    """
    if path.exists() and not path.is_file() and not is_zarr(path):  # a pipe would block
        kind = "a folder without a Zarr group" if path.is_dir() else "not a regular file"
        raise DataError(f"{path} is {kind}; the supported formats are {SUPPORTED_FORMATS}")


def _head(path: Path) -> tuple[bytes, str]:
    """Return the first bytes of the content, decompressed, and the compression, empty without one."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(_GZIP):
        with gzip.open(path) as content:
            return content.read(_HEAD_BYTES), "gzip"
    if head.startswith(_BZIP2):
        with bz2.open(path) as content:
            return content.read(_HEAD_BYTES), "bzip2"
    return head, ""


def _is_known(head: bytes) -> bool:
    return is_radolan(head) or any(map(head.startswith, _STARTS)) or any(map(head.startswith, _COMPRESSIONS))


def _name_by_head(head: bytes, path: Path) -> str | None:
    """Return the name of a format by the first bytes of the content.

    Raises:
        DataError: the content is a compressed tar archive.
    """
    if is_radolan(head):
        return "radolan"
    if is_tar(head):
        if not is_tar(_plain_head(path)):
            raise DataError(f"{path} is a compressed tar archive; decompress it first, or unpack it")
        return "radolan"
    if is_iris(head):
        return "xradar:iris" if is_raw(head) else "iris"
    name = next((name for start, name in _STARTS.items() if name and head.startswith(start)), None)
    return "xradar:cfradial1" if name == "cf" and _is_cfradial(head) else name


def _of_name(name: str) -> Format:
    package, _, own = name.partition(":")
    return xradar_format(own) if package == "xradar" else BUILT_IN[name]


def _is_cfradial(text: bytes | str) -> bool:
    lower = (text if isinstance(text, str) else text.decode("latin-1")).lower()
    return "cf/radial" in lower or "cf-radial" in lower or "cfradial" in lower


def _of_hdf5(path: Path, head: bytes) -> Format:
    """Return the format of an HDF5 file: a plug-in for one that is neither of a service nor CF, if one detects it."""
    name = _hdf5_format(path)
    plugin = detecting(path, head) if name == "cf" else None
    return _of_name(name) if plugin is None else plugin_format(plugin)


def _plain_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _compressed_error(path: Path, name: str, compression: str) -> DataError:
    *names, last = dict.fromkeys(one.name for one in BUILT_IN.values() if compression in one.compressions)
    reads = f"{', '.join(names)} and {last}" if names else last
    return DataError(
        f"{path} is {name} compressed with {compression}; only {reads} are read so, others must be decompressed first "
        f"({_COMMANDS[compression]})"
    )


def _is_hdf5(path: Path) -> bool:
    try:
        return h5py.is_hdf5(path)
    except Exception:
        return False


def _hdf5_format(path: Path) -> str:
    with h5py.File(path, "r") as file:
        check_hdf5(file, path)
        conventions = odim_attributes.text(file.attrs.get("Conventions", ""))
        if conventions.startswith("ODIM_H5") or {"what", "dataset1"} <= set(file):
            return "polar" if odim_reader.object_of(file) in ("PVOL", "SCAN") else "odim"
        if {"overview", "scan1"} <= set(file):
            return "knmi-polar"
        if "scan0" in file and "how" in file:
            return "xradar:gamic"
        groups = set(file)
        if _is_cfradial(conventions) or {"sweep_fixed_angle", "azimuth", "range"} <= groups:
            return "xradar:cfradial1" if "azimuth" in groups else "xradar:cfradial2"
        if conventions.startswith("WMO") or {"sweep_group_name", "sweep_fixed_angle"} <= groups:
            return "xradar:cfradial2"
        return "knmi" if {"overview", "geographic", "image1"} <= set(file) else "cf"
