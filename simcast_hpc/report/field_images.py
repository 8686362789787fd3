"""Images of single fields: palette PNGs in which every pixel of the field is enlarged by an integer factor."""

import io

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from .colors import MISSING_FACE, MISSING_HATCH, Steps

SIDE = 192
_STRIPE_PIXELS = 6


def field_image(frame: np.ndarray, steps: Steps, *, side: int = SIDE) -> Image.Image:
    """Return a palette image of ``[H, W]``, uint8 or floats in [0, 1]; missing pixels are gray and hatched.

    A field smaller than ``side`` is enlarged by the largest integer factor that keeps its longer side within ``side``.
    """
    index = steps.index(frame)
    factor = max(1, side // max(frame.shape))
    pixels = np.repeat(np.repeat(index.filled(len(steps.colors)), factor, axis=0), factor, axis=1)
    rows, columns = np.indices(pixels.shape)
    stripe = (rows + columns) % _STRIPE_PIXELS < _STRIPE_PIXELS // 3
    pixels = np.where((pixels == len(steps.colors)) & stripe, len(steps.colors) + 1, pixels)
    image = Image.fromarray(pixels.astype(np.uint8), mode="P")
    image.putpalette(palette(steps))
    return image


def palette(steps: Steps) -> list[int]:
    """Return red, green and blue, 0 to 255, of each step, of missing pixels and of their hatching."""
    colors = [*steps.colors, MISSING_FACE, MISSING_HATCH]
    return [round(255 * part) for color in colors for part in to_rgb(color)]


def as_png(image: Image.Image) -> bytes:
    """Return the image as an optimized PNG."""
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    return target.getvalue()
