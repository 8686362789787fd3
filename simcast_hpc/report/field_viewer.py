"""Fields side by side with a slider over lead time; without a script each is a strip of all its leads."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .colours import Steps
from .field_images import SIDE, as_png, field_image
from .html_markup import image, text


@dataclass(frozen=True)
class Panel:
    """One row of fields ``[T', H, W]``, codes or floats in [0, 1], and the colours in which they are shown.

    ``unit`` is that of the steps' labels, for the alternative texts; empty where they carry it or are codes.
    """

    title: str
    fields: np.ndarray
    steps: Steps
    unit: str = ""


def viewer(panels: Sequence[Panel], *, lead_minutes: Sequence[float], label: str) -> str:
    """Return the panels, one picture for each lead, and the controls, which the page's script shows and serves.

    Args:
        panels: all of ``len(lead_minutes)`` fields.
        lead_minutes: of each field, in minutes after the last input frame.
        label: what the slider is called where it is read out.
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
    kind = "panels large" if max(panels[0].fields.shape[1:]) > SIDE else "panels"
    return f'<div class="viewer">\n{controls}\n<div class="{kind}">\n{rows}\n</div>\n</div>'


def strip(panel: Panel, minutes: Sequence[float]) -> str:
    """Return one panel as a strip that scrolls, at these minutes after the last input frame."""
    return f'<div class="panels still">\n{_panel(panel, minutes)}\n</div>'


def _panel(panel: Panel, minutes: Sequence[float]) -> str:
    cells = "\n".join(_cell(panel, k, time) for k, time in enumerate(minutes))
    return (
        f'<section class="panel">{text("h4", panel.title)}\n'
        f'<div class="strip" role="group" tabindex="0" aria-label="{escape(panel.title)}, by lead time">\n{cells}\n'
        "</div></section>"
    )


def _cell(panel: Panel, lead: int, minutes: float) -> str:
    drawn = field_image(panel.fields[lead], panel.steps)
    alt = f"{panel.title} at {in_minutes(minutes)}: {_highest(panel.fields[lead], panel.steps, panel.unit)}"
    enlarged = drawn.size != panel.fields[lead].shape[::-1]
    shown = image(as_png(drawn), alt=alt, size=drawn.size, kind="enlarged" if enlarged else "")
    return f"<figure>{shown}{text('figcaption', in_minutes(minutes))}</figure>"


def _highest(field: np.ndarray, steps: Steps, unit: str) -> str:
    """Return in words how high the field reaches and how much of it lies there."""
    index = steps.index(field)
    if index.count() == 0:
        return "all missing"
    top = int(index.max())
    if top == 0:
        return f"nothing at or above {steps.labels[0]}{unit and ' ' + unit}"
    share = 100 * float((index == top).sum()) / index.count()
    return f"up to at least {steps.labels[top - 1]}{unit and ' ' + unit}, on {share:.2g} % of the pixels"


def in_minutes(minutes: float) -> str:
    """Return a time after the last input as it is shown: ``+5 min``, ``−10 min``, ``0 min``."""
    return f"{minutes:+g} min".replace("+0 ", "0 ").replace("-", "−")
