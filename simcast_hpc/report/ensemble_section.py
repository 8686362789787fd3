"""An ensemble beside single forecasts: CRPS, spread and skill, ranks, reliability; and its products as panels."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from .colours import LineStyle, Steps, line_styles, probability_steps
from .example_window import ExampleFrames
from .field_viewer import Panel
from .findings_text import with_unit
from .lead_time_curves import FAINT, INK, Chart, draw_line, lead_curves, name_axes, new_chart
from .pipeline_results import ScoreFile
from .score_tables import UNDEFINED, Group, Row, Table, bounded, number

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SHOWN_PROBABILITIES = 3


def ensemble_table(scores: ScoreFile) -> Table:
    """Return fair CRPS, that of a single forecast being its MAE, with intervals, and how far each ensemble is ahead."""
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
        caption=f"Fair CRPS of the [0, 1] field, lower is better; of a single forecast it is the mean absolute error. "
        f"Protocol {protocol}, hash {scores.protocols[protocol].hash}; in brackets 95 % of resamples of whole events, "
        "the same for both sides of a difference. Spread / error: members' standard deviation over the error of their "
        "mean, 1 is right, below 1 too sure.",
        columns=("Forecast", "What it is", "CRPS", *(f"{name} − this" for name in names), "Spread", "Spread / error"),
        groups=(Group("", rows),),
        text_cells=1,
    )


def _difference(scores: ScoreFile, ensemble: str, other: str) -> str:
    found = scores.difference(ensemble, other, "crps")
    if found is None:
        return UNDEFINED
    value, low, high = (number(part, places=4).replace("-", "−") for part in found)
    return f"{value} [{low}, {high}]"


def crps_chart(scores: ScoreFile) -> Chart:
    """Return fair CRPS by lead, of single forecasts their MAE."""
    curves = {name: scores.by_lead(name, "crps") for name in scores.names}
    return lead_curves(scores, curves, up="CRPS; MAE of single ones", title="CRPS by lead")


def spread_styles() -> dict[str, LineStyle]:
    """Return the lines of spread and error."""
    return {"spread": LineStyle("#0072b2", "o", "-"), "error of the mean": LineStyle("#d55e00", "s", "--")}


def threshold_styles(scores: ScoreFile, name: str) -> dict[str, LineStyle]:
    """Return a line for each threshold of an ensemble's reliability, from light to dark as they rise."""
    labels = _reliable_labels(scores, name)
    shades = np.linspace(0.75, 0.0, len(labels)) if len(labels) > 1 else [0.4]
    return {
        f"≥ {with_unit(label, scores.unit)}": LineStyle(to_hex(colormaps["viridis"](shade)), _MARKERS[k % 7], "-")
        for k, (label, shade) in enumerate(zip(labels, shades, strict=True))
    }


def _reliable_labels(scores: ScoreFile, name: str) -> tuple[str, ...]:
    """Return the thresholds in the mean whose reliability was counted; all that were where none is in the mean.

    It is counted once, under the first protocol, which may have other thresholds than that of the curves.
    """
    counted = tuple(scores.diagrams[name].reliability)
    return tuple(label for label in counted if label in scores.supported_thresholds) or counted


def _supported(scores: ScoreFile) -> tuple[str, ...]:
    labels = scores.protocols[scores.pooled_protocol].labels
    return tuple(label for label in labels if label in scores.supported_thresholds) or labels


def spread_chart(scores: ScoreFile, name: str) -> Chart:
    """Return spread and error of the mean by lead.

    The spread is enlarged by sqrt((M + 1) / M), so that it equals the error where members are right (Fortin et al.
    2014, eq. 15).
    """
    members = scores.diagrams[name].members
    spread, ratio = scores.by_lead(name, "spread"), scores.by_lead(name, "spread_skill")
    enlarged = [None if value is None else math.sqrt((members + 1) / members) * value for value in spread]
    error = [wide / share if wide is not None and share else None for wide, share in zip(enlarged, ratio, strict=True)]
    curves = {"spread": enlarged, "error of the mean": error}
    return lead_curves(scores, curves, up="of the [0, 1] field", title="Spread and error", styles=spread_styles())


def rank_chart(scores: ScoreFile, name: str) -> Chart:
    """Return how often the observation had each rank among the members, over how often it would were it flat."""
    counts = np.sum(scores.diagrams[name].ranks, axis=0)
    share = counts / max(1, counts.sum()) * len(counts)
    figure, axes = new_chart()
    axes.bar(range(1, len(counts) + 1), share, width=0.9, color=line_styles(scores.names)[name].colour)
    axes.axhline(1.0, color=INK, linewidth=1.2)
    axes.grid(visible=False, axis="x")
    name_axes(axes, "rank of the observation", "frequency, 1 is flat")
    alt = f"Rank histogram: lowest rank {share[0]:.2f}, highest {share[-1]:.2f} times as often as were it flat."
    return Chart("Rank histogram", alt, figure)


def reliability_chart(scores: ScoreFile, name: str) -> Chart:
    """Return observed frequency against forecast probability, a curve for each threshold in the mean."""
    figure, axes = new_chart()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.0)
    said = []
    styles = threshold_styles(scores, name)
    for label, (title, style) in zip(_reliable_labels(scores, name), styles.items(), strict=True):
        held = scores.diagrams[name].reliability[label]
        draw_line(axes, held.probability, held.observed_frequency, style, name=title)
        top = held.observed_frequency[-1]
        said.append(f"{title} {'never' if top is None else f'observed in {100 * top:.0f} %'}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    name_axes(axes, "forecast probability", "observed frequency")
    return Chart("Reliability", f"Reliability diagram. Where all members forecast it: {', '.join(said)}.", figure)


def sharpness_chart(scores: ScoreFile, name: str) -> Chart:
    """Return how often each probability was forecast, a curve for each threshold in the mean."""
    figure, axes = new_chart()
    styles = threshold_styles(scores, name)
    for label, (title, style) in zip(_reliable_labels(scores, name), styles.items(), strict=True):
        held = scores.diagrams[name].reliability[label]
        share = [count / max(1, sum(held.forecasts)) for count in held.forecasts]
        draw_line(axes, held.probability, [value or None for value in share], style, name=title)
    axes.set(yscale="log", xlim=(-0.02, 1.02))
    name_axes(axes, "forecast probability", "share of pixels")
    return Chart("How often each was forecast", "Share of pixels by forecast probability, logarithmic.", figure)


def product_panels(scores: ScoreFile, example: ExampleFrames, name: str, steps: Steps, unit: str) -> list[Panel]:
    """Return the observation, members, mean, probability-matched mean and probabilities of one ensemble."""
    made = example.ensembles[name]
    fields = {"observed": example.observed}
    fields |= {f"member {k}": member for k, member in enumerate(made.members, start=1)}
    fields |= {"mean of all members": made.mean, "probability-matched mean": made.matched_mean}
    panels = [Panel(title, field, steps, unit) for title, field in fields.items()]
    labels = scores.protocols[scores.pooled_protocol].labels
    if len(labels) == len(example.thresholds):
        # From the frequent to the rare; those of the lowest threshold say little that the mean does not.
        for label in _supported(scores)[::-2][:_SHOWN_PROBABILITIES][::-1]:
            title = f"probability of ≥ {with_unit(label, scores.unit)}"
            panels.append(Panel(title, made.probability[labels.index(label)], probability_steps()))
    return panels
