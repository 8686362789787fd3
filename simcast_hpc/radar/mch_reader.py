"""Reader of MeteoSwiss' 8-bit GIF accumulations (products AQC and CPC, 5 minutes).

The comment of the file contains product, time and accumulation: ``PRDT=AQC151351545`` is product, year, day of the
year, hour and minute; ``ACCUm=000005`` is the interval in minutes.
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simcast_hpc.config import DataError

from .radar_frame import FieldChoice, RadarFrame, RadarGrid

_PRODUCT = re.compile(r"PRDT=([A-Z]{3})(\d{9})(?!\d)")
_MINUTES = re.compile(r"ACCUm=(\d{1,9})(?!\d)")
_PRODUCTS = ("AQC", "CPC")
# Swiss LV03, 1 km.
_HEIGHT, _WIDTH = 640, 710
_GRID = RadarGrid(
    "+proj=somerc +lon_0=7.43958333333333 +lat_0=46.9524055555556 +k_0=1 +x_0=600000 +y_0=200000 +ellps=bessel "
    "+towgs84=674.374,15.056,405.346,0,0,0,0 +units=m +no_defs",
    255_000.0, 480_000.0, 1000.0, 1000.0, _HEIGHT, _WIDTH,
)  # fmt: skip


def times(path: Path, _choice: FieldChoice) -> list[datetime]:
    """Return the end of the accumulation interval."""
    with Image.open(path, formats=["GIF"]) as image:
        return [_comment(image, path)[1]]


def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
    """Return the mean rain rate over the accumulation interval.

    Raises:
        DataError: product, interval or size are not supported, or the image is incomplete.
    """
    with Image.open(path, formats=["GIF"]) as image:
        product, time, minutes = _comment(image, path)
        if product not in _PRODUCTS or minutes != 5:
            raise DataError(
                f"{path} is product {product} over {minutes} minutes; {' or '.join(_PRODUCTS)} over 5 minutes is "
                "supported"
            )
        # A partial frame would leave the rest of the image at 0, no rain.
        extent = image.tile[0][1] if image.tile else None
        if image.size != (_WIDTH, _HEIGHT) or image.mode != "P" or extent != (0, 0, _WIDTH, _HEIGHT):
            raise DataError(
                f"{path} has {image.size} pixels of mode {image.mode} and a frame {extent}; {_WIDTH} x {_HEIGHT} of "
                "mode P in one frame are valid"
            )
        if getattr(image, "n_frames", 1) != 1:
            raise DataError(f"{path} has {getattr(image, 'n_frames', 1)} frames; one is valid")
        values = (_millimeters()[np.asarray(image)] * (60.0 / minutes)).astype(np.float32)
    metadata = {"format": "MeteoSwiss GIF", "quantity": product, "accumulation_minutes": float(minutes)}
    return [RadarFrame(values, "mm/h", time, _GRID, path, metadata, start=time - timedelta(minutes=minutes))]


def _millimeters() -> np.ndarray:
    """Return the accumulation of each pixel value in mm, float64 ``[256]``, by the relation of MeteoSwiss' products.

    0 and 1 are no rain; 251 to 254 have no meaning and are missing like 255.
    """
    pixel = np.arange(256)
    values = (10.0 ** ((pixel - 71.5) / 20.0) / 316.0) ** (1.0 / 1.5)
    values[:2] = 0.0
    values[251:] = np.nan
    return values


def _comment(image: Any, path: Path) -> tuple[str, datetime, int]:
    """Return product, time and minutes of accumulation.

    Raises:
        DataError: the comment does not contain them.
    """
    comment = image.info.get("comment", b"")
    text = comment.decode("latin-1") if isinstance(comment, bytes) else str(comment)
    product, minutes = _PRODUCT.search(text), _MINUTES.search(text)
    if product is None or minutes is None:
        raise DataError(
            f"{path}: the comment {text[:80]!r} does not contain PRDT=<product><yydddHHMM> and ACCUm=<minutes>"
        )
    try:
        time = datetime.strptime(product[2], "%y%j%H%M").replace(tzinfo=UTC)
        if f"{time:%y%j%H%M}" != product[2]:  # strptime accepts day 366 of any year
            raise ValueError("the year has 365 days")
    except ValueError as error:
        raise DataError(f"{path}: the time {product[2]!r} in the comment is not of the form yydddHHMM") from error
    return product[1], time, int(minutes[1])
