"""Shared styles of the figures of the evidence page: arms, line labels, error bars, axes."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from simcast_hpc.storage.atomic_files import atomic_file
from simcast_hpc.verification.bootstrap import Interval

from .intervals import Bootstrap

INK, GREY = "#222222", "#8a8a8a"
STEP_MINUTES, DPI = 5, 150
WIDTH, FONT = 7.2, 9.0
"""Inches and points. A page shows a figure about this wide, so that no text appears smaller than this font."""


CHARACTERS_PER_ROW = 95
"""Length of a row of a legend in characters; each line sample has the width of about eight."""


class Look(NamedTuple):
    """Line style of an arm; arms differ in marker and color."""

    name: str
    colour: str
    marker: str
    dashes: str


def looks(half: int) -> dict[str, Look]:
    """Return the styles of the arms of the main figures; ``half`` is T_s of the main teacher."""
    return {
        "persistence": Look("persistence", "#5f6368", "s", ":"),
        "extrapolation": Look("extrapolation", "#000000", "x", ":"),
        "direct-w1": Look("direct, $w = 1$", "#cc79a7", "P", "--"),
        "direct": Look("direct", "#d55e00", "D", "-"),
        f"teacher-{half}": Look("teacher, rolled out", "#009e73", "v", "-."),
        f"student-{half}": Look("student", "#0072b2", "o", "-"),
    }


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG of at most 256 colors, a third of the size of one in full color."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_file(path) as temporary:
        image.save(temporary, format="png", optimize=True)


def with_bars(axes: Axes, places: np.ndarray, points: Sequence[Interval], look: Look) -> None:
    """Draw a line with an error bar at each point."""
    errors = [point.half_width if point.has_bounds else 0.0 for point in points]
    axes.errorbar(
        places, [point.value for point in points], yerr=errors, color=look.colour, marker=look.marker,
        linestyle=look.dashes, linewidth=1.4, markersize=5, capsize=2.5,
    )  # fmt: skip


def minutes(leads: int) -> np.ndarray:
    """Return the lead times in minutes."""
    return STEP_MINUTES * np.arange(1.0, leads + 1)


def names(axes: Axes, ends: Sequence[tuple[float, float, Look]]) -> None:
    """Label each line at its end, without overlapping labels."""
    if not ends:
        return
    axes.autoscale_view()
    low, high = axes.get_ylim()
    gap = 0.055 * (high - low)
    heights: list[float] = []
    for _, height, _ in sorted(ends, key=lambda end: end[1]):
        heights.append(height if not heights else max(height, heights[-1] + gap))
    shift = np.mean(heights) - np.mean([height for _, height, _ in ends])
    for (x, _, look), height in zip(sorted(ends, key=lambda end: end[1]), heights, strict=True):
        axes.annotate(look.name, (x, height - shift), xytext=(3, 0), textcoords="offset points", fontsize=FONT,
                      color=look.colour, va="center", annotation_clip=False)  # fmt: skip


def lead_axis(axes: Axes, bootstrap: Bootstrap) -> None:
    """Set one tick per lead time."""
    axes.set_xticks(minutes(bootstrap.evidence.study.sequence.frames_out))
    plain_look(axes)


def legend(figure: Figure, styles: dict[str, Look]) -> None:
    """Add a legend below the figure."""
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dashes, label=look.name)
        for look in styles.values()
    ]
    rows = 1 + sum(len(look.name) + 8 for look in styles.values()) // CHARACTERS_PER_ROW
    columns = -(-len(handles) // rows)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.2, frameon=False, fontsize=FONT,
    )  # fmt: skip


def plain_look(axes: Axes, *, grid: bool = True) -> None:
    """Remove spines and add a light grid."""
    if grid:
        axes.grid(visible=True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
