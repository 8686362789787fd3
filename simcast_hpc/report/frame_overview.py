"""One image of a window for slides: inputs, observation and every forecast."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .colors import MISSING_FACE, Steps, font
from .field_images import field_image
from .field_viewer import Panel, in_minutes

MOST_COLUMNS = 6
_SIDE, _GAP = 150, 6
_LABEL, _TIMES, _FOOT = 150, 24, 60
_COLORS = 64
_INK, _PAPER, _EDGE = "#222222", "white", "#6b7785"


def overview(
    inputs: Panel, forecasts: Sequence[Panel], *, minutes_in: Sequence[float], minutes_out: Sequence[float], title: str
) -> Image.Image:
    """Return an image with a row of inputs and one row per panel, of at most six evenly spaced frames each.

    Args:
        inputs: the input frames.
        forecasts: the observation first, then each forecast; all with the color scale of ``inputs``.
        minutes_in: time of each input frame relative to the last one.
        minutes_out: lead time of each forecast frame.
        title: title of the color scale: quantity and unit.
    """
    into, out = frame_indices(len(minutes_in)), frame_indices(len(minutes_out))
    columns = max(len(into), len(out))
    bands = 2 * _TIMES + (len(forecasts) + 1) * (_SIDE + _GAP)
    picture = Image.new("RGB", (_LABEL + columns * (_SIDE + _GAP), bands + _FOOT), _PAPER)
    pen = ImageDraw.Draw(picture)
    _times(pen, [minutes_in[k] for k in into], top=0)
    _row(picture, pen, inputs, into, top=_TIMES)
    top = _TIMES + _SIDE + _GAP
    _times(pen, [minutes_out[k] for k in out], top=top)
    for row, panel in enumerate(forecasts):
        _row(picture, pen, panel, out, top=top + _TIMES + row * (_SIDE + _GAP))
    _scale(pen, inputs.steps, title, top=bands + 6, width=picture.width)
    return picture.quantize(_COLORS, dither=Image.Dither.NONE)


def frame_indices(count: int) -> list[int]:
    """Return the indices of at most six evenly spaced frames out of ``count``, including the last."""
    return [int(k) for k in np.unique(np.linspace(0, count - 1, min(count, MOST_COLUMNS)).round())]


def _times(pen: ImageDraw.ImageDraw, minutes: Sequence[float], *, top: int) -> None:
    for column, time in enumerate(minutes):
        middle = _LABEL + column * (_SIDE + _GAP) + _SIDE // 2
        pen.text((middle, top + _TIMES // 2), in_minutes(time), fill=_INK, anchor="mm", font=font(13))


def _row(picture: Image.Image, pen: ImageDraw.ImageDraw, panel: Panel, frames: Sequence[int], *, top: int) -> None:
    middle, shift = top + _SIDE // 2, 9 if panel.note else 0
    pen.text((_LABEL - 10, middle - shift), panel.title, fill=_INK, anchor="rm", font=font(13))
    pen.text((_LABEL - 10, middle + shift), panel.note, fill=_INK, anchor="rm", font=font(12))
    for column, frame in enumerate(frames):
        image = field_image(panel.fields[frame], panel.steps, side=_SIDE).convert("RGB")
        image = image.resize(_fit(image.size), Image.Resampling.NEAREST)
        left = _LABEL + column * (_SIDE + _GAP)
        picture.paste(image, (left, top))
        pen.rectangle((left, top, left + image.width - 1, top + image.height - 1), outline=_EDGE)


def _fit(size: tuple[int, int]) -> tuple[int, int]:
    longest = max(size)
    return round(size[0] * _SIDE / longest), round(size[1] * _SIDE / longest)


def _scale(pen: ImageDraw.ImageDraw, steps: Steps, title: str, *, top: int, width: int) -> None:
    """Draw a color bar: a patch per step with its lower level at the left edge, and one for missing pixels."""
    colors = [*steps.colors, MISSING_FACE]
    patch = min(90, (width - 20) // len(colors))
    left = (width - patch * len(colors)) // 2
    for k, color in enumerate(colors):
        edge = left + k * patch
        pen.rectangle((edge, top, edge + patch, top + 14), fill=color, outline=_EDGE)
        if 0 < k < len(colors) - 1:
            pen.text((edge, top + 18), steps.labels[k - 1], fill=_INK, anchor="mt", font=font(11))
    pen.text((left + patch * (len(colors) - 0.5), top + 18), "missing", fill=_INK, anchor="mt", font=font(11))
    pen.text((width // 2, top + 36), title, fill=_INK, anchor="mt", font=font(12))
