"""Draw the figure of docs/results/performance.md from peers.csv: ``python -m benchmarks.performance_figure``."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.evidence.figure_style import FONT, INK, WIDTH, plain_look, save
from benchmarks.tabulate import ROOT, Row, read, rows_with_ratios
from simcast_hpc.report.lead_time_curves import new_figure

TIMES = ROOT / "benchmarks" / "results" / "cpu" / "peers.csv"
FIGURE = ROOT / "docs" / "results" / "performance" / "training-speed-up.png"
NAMES = {"simvp": "SimVP", "earthformer": "Earthformer", "casformer": "CasFormer"}
COLOURS = {"fp32": "#0072b2", "bf16": "#e69f00"}
_TEXT = {"fp32": "white", "bf16": INK}
_BAR = 0.38


def step_ratios() -> dict[tuple[str, str], Row]:
    """Return the rows of our training steps, with ratios to the reference implementation, by model and precision."""
    rows = [row for row in read(TIMES.read_text(encoding="utf-8")) if row["part"] == "step"]
    found = rows_with_ratios(rows, "provider", "reference", "p50_s,peak_gb")
    return {(row["case"], row["precision"]): row for row in found if row["provider"] == "ours"}


def draw(path: Path = FIGURE) -> None:
    """Write bars of the speed-up (wall time) and of the ratio of peak memory of a training step."""
    rows = step_ratios()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = new_figure(WIDTH, 2.9)
    time, memory = figure.subplots(1, 2, sharey=True)
    _bars(time, rows, "x.p50_s", "speed-up (wall time)")
    _bars(memory, rows, "x.peak_gb", "peak memory, reference / ours")
    time.set_yticks(range(len(NAMES)), list(NAMES.values()))
    time.invert_yaxis()
    handles, labels = time.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=FONT,
        title="training step on two CPU cores, no GPU", title_fontsize=FONT,
    )  # fmt: skip
    save(figure, path)


def _bars(axes: Axes, rows: dict[tuple[str, str], Row], column: str, title: str) -> None:
    for number, (precision, colour) in enumerate(COLOURS.items()):
        values = [float(rows[case, precision][column]) for case in NAMES]
        places = np.arange(len(values)) + _BAR * (number - 0.5)
        bars = axes.barh(places, values, height=_BAR * 0.92, color=colour, label=precision)
        axes.bar_label(bars, fmt="%.2f", label_type="center", fontsize=FONT, color=_TEXT[precision])
    axes.axvline(1, color=INK, linewidth=0.9)
    axes.set_xlim(0, 1.7)
    axes.set_title(title, fontsize=FONT + 1, color=INK)
    plain_look(axes)
    axes.grid(visible=False, axis="y")


if __name__ == "__main__":
    draw()
    print(FIGURE.relative_to(ROOT))
    sys.exit(0)
