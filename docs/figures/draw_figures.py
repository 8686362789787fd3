"""Draw the diagrams of the documentation as SVG: ``make figures``.

The script needs only Python. It writes ``method.svg`` and ``architecture.svg`` next to itself. Both have their own
background, so that they are readable in light and dark mode, and sizes that are legible on a phone: 18 units of 840
are 9 pixels of 420. The layers of ``architecture.svg`` are read from ``tests/test_layout.py``, which enforces them.
"""

import ast
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parent
LAYOUT_TEST = FOLDER.parents[1] / "tests" / "test_layout.py"

WIDTH = 840
MARGIN = 24
SANS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

INK, GRAY, LINE, PAPER, EMPTY = "#1b2733", "#51606e", "#8794a0", "#ffffff", "#e6eaee"
INPUT, TARGET, PSEUDO, FORECAST, NETWORK = "#1f5f99", "#86bde6", "#f0932b", "#3f9b5a", "#f3effa"

# Titles of the layers of the architecture, from bottom to top.
LAYER_TITLES = (
    "configuration", "infrastructure", "data", "models and methods", "trained models, planning", "programs",
    "pipelines, reports", "one file per command", "command line",
)  # fmt: skip

# The example of the method figure is SEVIR: T input frames, the long horizon T' and the teacher's horizon T_s.
FRAMES_IN, FRAMES_OUT, TEACHER_FRAMES_OUT = 13, 12, 6
REAL = FRAMES_IN + FRAMES_OUT
EXTENDED = REAL + FRAMES_OUT
PITCH = (WIDTH - 2 * MARGIN) / EXTENDED


class Canvas:
    """A list of SVG elements in the order in which they are painted."""

    def __init__(self, title: str, description: str):
        self.title, self.description = title, description
        self.elements: list[str] = []

    def rectangle(
        self, x: float, y: float, width: float, height: float, *, fill: str, stroke: str = LINE, radius: float = 3
    ) -> None:
        """Add a rectangle whose upper left corner is (x, y)."""
        self.elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" '
            f'fill="{fill}" stroke="{stroke}"/>'
        )

    def text(
        self, x: float, y: float, content: str, *, size: int = 18, color: str = INK, anchor: str = "start",
        bold: bool = False, mono: bool = False,
    ) -> None:  # fmt: skip
        """Add a line of text with its baseline at y; ``_s`` in the content becomes a subscript."""
        shown = escape(content).replace("_s", '<tspan font-size="75%" dy="4">s</tspan><tspan dy="-4">\u200b</tspan>')
        weight = ' font-weight="600"' if bold else ""
        family = f' font-family="{MONO}"' if mono else ""
        self.elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{weight}{family}>'
            f"{shown}</text>"
        )

    def line(self, points: Sequence[tuple[float, float]], *, arrow: bool = False, color: str = GRAY) -> None:
        """Add a polyline, with an arrow at its end if ``arrow``."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        marker = ' marker-end="url(#arrow)"' if arrow else ""
        self.elements.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{marker}/>')

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, *, fill: str) -> None:
        """Add an ellipse around (x, y)."""
        self.elements.append(
            f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{radius_x:.1f}" ry="{radius_y:.1f}" fill="{fill}"/>'
        )

    def svg(self, height: float) -> str:
        """Return the figure as the text of an SVG file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'aria-labelledby="title description" font-family="{SANS}">\n'
            "<!-- Written by docs/figures/draw_figures.py (make figures). -->\n"
            f'<title id="title">{escape(self.title)}</title>\n'
            f'<desc id="description">{escape(self.description)}</desc>\n'
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="6" markerHeight="6" '
            f'orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{GRAY}"/></marker></defs>\n'
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2:g}" rx="10" fill="{PAPER}" stroke="{LINE}"/>\n'
        )
        return head + "\n".join(self.elements) + "\n</svg>\n"


def column(frame: float) -> float:
    """Return the left edge of a frame of the extended sequence."""
    return MARGIN + frame * PITCH


def frames(canvas: Canvas, y: float, parts: Sequence[tuple[int, int, str]]) -> None:
    """Draw rows of squares: (first frame, number of frames, color) of each part."""
    for first, number, fill in parts:
        for frame in range(first, first + number):
            canvas.rectangle(
                column(frame) + 1, y, PITCH - 2, PITCH - 2, fill=fill, stroke=LINE if fill == EMPTY else fill
            )


def bracket(canvas: Canvas, y: float, first: int, number: int) -> None:
    """Draw a bracket below ``number`` frames."""
    left, right = column(first) + 2, column(first + number) - 2
    canvas.line([(left, y), (left, y + 6), (right, y + 6), (right, y)])


