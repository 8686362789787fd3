"""Table, charts and panels of ensembles: CRPS, spread and skill, rank histogram, reliability, products."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from .colors import LineStyle, Steps, line_styles, probability_steps
from .example_window import ExampleFrames
from .field_viewer import Panel
from .findings_text import with_unit
from .lead_time_curves import FAINT, INK, Chart, draw_line, lead_curves, name_axes, new_chart
from .pipeline_results import ScoreFile
from .score_tables import UNDEFINED, Group, Row, Table, bounded, number

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SHOWN_PROBABILITIES = 3


def ensemble_table(scores: ScoreFile) -> Table:
    """Return fair CRPS (the MAE of single forecasts) with intervals, and its differences to each ensemble."""
    protocol, names = scores.pooled_protocol, scores.ensembles
    rows = tuple(
        Row(
            name,
            (
                f"{scores.diagrams[name].members} members" if name in names else "single forecast",
                bounded(scores, name, protocol, "crps", places=4),
                *(_difference(scores, ensemble, name) for ensemble in names),
                number(scores.scores[name][protocol].get("spread"), places=4),
                number(scores.scores[name][protocol].get("spread_skill")),
            ),
        )
        for name in scores.names
    )
    return Table(
        caption=f"Fair CRPS of the [0, 1] field (lower is better); for a single forecast it is the mean absolute "
        f"error. Protocol {protocol}, hash {scores.protocols[protocol].hash}; in brackets 95 % intervals over events, "
        "paired for differences. Spread / error: standard deviation of the members over the error of their mean; 1 is "
        "ideal, below 1 is underdispersive.",
        columns=("Forecast", "Type", "CRPS", *(f"{name} − this" for name in names), "Spread", "Spread / error"),
        groups=(Group("", rows),),
        text_cells=1,
    )


def _difference(scores: ScoreFile, ensemble: str, other: str) -> str:
    difference = scores.difference(ensemble, other, "crps")
    if difference is None:
        return UNDEFINED
    value, low, high = (number(part, places=4).replace("-", "−") for part in difference)
    return f"{value} [{low}, {high}]"


def crps_chart(scores: ScoreFile) -> Chart:
    """Return a chart of fair CRPS by lead time (MAE for single forecasts)."""
    curves = {name: scores.by_lead(name, "crps") for name in scores.names}
    return lead_curves(scores, curves, up="CRPS (MAE of single forecasts)", title="CRPS by lead time")


def spread_styles() -> dict[str, LineStyle]:
    """Return the line styles of spread and error."""
    return {"spread": LineStyle("#0072b2", "o", "-"), "error of the mean": LineStyle("#d55e00", "s", "--")}


def threshold_styles(scores: ScoreFile, name: str) -> dict[str, LineStyle]:
    """Return a line style for each threshold of an ensemble's reliability, darker for higher thresholds."""
    labels = _reliable_labels(scores, name)
    shades = np.linspace(0.75, 0.0, len(labels)) if len(labels) > 1 else [0.4]
    return {
        f"≥ {with_unit(label, scores.unit)}": LineStyle(to_hex(colormaps["viridis"](shade)), _MARKERS[k % 7], "-")
        for k, (label, shade) in enumerate(zip(labels, shades, strict=True))
    }


def _reliable_labels(scores: ScoreFile, name: str) -> tuple[str, ...]:
    """Return the supported thresholds with reliability data; all with data if none of them is supported.

    Reliability is counted only under the first protocol, whose thresholds may differ from those of the curves.
    """
    counted = tuple(scores.diagrams[name].reliability)
    return tuple(label for label in counted if label in scores.supported_thresholds) or counted


def _supported(scores: ScoreFile) -> tuple[str, ...]:
    labels = scores.protocols[scores.pooled_protocol].labels
    return tuple(label for label in labels if label in scores.supported_thresholds) or labels


