"""HTML viewer of fields side by side with a slider over lead time; without JavaScript, strips of all lead times."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .colors import Steps
from .field_images import SIDE, as_png, field_image
from .html_markup import image, text


@dataclass(frozen=True)
class Panel:
    """A sequence of fields ``[T', H, W]``, uint8 or floats in [0, 1], with its color scale.

    ``unit`` is the unit of the labels of ``steps`` in alternative texts; empty for encoded values and probabilities.
    ``note`` is a second line below the title in images for slides.
    """

    title: str
    fields: np.ndarray
    steps: Steps
    unit: str = ""
    note: str = ""


def viewer(panels: Sequence[Panel], *, lead_minutes: Sequence[float], label: str) -> str:
    """Return the HTML of the panels, one image per lead time, and of the controls, which the script displays.

    Args:
        panels: panels of ``len(lead_minutes)`` fields each.
        lead_minutes: lead time of each field in minutes.
        label: accessible name of the slider.
    """
    rows = "\n".join(_panel(panel, lead_minutes) for panel in panels)
    last = len(lead_minutes) - 1
    times = " ".join(in_minutes(minutes) for minutes in lead_minutes).replace(" min", "")
    controls = (
        f'<div class="controls" hidden><button type="button" aria-pressed="false">Play</button>\n'
        f'<label><span class="title">Lead time</span> <input type="range" aria-label="{escape(label)}" min="0" '
        f'max="{last}" step="1" value="0" data-times="{escape(times)}"></label> '
        f"<output>{in_minutes(lead_minutes[0])}</output></div>"
    )
    columns = _columns(len(panels), at_most=4 if max(panels[0].fields.shape[1:]) > SIDE else 6)
    style = f"--columns: {columns}; --columns-phone: {_columns(len(panels), at_most=3)}"
    return f'<div class="viewer">\n{controls}\n<div class="panels" style="{style}">\n{rows}\n</div>\n</div>'


def _columns(count: int, *, at_most: int) -> int:
    """Return the number of columns of a grid with rows of equal length, or almost equal: 5 panels in 5 or 3 columns."""
    rows = -(-count // at_most)
    return -(-count // rows)


def strip(panel: Panel, minutes: Sequence[float]) -> str:
    """Return the HTML of one panel as a scrolling strip; ``minutes`` are relative to the last input frame."""
    return f'<div class="panels still">\n{_panel(panel, minutes)}\n</div>'


def _panel(panel: Panel, minutes: Sequence[float]) -> str:
    cells = "\n".join(_cell(panel, k, time) for k, time in enumerate(minutes))
    return (
        f'<section class="panel">{text("h4", panel.title)}\n'
        f'<div class="strip" role="group" tabindex="0" aria-label="{escape(panel.title)}, by lead time">\n{cells}\n'
        "</div></section>"
    )


def _cell(panel: Panel, lead: int, minutes: float) -> str:
    picture = field_image(panel.fields[lead], panel.steps)
    alt = f"{panel.title} at {in_minutes(minutes)}: {_describe_maximum(panel.fields[lead], panel.steps, panel.unit)}"
    enlarged = picture.size != panel.fields[lead].shape[::-1]
    element = image(as_png(picture), alt=alt, size=picture.size, kind="enlarged" if enlarged else "")
    return f"<figure>{element}{text('figcaption', in_minutes(minutes))}</figure>"


def _describe_maximum(field: np.ndarray, steps: Steps, unit: str) -> str:
    """Return a text with the highest level reached and the fraction of pixels that reach it."""
    index = steps.index(field)
    if index.count() == 0:
        return "all missing"
    top = int(index.max())
    if top == 0:
        return f"no pixel at or above {steps.labels[0]}{unit and ' ' + unit}"
    percent = 100 * float((index == top).sum()) / index.count()
    return f"maximum at or above {steps.labels[top - 1]}{unit and ' ' + unit}, on {percent:.2g} % of the pixels"


def in_minutes(minutes: float) -> str:
    """Return a time relative to the last input frame: ``+5 min``, ``−10 min``, ``0 min``."""
    return f"{minutes:+g} min".replace("+0 ", "0 ").replace("-", "−")
