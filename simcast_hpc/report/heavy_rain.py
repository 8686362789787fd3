"""Performance diagram, bias by lead time and table for the highest thresholds, which a mean over thresholds hides."""

from .baseline_findings import HIGHEST
from .colors import line_styles
from .findings_text import with_unit
from .lead_time_curves import Chart, lead_curves, name_axes, new_chart
from .performance_diagram import performance_axes, performance_point, zoomed_limits
from .pipeline_results import ScoreFile
from .score_tables import METRIC_TITLES, Group, Row, Table, bounded, observed_heading


def heavy_labels(scores: ScoreFile) -> tuple[str, ...]:
    """Return the labels of the two highest thresholds of the pooled protocol."""
    return scores.protocols[scores.pooled_protocol].labels[-HIGHEST:]


def heavy_rain_charts(scores: ScoreFile) -> list[Chart]:
    """Return a performance diagram and a chart of frequency bias by lead time for each of the highest thresholds."""
    charts = []
    for label in heavy_labels(scores):
        title = f"≥ {with_unit(label, scores.unit)}"
        bias = {name: scores.by_lead(name, f"frequency_bias/{label}") for name in scores.names}
        charts += [
            _performance_diagram(scores, label, title=f"{title}: performance diagram"),
            lead_curves(scores, bias, up="frequency bias", title=f"{title}: bias by lead time", reference=1.0),
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
        caption=f"Scores at the highest thresholds under protocol {protocol}, hash {scores.protocols[protocol].hash}, "
        "pooled over lead times; in brackets 95 % intervals over events.",
        columns=("Forecast", *METRIC_TITLES.values()),
        groups=groups,
    )


def _performance_diagram(scores: ScoreFile, label: str, *, title: str) -> Chart:
    """Return the performance diagram of one threshold (Roebber 2009)."""
    figure, axes = new_chart()
    by_name = {name: scores.scores[name][scores.pooled_protocol] for name in scores.names}
    pairs = [(by_key[f"far/{label}"], by_key[f"pod/{label}"]) for by_key in by_name.values()]
    defined = [(1 - far, pod) for far, pod in pairs if far is not None and pod is not None]
    left, right = zoomed_limits([ratio for ratio, _ in defined])
    bottom, top = zoomed_limits([pod for _, pod in defined])
    performance_axes(axes, left=left, bottom=bottom, right=right, top=top)
    styles, descriptions = line_styles(scores.names), []
    for name in scores.names:
        pod, far = by_name[name][f"pod/{label}"], by_name[name][f"far/{label}"]
        if pod is None or far is None:
            descriptions.append(f"{name} undefined")
            continue
        performance_point(axes, far, pod, color=styles[name].color, marker=styles[name].marker)
        descriptions.append(f"{name} POD {pod:.2f}, FAR {far:.2f}")
    name_axes(axes, "success ratio, 1 − FAR", "POD")
    return Chart(title, f"{title}, POD against success ratio: {'; '.join(descriptions)}.", figure)
