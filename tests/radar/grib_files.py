"""GRIB2 messages of MRMS, written byte by byte by the tables of WMO, and of any invalid content."""

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

MISSING_SECTION = object()


def grib_message(
    values: np.ndarray,
    *,
    category: int = 6,
    number: int = 1,
    reference: float = -3.0,
    first: tuple[float, float] = (40.995, 260.005),
    last: tuple[float, float] | None = None,
    increment: float = 0.01,
    scanning: int = 0,
    packing: int = 0,
    time: tuple[int, ...] = (2019, 6, 10, 0, 2, 30),
    discipline: int = 209,
    forecast: int = 0,
    sections: dict[int, Any] | None = None,
) -> bytes:
    """Return a message of ``values`` ``[H, W]`` as stored: tenths above ``reference``, 16 bits; packing 0 or 41 (PNG).

    ``first`` and ``last`` are latitude and longitude. ``sections`` replaces the content of sections by number.
    """
    height, width = values.shape
    if last is None:
        last = (first[0] - (height - 1) * increment, first[1] + (width - 1) * increment)
    degrees = [round(value * 1e6) for value in (*first, *last)]
    codes = np.round((values - reference) * 10).astype(">u2")
    data = codes.tobytes()
    if packing == 41:
        buffer = io.BytesIO()
        Image.fromarray(codes.astype(np.uint16)).save(buffer, "PNG")
        data = buffer.getvalue()
    step = round(increment * 1e6)
    content: dict[int, Any] = {
        1: struct.pack(">HHBBBHBBBBBBB", 161, 0, 255, 1, 3, time[0], *time[1:], 0, 2),
        3: struct.pack(
            ">BIBBHBBIBIBIIIIIiIBiIIIB", 0, height * width, 0, 0, 0, 2, 1, 6367470, 1, 6378160, 1, 6356775,
            width, height, 0, 0xFFFFFFFF, degrees[0], degrees[1], 48, degrees[2], degrees[3], step, step, scanning,
        ),
        4: struct.pack(">HHBBBBBHBBIBBIBBI", 0, 0, category, number, 8, 0, 97, 0, 0, 0, forecast, 102, 0, 0, 255, 1, 0),
        5: struct.pack(">IHfhhBB", height * width, packing, 10 * reference, 0, 1, 16, 0),
        6: b"\xff",
        7: data,
    }  # fmt: skip
    content |= sections or {}
    body = b"".join(
        struct.pack(">IB", len(part) + 5, key) + part for key, part in content.items() if part is not MISSING_SECTION
    )
    return struct.pack(">4sHBBQ", b"GRIB", 0, discipline, 2, 16 + len(body) + 4) + body + b"7777"
