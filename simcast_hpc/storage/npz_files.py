"""Read NumPy archives (``.npz``) that other people wrote, without pickles and in memory that the file's size bounds."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from simcast_hpc.config import SimcastError

from .zip_members import check_members


def load_npz(path: Path, *, error: type[SimcastError], what: str) -> dict[str, np.ndarray]:
    """Return all arrays of a file by name.

    Args:
        path: an archive of ``numpy.savez`` or ``numpy.savez_compressed``.
        error: type of the errors.
        what: description of the file in errors, such as ``the forecasts``.

    Raises:
        SimcastError: of type ``error``: the file cannot be read, contains Python objects, declares arrays that are
            larger than what it stores, or stores bytes that several arrays share.
    """
    try:
        with zipfile.ZipFile(path) as file:
            check_members(file)
            for member in file.infolist():
                _check_member(file, member)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except OSError as cause:
        raise error(f"{what} {path} cannot be read: {cause.strerror or cause}") from cause
    except Exception as cause:  # the parsers that NumPy calls raise errors of several modules
        raise error(f"{what} {path} is damaged or not an npz file: {cause or type(cause).__name__}") from cause


def _check_member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if not member.filename.endswith(".npy"):
        raise ValueError(f"{member.filename!r} is not an array")
    with file.open(member) as stream:
        shape, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError(f"{member.filename!r} contains Python objects, which are not loaded")
    if any(side < 0 for side in shape) or math.prod(shape) * max(dtype.itemsize, 1) > member.file_size:
        raise ValueError(f"{member.filename!r} declares shape {shape} of {dtype} in {member.file_size} bytes")


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and dtype in the header of an array file."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