def heading(canvas: Canvas, y: float, title: str, explanation: str) -> None:
    """Write the title of a step and, below it, one line of explanation."""
    canvas.text(MARGIN, y, title, size=22, bold=True)
    canvas.text(MARGIN, y + 25, explanation, color=GRAY)


def method() -> str:
    """Return the figure of SimCast's training and of the forecast: observations to ensemble."""
    canvas = Canvas(
        "Short-to-long distillation",
        "A teacher is trained on short windows. Its rollout extends each sequence. A student is trained on windows "
        "with a random start k in the extended sequence, and forecasts in one pass. Latent diffusion adds an ensemble.",
    )
    # 1. Legend
    for place, (color, label) in enumerate(
        ((INPUT, "real, input"), (TARGET, "real, target"), (PSEUDO, "pseudo-frame"), (FORECAST, "forecast"))
    ):
        x = MARGIN + place * 204
        canvas.rectangle(x, 22, 18, 18, fill=color, stroke=color)
        canvas.text(x + 26, 38, label)
    canvas.text(
        MARGIN,
        68,
        "Example SEVIR: T = 13, T\u2032 = 12, T_s = 6; a square is a frame of 5 minutes.",
        color=GRAY,
    )

    # 2. Teacher
    y = 112
    heading(
        canvas,
        y,
        "1. Train the teacher: 13 \u2192 6 frames",
        "Windows at a random start in the real sequence of T + T\u2032 = 25 frames",
    )
    start, row = 3, y + 40
    frames(canvas, row, [(0, REAL, EMPTY), (start, FRAMES_IN, INPUT), (start + FRAMES_IN, TEACHER_FRAMES_OUT, TARGET)])
    bracket(canvas, row + 24, start, FRAMES_IN)
    bracket(canvas, row + 24, start + FRAMES_IN, TEACHER_FRAMES_OUT)
    canvas.text(column(start + FRAMES_IN / 2), row + 50, "T", anchor="middle")
    canvas.text(column(start + FRAMES_IN + TEACHER_FRAMES_OUT / 2), row + 50, "T_s", anchor="middle")
    canvas.text(column(REAL) + 12, row + 17, "random start 0 \u2026 T\u2032 \u2212 T_s", color=GRAY)

    # 3. Rollout
    y = 258
    heading(
        canvas,
        y,
        "2. Roll out the frozen teacher: T\u2032 = 12 pseudo-frames",
        "From the last T real frames; the second call reads the output of the first",
    )
    row = y + 40
    frames(canvas, row, [(0, FRAMES_OUT, EMPTY), (FRAMES_OUT, FRAMES_IN, INPUT), (REAL, FRAMES_OUT, PSEUDO)])
    for call in range(FRAMES_OUT // TEACHER_FRAMES_OUT):
        first, below = FRAMES_OUT + call * TEACHER_FRAMES_OUT, row + 24 + 34 * call
        bracket(canvas, below, first, FRAMES_IN)
        end = column(first + FRAMES_IN)
        canvas.line([(end + 1, below + 6), (end + TEACHER_FRAMES_OUT * PITCH - 6, below + 6)], arrow=True, color=GRAY)
        canvas.text(column(first) - 10, below + 12, f"call {call + 1}", anchor="end")
    # 4. Student
    y = 418
    heading(
        canvas,
        y,
        "3. Train the student: 13 \u2192 12 frames, one pass",
        "Windows at a random start k in the extended sequence of T + 2T\u2032 = 37 frames",
    )
    row = y + 40
    frames(canvas, row, [(0, REAL, EMPTY), (REAL, FRAMES_OUT, "#fbdcb8")])
    for k, label in ((0, "k = 0: real targets"), (5, "k = 5"), (FRAMES_OUT, "k = 12: pseudo only")):
        row += 32
        targets = k + FRAMES_IN
        frames(canvas, row, [(k, FRAMES_IN, INPUT), (targets, FRAMES_OUT - k, TARGET), (REAL, k, PSEUDO)])
        if k:
            canvas.text(column(k) - 10, row + 16, label, anchor="end")
        else:
            canvas.text(column(REAL) + 12, row + 16, label)
    # 5. Forecast
    y = row + 66
    heading(
        canvas,
        y,
        "4. Forecast, and sample an ensemble",
        "The student runs alone; latent diffusion is conditioned on its forecast",
    )
    forecast_chain(canvas, y + 46)
    return canvas.svg(y + 200)


def forecast_chain(canvas: Canvas, y: float) -> None:
    """Draw observations, student, forecast, latent diffusion and ensemble from left to right."""
    middle = y + 46
    stack(canvas, MARGIN, y, frame=INPUT, detail=1.0)
    stack(canvas, 312, y, frame=FORECAST, detail=1.6)
    for left, width, lines in ((164, 112, ("student",)), (452, 142, ("latent", "diffusion"))):
        canvas.rectangle(left, y + 8, width, 76, fill=NETWORK, stroke="#6b4fa0", radius=8)
        for number, line in enumerate(lines):
            canvas.text(
                left + width / 2, middle + 6 + 22 * (number - (len(lines) - 1) / 2), line, anchor="middle", bold=True
            )
    for left, right in ((128, 160), (280, 308), (416, 448), (598, 630)):
        canvas.line([(left, middle), (right, middle)], arrow=True)
    for member in range(3):
        stack(
            canvas,
            638 + 62 * member,
            y + 16 * (member % 2),
            frame=FORECAST,
            detail=0.8,
            shift=4.0 * (member - 1),
            size=50,
            copies=2,
        )
    for x, label in ((72, "T observed"), (362, "T\u2032 frames"), (728, "ensemble members")):
        canvas.text(x, y + 124, label, anchor="middle", color=GRAY)


def stack(
    canvas: Canvas,
    x: float,
    y: float,
    *,
    frame: str,
    detail: float,
    shift: float = 0.0,
    size: float = 72,
    copies: int = 3,
) -> None:
    """Draw overlapping frames with a rain cell; a larger ``detail`` makes the cell wider and weaker (smooth)."""
    for copy in range(copies):
        left, top = x + 12 * copy, y + 10 * copy
        canvas.rectangle(left, top, size, size, fill="#eef3f7", stroke=frame)
        center_x, center_y, unit = left + size / 2 + shift, top + size / 2 - shift / 2, size / 72
        canvas.ellipse(center_x, center_y, 17 * detail * unit, 12 * detail * unit, fill="#9ccfa4")
        canvas.ellipse(center_x + 2, center_y, 10 * unit, 6 * unit, fill="#f2c84b")
        if detail < 1.5:
            canvas.ellipse(center_x + 4 * unit, center_y, 4 * unit, 3 * unit, fill="#d64545")


def layout_constants() -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Return the layers, from bottom to top, and the packages that use kernels, from ``tests/test_layout.py``."""
    found = {}
    for node in ast.parse(LAYOUT_TEST.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
            if name in ("LAYERS", "KERNEL_USERS") and node.value is not None:
                found[name] = ast.literal_eval(node.value)
    return found["LAYERS"], found["KERNEL_USERS"]


def architecture() -> str:
    """Return the figure of the layers of packages; imports point downwards."""
    layers, kernel_users = layout_constants()
    per_row, gap, left, box_height = 4, 10, 76, 36
    box_width = (WIDTH - left - MARGIN - 10 - (per_row - 1) * gap) / per_row
    canvas = Canvas(
        "Architecture", "Layers of packages of simcast_hpc; a package imports only its own layer and the layers below."
    )
    canvas.text(MARGIN, 40, "Packages of simcast_hpc", size=22, bold=True)
    canvas.text(MARGIN, 66, "Imports point downwards. Orange: uses the Triton kernels.", color=GRAY)
    y = first = 84
    for names, title in reversed(tuple(zip(layers, LAYER_TITLES, strict=True))):
        rows = [names[start : start + per_row] for start in range(0, len(names), per_row)]
        height = len(rows) * (box_height + gap) + gap
        canvas.rectangle(left - 10, y, WIDTH - left - MARGIN + 10, height, fill="#f4f6f8", radius=6)
        for number, row in enumerate(rows):
            for place, name in enumerate(row):
                x, top = left + place * (box_width + gap), y + gap + number * (box_height + gap)
                uses = name in kernel_users
                canvas.rectangle(
                    x, top, box_width, box_height, fill="#fdebd3" if uses else PAPER, stroke=PSEUDO if uses else LINE
                )
                label = name.removeprefix("simcast_hpc.")
                canvas.text(x + box_width / 2, top + 24, label, anchor="middle", mono=True)
        canvas.text(WIDTH - MARGIN - 16, y + height - 22, title, anchor="end", color=GRAY)
        y += height + 8
    canvas.line([(42, first + 6), (42, y - 14)], arrow=True)
    canvas.rectangle(left - 10, y + 8, WIDTH - left - MARGIN + 10, 64, fill="#fdebd3", stroke=PSEUDO, radius=6)
    canvas.text(left + 6, y + 34, "simcast_kernels", mono=True, bold=True)
    canvas.text(left + 6, y + 60, "A distribution of its own; imports only torch and triton.", color=GRAY)
    return canvas.svg(y + 92)


FIGURES = {"method.svg": method, "architecture.svg": architecture}


def main() -> None:
    """Write all figures."""
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
        print(f"figures: docs/figures/{name}")


if __name__ == "__main__":
    main()
