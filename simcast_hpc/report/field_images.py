"""One field as one small picture: a palette PNG whose pixels are the field's, enlarged by a whole factor."""

import io

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from .colours import MISSING_FACE, MISSING_HATCH, Steps

SIDE = 192
_STRIPE_PIXELS = 6


def field_image(frame: np.ndarray, steps: Steps, *, side: int = SIDE) -> Image.Image:
    """Return ``[H, W]``, codes or floats in [0, 1], as a palette picture; missing pixels are grey and hatched.

    A field smaller than ``side`` is enlarged by the whole factor that brings its longer side there or just below.
    """
    index = steps.index(frame)
    factor = max(1, side // max(frame.shape))
    drawn = np.repeat(np.repeat(index.filled(len(steps.colours)), factor, axis=0), factor, axis=1)
    rows, columns = np.indices(drawn.shape)
    stripe = (rows + columns) % _STRIPE_PIXELS < _STRIPE_PIXELS // 3
    drawn = np.where((drawn == len(steps.colours)) & stripe, len(steps.colours) + 1, drawn)
    image = Image.fromarray(drawn.astype(np.uint8), mode="P")
    image.putpalette(palette(steps))
    return image


def palette(steps: Steps) -> list[int]:
    """Return red, green, blue, 0 to 255, of each step, of what is missing, and of the hatch on it."""
    colours = [*steps.colours, MISSING_FACE, MISSING_HATCH]
    return [round(255 * part) for colour in colours for part in to_rgb(colour)]


def as_png(image: Image.Image) -> bytes:
    """Return the picture as PNG, as small as it goes."""
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    return target.getvalue()
