"""MeteoSwiss' 8-bit GIF accumulations (products AQC and CPC, 5 minutes), by pysteps' importer.

The file says product, time and accumulation in its comment: ``PRDT=AQC151351545`` is product, year, day of the year,
hour and minute; ``ACCUm=000005`` the minutes.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from simcast_hpc.config import DataError

from .odim_reader import grid_of_pysteps
from .radar_frame import RadarFrame, Unit

_PRODUCT = re.compile(r"PRDT=([A-Z]{3})(\d{9})")
_MINUTES = re.compile(r"ACCUm=(\d+)")
_READ = ("AQC", "CPC")


def times(path: Path) -> list[datetime]:
    """Return the end of the accumulation."""
    return [_about(path)[1]]


def frames(path: Path, _prefer: Unit) -> list[RadarFrame]:
    """Return the rain rate over the accumulation."""
    from pysteps.io.importers import import_mch_gif

    product, time, minutes = _about(path)
    if product not in _READ or minutes != 5:
        raise DataError(f"{path} is the product {product} over {minutes} minutes; {' or '.join(_READ)} over 5 is read")
    values, _, about = import_mch_gif(str(path), product, "mm", float(minutes))
    values = (values * (60.0 / minutes)).astype(np.float32)
    grid = grid_of_pysteps(path, values, about)
    return [RadarFrame(values, "mm/h", time, grid, path, {"format": "MeteoSwiss GIF", "quantity": product})]


def _about(path: Path) -> tuple[str, datetime, int]:
    with Image.open(path) as image:
        comment = image.info.get("comment", b"")
    said = comment.decode("latin-1") if isinstance(comment, bytes) else str(comment)
    product, minutes = _PRODUCT.search(said), _MINUTES.search(said)
    if product is None or minutes is None:
        raise DataError(
            f"{path}: its comment is {said[:80]!r}; PRDT=<product><yydddHHMM> and ACCUm=<minutes> are needed"
        )
    time = datetime.strptime(product[2], "%y%j%H%M").replace(tzinfo=UTC)
    return product[1], time, int(minutes[1])