def spread_chart(scores: ScoreFile, name: str) -> Chart:
    """Return a chart of spread and error of the mean by lead time.

    The spread is scaled by sqrt((M + 1) / M), so that it equals the error of a consistent ensemble (Fortin et al. 2014,
    eq. 15).
    """
    members = scores.diagrams[name].members
    spread, ratios = scores.by_lead(name, "spread"), scores.by_lead(name, "spread_skill")
    scaled = [None if value is None else math.sqrt((members + 1) / members) * value for value in spread]
    error = [
        value / ratio if value is not None and ratio else None for value, ratio in zip(scaled, ratios, strict=True)
    ]
    curves = {"spread": scaled, "error of the mean": error}
    return lead_curves(scores, curves, up="of the [0, 1] field", title="Spread and error", styles=spread_styles())


def rank_chart(scores: ScoreFile, name: str) -> Chart:
    """Return the rank histogram of the observation among the members, relative to a flat histogram."""
    counts = np.sum(scores.diagrams[name].ranks, axis=0)
    relative = counts / max(1, counts.sum()) * len(counts)
    figure, axes = new_chart()
    axes.bar(range(1, len(counts) + 1), relative, width=0.9, color=line_styles(scores.names)[name].color)
    axes.axhline(1.0, color=INK, linewidth=1.2)
    axes.grid(visible=False, axis="x")
    name_axes(axes, "rank of the observation", "relative frequency")
    alt = f"Rank histogram relative to a flat one: lowest rank {relative[0]:.2f}, highest rank {relative[-1]:.2f}."
    return Chart("Rank histogram", alt, figure)


def reliability_chart(scores: ScoreFile, name: str) -> Chart:
    """Return observed frequency against forecast probability, one curve per threshold."""
    figure, axes = new_chart()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.0)
    descriptions = []
    styles = threshold_styles(scores, name)
    for label, (title, style) in zip(_reliable_labels(scores, name), styles.items(), strict=True):
        curve = scores.diagrams[name].reliability[label]
        draw_line(axes, curve.probability, curve.observed_frequency, style, name=title)
        top = curve.observed_frequency[-1]
        descriptions.append(f"{title} {'never forecast' if top is None else f'observed in {100 * top:.0f} %'}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    name_axes(axes, "forecast probability", "observed frequency")
    alt = f"Reliability diagram. Where all members forecast the event: {', '.join(descriptions)}."
    return Chart("Reliability", alt, figure)


def sharpness_chart(scores: ScoreFile, name: str) -> Chart:
    """Return the frequency of each forecast probability, one curve per threshold."""
    figure, axes = new_chart()
    styles = threshold_styles(scores, name)
    for label, (title, style) in zip(_reliable_labels(scores, name), styles.items(), strict=True):
        curve = scores.diagrams[name].reliability[label]
        fraction = [count / max(1, sum(curve.forecasts)) for count in curve.forecasts]
        draw_line(axes, curve.probability, [value or None for value in fraction], style, name=title)
    axes.set(yscale="log", xlim=(-0.02, 1.02))
    name_axes(axes, "forecast probability", "fraction of pixels")
    return Chart("Sharpness", "Fraction of pixels by forecast probability, logarithmic.", figure)


def product_panels(scores: ScoreFile, example: ExampleFrames, name: str, steps: Steps, unit: str) -> list[Panel]:
    """Return the observation, members, mean, probability-matched mean and probabilities of one ensemble."""
    products = example.ensembles[name]
    fields = {"observed": example.observed}
    fields |= {f"member {k}": member for k, member in enumerate(products.members, start=1)}
    fields |= {"ensemble mean": products.mean, "probability-matched mean": products.matched_mean}
    panels = [Panel(title, field, steps, unit) for title, field in fields.items()]
    labels = scores.protocols[scores.pooled_protocol].labels
    if len(labels) == len(example.thresholds):
        # Every second threshold from the highest; the lowest adds little to the ensemble mean.
        for label in _supported(scores)[::-2][:_SHOWN_PROBABILITIES][::-1]:
            title = f"probability of ≥ {with_unit(label, scores.unit)}"
            panels.append(Panel(title, products.probability[labels.index(label)], probability_steps()))
    return panels
