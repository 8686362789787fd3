"""Reader of MeteoSwiss' 8-bit GIF accumulations (products AQC and CPC, 5 minutes).

The comment of the file contains product, time and accumulation: ``PRDT=AQC151351545`` is product, year, day of the
year, hour and minute; ``ACCUm=000005`` is the interval in minutes. The pixel values are the classes of the product; a
file with other colors was saved by another program, which may have changed the pixel values.
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
_NO_DATA = 255
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
        DataError: product, interval or size are not supported, the image is incomplete, or its colors are not those of
            the product.
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
        pixels = np.asarray(image)
        _check_colors(image, pixels, path)
        values = (_millimeters()[pixels] * (60.0 / minutes)).astype(np.float32)
    metadata = {"format": "MeteoSwiss GIF", "quantity": product, "accumulation_minutes": float(minutes)}
    return [RadarFrame(values, "mm/h", time, _GRID, path, metadata, start=time - timedelta(minutes=minutes))]


def _colors() -> np.ndarray:
    """Return the palette of the product, uint8 ``[256, 3]``: white over shades of red to red, black where missing."""
    shade = 255 - np.arange(256)
    colors = np.stack([np.full(256, 255), shade, shade], axis=1).astype(np.uint8)
    colors[_NO_DATA] = 0
    return colors


def _check_colors(image: Any, pixels: np.ndarray, path: Path) -> None:
    """Check that every pixel value of the image has the color of the product.

    Raises:
        DataError: one has another color, or none.
    """
    expected = _colors()
    stored = np.full_like(expected, 0, dtype=np.int64) - 1
    palette = np.array(image.getpalette("RGB") or [], np.int64).reshape(-1, 3)
    stored[: len(palette)] = palette
    used = np.unique(pixels)
    other = used[(stored[used] != expected[used]).any(axis=1)]
    if len(other):
        first = int(other[0])
        color = stored[first].tolist() if first < len(palette) else "none"
        raise DataError(
            f"{path}: the color of pixel value {first} is {color}; it must be {expected[first].tolist()} as in the "
            "original file of MeteoSwiss, because another palette has other pixel values"
        )


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
