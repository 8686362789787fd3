"""Reader of RADOLAN and RADKLIM composites in binary form, plain, in gzip or bzip2, and of plain tar archives of them.

Rows are stored from south to north. In 16-bit products, bits 0 to 11 are the value; bit 12 marks values from other
sources, which are kept, bit 13 missing pixels, bit 14 negative values and bit 15 clutter, which becomes missing. In
8-bit products 249 is clutter and 250 and above missing. Reflectivity is value / 2 - 32.5 dBZ, and 0 is no echo.
"""

import bz2
import gzip
import io
import tarfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from simcast_hpc.config import DataError

from .radar_frame import FieldChoice, RadarFrame
from .radolan_header import MAX_HEADER_BYTES, RadolanHeader, parse_header

_GZIP, _BZIP2 = b"\x1f\x8b", b"BZh"
_VALUE, _MISSING, _NEGATIVE, _CLUTTER = 0x0FFF, 0x2000, 0x4000, 0x8000
_FIRST_MISSING_8BIT = 249
_NO_ECHO_DBZ = -32.5
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_MAX_MEMBERS = 100_000
_MAX_MEMBER_BYTES = 64 << 20


def is_tar(head: bytes) -> bool:
    """Return whether a file that starts with ``head``, at least 262 bytes, is an uncompressed tar archive."""
    return head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the observation time, or the end of the accumulation interval, of each composite."""
    return [header.time for header, _, _ in _composites(path, None)]


def frames(path: Path, choice: FieldChoice) -> list[RadarFrame]:
    """Return the composites as reflectivity, or as mean rain rate over the accumulation interval.

    Raises:
        DataError: a header is not supported, or the number of bytes does not match its grid.
    """
    return [_frame(header, content, path, place) for header, content, place in _composites(path, choice)]


def _composites(path: Path, choice: FieldChoice | None) -> Iterator[tuple[RadolanHeader, bytes, Path]]:
    """Yield header, content and place of the chosen composites; without a choice, only the headers of all."""
    with path.open("rb") as file:
        if not is_tar(file.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))):
            file.seek(0)
            yield from _composite(file, choice, path)
            return
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= _MAX_MEMBERS:
                    raise DataError(f"{path} has more than {_MAX_MEMBERS} members; divide it")
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None and member.size <= _MAX_MEMBER_BYTES:
                    yield from _composite(content, choice, path / member.name)


def _composite(file: IO[bytes], choice: FieldChoice | None, place: Path) -> Iterator[tuple[RadolanHeader, bytes, Path]]:
    with _decompressed(file) as content:
        head = content.read(MAX_HEADER_BYTES)
        header = parse_header(head, place)
        if choice is None:
            yield header, b"", place
        elif choice.includes(header.time):
            yield header, head + content.read(max(0, _size(header) + 1 - len(head))), place


def _decompressed(file: IO[bytes]) -> Any:
    start = file.read(3)
    file.seek(0)
    if start.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)
    return bz2.BZ2File(file) if start == _BZIP2 else io.BufferedReader(file)  # type: ignore[arg-type]


def _size(header: RadolanHeader) -> int:
    height, width = header.shape
    return header.data_start + height * width * header.value_bytes


def _frame(header: RadolanHeader, content: bytes, path: Path, place: Path) -> RadarFrame:
    if len(content) != _size(header):
        size = f"{len(content)}" if len(content) < _size(header) else f"more than {_size(header)}"
        raise DataError(
            f"{place} contains {size} bytes; its header and "
            f"grid ({header.product} of {header.time:%Y-%m-%d %H:%M}) have {_size(header)}; it may be damaged or "
            "truncated"
        )
    dtype = np.uint8 if header.value_bytes == 1 else np.dtype("<u2")
    stored = np.frombuffer(content, dtype, offset=header.data_start).reshape(header.shape)[::-1]
    # 1. Values and missing pixels
    if header.value_bytes == 1:
        codes, missing = stored.astype(np.float64), stored >= _FIRST_MISSING_8BIT
    else:
        codes = (stored & _VALUE) * np.where(stored & _NEGATIVE, -1.0, 1.0) * 10.0**header.exponent
        missing = (stored & (_MISSING | _CLUTTER)) != 0
    # 2. Physical units
    if header.minutes is None:
        values = (codes / 2.0 + _NO_ECHO_DBZ).astype(np.float32)
        values[codes == 0] = -np.inf
    else:
        values = (codes * (60.0 / header.minutes)).astype(np.float32)
    values[missing] = np.nan
    metadata: dict[str, Any] = {"format": "RADOLAN", "quantity": header.product}
    if header.minutes is not None:
        metadata["accumulation_minutes"] = float(header.minutes)
    return RadarFrame(values, header.unit, header.time, header.grid(), path, metadata, header.start)
