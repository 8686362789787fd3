"""Reader of MeteoSwiss' 8-bit GIF accumulations (products AQC and CPC, 5 minutes), using pysteps.

The comment of the file contains product, time and accumulation: ``PRDT=AQC151351545`` is product, year, day of the
year, hour and minute; ``ACCUm=000005`` is the interval in minutes.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from simcast_hpc.config import DataError

from .odim_grid import grid_of_pysteps
from .radar_frame import FieldChoice, RadarFrame

_PRODUCT = re.compile(r"PRDT=([A-Z]{3})(\d{9})")
_MINUTES = re.compile(r"ACCUm=(\d+)")
_PRODUCTS = ("AQC", "CPC")


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the end of the accumulation interval."""
    return [_comment(path)[1]]


def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
    """Return the mean rain rate over the accumulation interval."""
    from pysteps.io.importers import import_mch_gif

    product, time, minutes = _comment(path)
    if product not in _PRODUCTS or minutes != 5:
        raise DataError(
            f"{path} is product {product} over {minutes} minutes; {' or '.join(_PRODUCTS)} over 5 minutes is supported"
        )
    values, _, metadata = import_mch_gif(str(path), product, "mm", float(minutes))
    values = (values * (60.0 / minutes)).astype(np.float32)
    grid = grid_of_pysteps(path, values, metadata)
    return [RadarFrame(values, "mm/h", time, grid, path, {"format": "MeteoSwiss GIF", "quantity": product})]


def _comment(path: Path) -> tuple[str, datetime, int]:
    with Image.open(path) as image:
        comment = image.info.get("comment", b"")
    text = comment.decode("latin-1") if isinstance(comment, bytes) else str(comment)
    product, minutes = _PRODUCT.search(text), _MINUTES.search(text)
    if product is None or minutes is None:
        raise DataError(
            f"{path}: the comment {text[:80]!r} does not contain PRDT=<product><yydddHHMM> and ACCUm=<minutes>"
        )
    time = datetime.strptime(product[2], "%y%j%H%M").replace(tzinfo=UTC)
    return product[1], time, int(minutes[1])
