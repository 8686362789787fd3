"""Structure of GRIB2 messages, checked before ecCodes reads them: it can crash the process on inconsistent lengths."""

import struct
import zlib
from pathlib import Path

from simcast_hpc.config import DataError

from .declared_size import MAX_PIXELS

_HEADER, _END = 16, b"7777"
# Sections that may follow each section; a message may repeat sections 2, 3 or 4 to 7.
_NEXT = {0: {1}, 1: {2, 3}, 2: {3}, 3: {4}, 4: {5}, 5: {6}, 6: {7}, 7: {2, 3, 4, 8}}
# Shortest sections by number, and of the templates of sections 3 and 5 that are read.
_SHORTEST = {1: 21, 2: 5, 3: 14, 4: 34, 5: 11, 6: 6, 7: 5}
_GRID_TEMPLATE, _SHORTEST_GRID = 0, 72  # latitude and longitude
_SHORTEST_PACKING = {0: 21, 40: 23, 41: 21}  # simple, JPEG 2000, PNG
_SIMPLE, _PNG = 0, 41
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"


def split_messages(data: bytes, path: Path) -> list[bytes]:
    """Return the GRIB2 messages of a file; zero bytes and white space may follow a message.

    Raises:
        DataError: lengths, order or sizes of the sections contradict each other, the grid or the file.
    """
    messages = []
    position = 0
    while position < len(data):
        rest = len(data) - position
        if data[position : position + 4] != b"GRIB" or rest < _HEADER:
            raise DataError(f"{path}: byte {position} begins no GRIB message; the file is damaged or truncated")
        edition, (length,) = data[position + 7], struct.unpack_from(">Q", data, position + 8)
        if edition != 2:
            raise DataError(f"{path} is GRIB of edition {edition}; edition 2 is supported")
        if not _HEADER < length <= rest:
            raise DataError(
                f"{path}: the message at byte {position} declares {length} bytes and {rest} remain; the file is "
                "damaged or truncated"
            )
        messages.append(data[position : position + length])
        _check_message(messages[-1], f"{path}: the message at byte {position}")
        position += length
        position += len(data) - position - len(data[position:].lstrip(b"\0 \r\n"))
    if not messages:
        raise DataError(f"{path} contains no GRIB message; it is truncated")
    return messages


def _check_message(message: bytes, where: str) -> None:
    sections: dict[int, bytes] = {}
    position, previous = _HEADER, 0
    while position < len(message) - len(_END):
        length, number = struct.unpack_from(">IB", message, position)
        end = position + length
        if number not in _NEXT[previous] or length < _SHORTEST[number] or end > len(message) - len(_END):
            raise DataError(f"{where} has a section {number} of {length} bytes at {position}; it is damaged")
        sections[number] = message[position:end]
        if number == 7:
            _check_field(sections, where)
        position, previous = end, number
    if position != len(message) - len(_END) or message[-4:] != _END or 8 not in _NEXT[previous]:
        raise DataError(f"{where} does not end with its section 8; it is damaged or truncated")


def _check_field(sections: dict[int, bytes], where: str) -> None:
    """Compare the number of pixels of grid, data representation, bitmap and data."""
    grid, packing, bitmap, data = (sections[number] for number in (3, 5, 6, 7))
    pixels, template = struct.unpack_from(">I", grid, 6)[0], struct.unpack_from(">H", grid, 12)[0]
    if template != _GRID_TEMPLATE or len(grid) != _SHORTEST_GRID:
        raise DataError(
            f"{where} has the grid template {template} in {len(grid)} bytes; a regular latitude-longitude grid "
            f"(template 0, {_SHORTEST_GRID} bytes) is supported"
        )
    width, height = struct.unpack_from(">II", grid, 30)
    values, representation = struct.unpack_from(">IH", packing, 5)
    if not 0 < pixels <= MAX_PIXELS or width * height != pixels:
        raise DataError(f"{where} declares {width} x {height} and {pixels} pixels; at most {MAX_PIXELS} are valid")
    if len(packing) != _SHORTEST_PACKING.get(representation):
        raise DataError(
            f"{where} has the data representation {representation} in {len(packing)} bytes; simple packing, JPEG 2000 "
            f"and PNG {_SHORTEST_PACKING} are supported"
        )
    has_bitmap = bitmap[5] == 0
    if bitmap[5] not in (0, 255) or (has_bitmap and len(bitmap) < 6 + (pixels + 7) // 8):
        raise DataError(f"{where} has the bitmap {bitmap[5]} in {len(bitmap)} bytes; it does not cover {pixels} pixels")
    if (values != pixels and not has_bitmap) or values > pixels:
        raise DataError(f"{where} has {values} values for {pixels} pixels; it is damaged")
    bits, content = packing[19], data[5:]
    if bits > 32 or (representation == _SIMPLE and len(content) < (values * bits + 7) // 8):
        raise DataError(f"{where} has {values} values of {bits} bits in {len(content)} bytes; it is damaged")
    if representation == _PNG and bits:
        _check_png(content, values, bits, where)


def _check_png(content: bytes, values: int, bits: int, where: str) -> None:
    """Compare the header of a PNG stream with the number of values, and check its chunks."""
    is_png = content[:16] == _PNG_SIGNATURE and len(content) >= 33
    width, height, depth, color = struct.unpack_from(">IIBB", content, 16) if is_png else (0, 0, 0, 0)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}.get(color, 0)
    if width * height != values or depth * channels != bits:
        raise DataError(
            f"{where} has {values} values of {bits} bits and a PNG of {width} x {height} pixels of {depth * channels} "
            "bits; it is damaged"
        )
    position, kind = 8, b""
    while kind != b"IEND" and position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if (
            end > len(content)
            or struct.pack(">I", zlib.crc32(content[position + 4 : end - 4])) != content[end - 4 : end]
        ):
            break
        position = end
    else:
        if kind == b"IEND":
            return
    raise DataError(f"{where} has a damaged PNG: its chunk at byte {position} has an invalid length or checksum")
