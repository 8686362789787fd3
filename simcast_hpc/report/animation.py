"""Animated GIF of observation and forecasts side by side, in the colors of the report."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .colors import Steps, font
from .field_images import field_image, palette
from .field_viewer import Panel, in_minutes

_COLUMNS = 3
_MOST_PIXELS = 256
_MARGIN, _TITLE, _HEADER = 8, 20, 26
_FRAME_MS, _LAST_MS = 500, 1500
_INK, _PAPER = (28, 36, 48), (255, 255, 255)
_GREYS = 8


def animation(panels: Sequence[Panel], *, lead_minutes: Sequence[float], start: np.ndarray) -> bytes:
    """Return a GIF from the last input frame ``start`` ``[H, W]`` to the last lead time, with one color scale."""
    steps = panels[0].steps
    scenes = [_scene([start] * len(panels), panels, steps, "0 min, last input")]
    for lead, minutes in enumerate(lead_minutes):
        scenes.append(_scene([panel.fields[lead] for panel in panels], panels, steps, in_minutes(minutes)))
    colors = _palette_image(steps)
    frames = [scene.quantize(palette=colors, dither=Image.Dither.NONE) for scene in scenes]
    target = io.BytesIO()
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_MS]
    frames[0].save(
        target, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False
    )
    return target.getvalue()


def _scene(fields: Sequence[np.ndarray], panels: Sequence[Panel], steps: Steps, header: str) -> Image.Image:
    images = [_downsample(field_image(field, steps).convert("RGB")) for field in fields]
    width, height = images[0].size
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    cell = (width + _MARGIN, height + _TITLE + _MARGIN)
    scene = Image.new("RGB", (columns * cell[0] + _MARGIN, rows * cell[1] + _HEADER), _PAPER)
    pen = ImageDraw.Draw(scene)
    pen.text((_MARGIN, 5), header, fill=_INK, font=font(14))
    for index, (image, panel) in enumerate(zip(images, panels, strict=True)):
        left = _MARGIN + index % columns * cell[0]
        top = _HEADER + index // columns * cell[1]
        pen.text((left, top + 2), _truncate(panel.title, pen, width), fill=_INK, font=font(12))
        scene.paste(image, (left, top + _TITLE))
    return scene


def _downsample(image: Image.Image) -> Image.Image:
    """Return a large image with every n-th pixel only, which limits the size of the GIF."""
    every = -(-max(image.size) // _MOST_PIXELS)
    if every == 1:
        return image
    return image.resize((image.width // every, image.height // every), Image.Resampling.NEAREST)


def _truncate(title: str, pen: ImageDraw.ImageDraw, width: int) -> str:
    while len(title) > 1 and pen.textlength(title, font=font(12)) > width:
        title = title.rstrip("…")[:-1] + "…"
    return title


def _palette_image(steps: Steps) -> Image.Image:
    greys = [level for k in range(_GREYS) for level in _grey(k / (_GREYS - 1))]
    image = Image.new("P", (1, 1))
    image.putpalette([*palette(steps), *greys])
    return image


def _grey(fraction: float) -> list[int]:
    return [round(ink + fraction * (paper - ink)) for ink, paper in zip(_INK, _PAPER, strict=True)]
