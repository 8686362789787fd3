"""The letters of pictures that Pillow draws: those of the charts, which hold the signs that its own font lacks."""

from functools import cache
from pathlib import Path

from matplotlib import get_data_path
from PIL import ImageFont


@cache
def letters(pixels: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's DejaVu Sans of this height."""
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", pixels)
