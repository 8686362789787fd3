"""The highest thresholds, which a mean over thresholds hides: performance diagram, bias by lead, and the numbers."""

import numpy as np
from matplotlib.axes import Axes

from .colours import line_styles
from .findings_text import with_unit
from .lead_time_curves import FAINT, Chart, lead_curves, name_axes, new_chart
from .pipeline_results import ScoreFile
from .score_tables import METRIC_TITLES, Group, Row, Table, bounded, observed_heading

_TOP = 2
_CSI_LINES = (0.1, 0.2, 0.4, 0.6, 0.8)
_BIAS_LINES = (0.3, 0.5, 1.0, 2.0, 4.0)


def heavy_labels(scores: ScoreFile) -> tuple[str, ...]:
    """Return the two highest thresholds of the protocol of curves."""
    return scores.protocols[scores.pooled_protocol].labels[-_TOP:]


def heavy_rain_charts(scores: ScoreFile) -> list[Chart]:
    """Return for each of the highest thresholds a performance diagram and the frequency bias by lead."""
    charts = []
    for label in heavy_labels(scores):
        title = f"≥ {with_unit(label, scores.unit)}"
        bias = {name: scores.by_lead(name, f"frequency_bias/{label}") for name in scores.names}
        charts += [
            _performance_diagram(scores, label, title=f"{title}: performance diagram"),
            lead_curves(scores, bias, up="frequency bias", title=f"{title}: bias by lead", reference=1.0),
        ]
    return charts


def heavy_rain_table(scores: ScoreFile) -> Table:
    """Return CSI, POD, FAR and bias at the highest thresholds with their intervals."""
    protocol = scores.pooled_protocol
    groups = tuple(
        Group(
            observed_heading(scores, label),
            tuple(
                Row(name, tuple(bounded(scores, name, protocol, f"{metric}/{label}") for metric in METRIC_TITLES))
                for name in scores.names
            ),
        )
        for label in heavy_labels(scores)
    )
    return Table(
        caption=f"The highest thresholds under protocol {protocol}, hash {scores.protocols[protocol].hash}, all leads "
        "together; in brackets the bounds of 95 % of resamples of whole events.",
        columns=("Forecast", *METRIC_TITLES.values()),
        groups=groups,
    )


def _performance_diagram(scores: ScoreFile, label: str, *, title: str) -> Chart:
    """Return POD against the success ratio 1 - FAR, with lines of equal CSI and of equal bias (Roebber 2009)."""
    figure, axes = new_chart()
    axes.grid(visible=False)
    _background(axes)
    styles, said = line_styles(scores.names), []
    for name in scores.names:
        found = scores.scores[name][scores.pooled_protocol]
        pod, far = found[f"pod/{label}"], found[f"far/{label}"]
        if pod is None or far is None:
            said.append(f"{name} undefined")
            continue
        style = styles[name]
        axes.plot(1 - far, pod, marker=style.marker, color=style.colour, markersize=8, linestyle="", clip_on=False)
        said.append(f"{name} POD {pod:.2f}, FAR {far:.2f}")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    name_axes(axes, "success ratio, 1 − FAR", "POD")
    return Chart(title, f"{title}, POD against success ratio: {'; '.join(said)}.", figure)


def _background(axes: Axes) -> None:
    line = np.linspace(0.01, 1, 200)
    for csi in _CSI_LINES:
        pod = 1 / (1 / csi + 1 - 1 / line)
        inside = (pod > 0) & (pod <= 1)
        axes.plot(line[inside], pod[inside], color="#b9c2cc", linewidth=0.8)
        axes.text(1.0, csi, f"{csi:g}", fontsize=8.5, color=FAINT, ha="right", va="bottom")
    for bias in _BIAS_LINES:
        axes.plot([0, min(1, 1 / bias)], [0, min(1, bias)], color="#b9c2cc", linewidth=0.8, linestyle="--")
        across, up = _end_of(bias)
        axes.text(
            across, up, f"×{bias:g}", fontsize=8.5, color=FAINT, ha="center", va="center", backgroundcolor="white"
        )


def _end_of(bias: float) -> tuple[float, float]:
    """Return where the line of a bias is named: near its end, within the frame."""
    return (0.76, 0.76 * bias) if bias <= 1 else (0.9 / bias, 0.9)
