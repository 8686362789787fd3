"""The highest thresholds, which a mean over thresholds hides: performance diagram, bias by lead, and the numbers."""

from .colours import line_styles
from .findings_text import with_unit
from .lead_time_curves import Chart, lead_curves, name_axes, new_chart
from .performance_diagram import performance_axes, performance_point
from .pipeline_results import ScoreFile
from .score_tables import METRIC_TITLES, Group, Row, Table, bounded, observed_heading

_TOP = 2


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
    performance_axes(axes)
    styles, said = line_styles(scores.names), []
    for name in scores.names:
        found = scores.scores[name][scores.pooled_protocol]
        pod, far = found[f"pod/{label}"], found[f"far/{label}"]
        if pod is None or far is None:
            said.append(f"{name} undefined")
            continue
        performance_point(axes, far, pod, colour=styles[name].colour, marker=styles[name].marker)
        said.append(f"{name} POD {pod:.2f}, FAR {far:.2f}")
    name_axes(axes, "success ratio, 1 − FAR", "POD")
    return Chart(title, f"{title}, POD against success ratio: {'; '.join(said)}.", figure)
