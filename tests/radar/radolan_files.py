"""RADOLAN composites for tests, written by the description of the format."""

from datetime import datetime
from pathlib import Path

import numpy as np


def radolan_header(
    product: str,
    time: datetime,
    *,
    shape: tuple[int, int] = (900, 900),
    data_bytes: int,
    interval: str = "   5",
    precision: str = "-02",
    version: int = 3,
    more: str = "",
) -> bytes:
    """Return a header whose number of bytes is the size of the file."""
    start = f"{product}{time:%d%H%M}10000{time:%m%y}BY"
    rest = (
        f"VS{version:2d}SW   2.21.0PR E{precision}INT{interval}GP{shape[0]:4d}x{shape[1]:4d}{more}"
        "MS 70<asb,boo,ros,hnr,umd,pro,ess,fld,drs,neu,nhb,oft,eis,tur,isn,fbg,mem> "
    )
    size = len(start) + 7 + len(rest) + 1 + data_bytes
    return f"{start}{size:7d}{rest}".encode() + b"\x03"


def write_radolan(path: Path, stored: np.ndarray, time: datetime, product: str = "RY", **header: object) -> Path:
    """Write a composite of stored values ``[H, W]``, row 0 south, uint8 or uint16."""
    data = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    content = radolan_header(product, time, shape=stored.shape, data_bytes=len(data), **header)  # type: ignore[arg-type]
    path.write_bytes(content + data)
    return path
