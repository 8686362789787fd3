"""Limits on the sizes that radar files declare, checked before memory is allocated for them."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

from simcast_hpc.config import DataError

# The largest public composites have 36 million pixels (FMI GeoTIFF of 250 m), 25 million (MRMS) and 17 million (OPERA).
MAX_PIXELS = 2**26
MAX_BYTES = 2**29  # of a decompressed file
MAX_ARRAY_BYTES = 2**31  # of a variable with several times


def check_pixels(height: int, width: int, path: Path) -> None:
    """Check the size that a file declares for a field.

    Raises:
        DataError: a side is not positive, or the field has more than ``MAX_PIXELS`` pixels.
    """
    if height <= 0 or width <= 0 or height * width > MAX_PIXELS:
        raise DataError(f"{path} declares {height} x {width} pixels; 1 to {MAX_PIXELS} are valid")


def check_array(shape: Sequence[int], itemsize: int, where: str) -> None:
    """Check the size that a file declares for an array, which compression can make much larger than the file.

    Args:
        shape: lengths of its dimensions.
        itemsize: bytes of an element.
        where: file and array, for the message.

    Raises:
        DataError: the array has more than ``MAX_ARRAY_BYTES`` bytes, or a field of it more than ``MAX_PIXELS`` pixels.
    """
    if math.prod(shape[-2:]) > MAX_PIXELS or math.prod(shape) * itemsize > MAX_ARRAY_BYTES:
        raise DataError(
            f"{where} declares the shape {tuple(shape)} of {itemsize} bytes; at most {MAX_PIXELS} pixels and "
            f"{MAX_ARRAY_BYTES} bytes are valid"
        )


def is_gzipped(path: Path) -> bool:
    """Return whether a file is compressed with gzip."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a plain or gzipped file.

    Raises:
        DataError: the content is longer than ``limit`` bytes.
    """
    with gzip.open(path) if is_gzipped(path) else path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path} contains more than {limit} bytes; this is no radar composite of a supported size")
    return content
