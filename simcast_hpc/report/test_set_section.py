"""Section of the report about one test set: tables, curves, example frames, heavy rain, spectra, ensembles."""

from dataclasses import replace

from PIL import Image

from .additional_scores import additional_table
from .animation import animation
from .colors import LineStyle, Steps, line_styles, probability_steps, steps_for
from .ensemble_section import (
    crps_chart,
    ensemble_table,
    product_panels,
    rank_chart,
    reliability_chart,
    sharpness_chart,
    spread_chart,
    spread_styles,
    threshold_styles,
)
from .example_window import ExampleFrames
from .field_images import as_png
from .field_viewer import Panel, strip, viewer
from .frame_overview import overview
from .heavy_rain import heavy_rain_charts, heavy_rain_table
from .html_markup import animated_figure, chart_grid, collapsible, color_legend, line_legend, picture, table, text
from .lead_time_curves import csi_charts, mean_csi_chart
from .pipeline_results import ScoredTestSet, ScoreFile
from .score_tables import entry_table, lead_table, number, score_table, threshold_table
from .spectra_figures import complete_frames, spectra_charts, spectra_styles


def test_set_section(test_set: ScoredTestSet) -> list[str]:
    """Return the parts of the section of a test set as HTML."""
    scores = test_set.scores
    styles = line_styles(scores.names)
    return [
        table(lead_table(scores, bounds=False)),
        *_scores(scores),
        *_curves(scores, styles),
        *_frames(test_set),
        *_heavy_rain(scores, styles),
        *_spectra(scores),
        *_ensembles(test_set, styles),
        text("h3", "Forecasts"),
        table(entry_table(scores)),
        text("h3", "Scores per threshold"),
        text("p", "Scores of rare thresholds are based on few pixels and vary strongly between runs."),
        *(
            collapsible(f"Protocol {protocol}, hash {used.hash}", table(threshold_table(scores, protocol)))
            for protocol, used in scores.protocols.items()
        ),
    ]


def provenance(scores: ScoreFile) -> str:
    """Return a text with the split, windows, grid, source and license of the data."""
    return (
        f"Split “{scores.split}” of {scores.dataset}: {scores.windows} windows of {scores.events} events, "
        f"{scores.frames_in} input and {scores.frames_out} output frames, {scores.step_minutes:g} minutes apart"
        f"{_grid(scores)}. Source: {scores.citation}. License: {scores.license}."
    )


def _grid(scores: ScoreFile) -> str:
    if scores.grid is None or scores.spacing_km is None:
        return ""
    height, width = scores.grid
    return f", {height} × {width} pixels of {scores.spacing_km:g} km"


def _scores(scores: ScoreFile) -> list[str]:
    """Return the table of the pooled protocol, and collapsed tables of the others."""
    first, *others = sorted(scores.protocols, key=lambda name: name != scores.pooled_protocol)
    collapsed = [
        collapsible(f"Protocol {name}, hash {scores.protocols[name].hash}", "\n".join(_tables(scores, name)))
        for name in others
    ]
    return [*_tables(scores, first), *collapsed]


def _tables(scores: ScoreFile, protocol: str) -> list[str]:
    additional = additional_table(scores, protocol)
    return [table(one) for one in (score_table(scores, protocol), additional) if one is not None]


def _curves(scores: ScoreFile, styles: dict[str, LineStyle]) -> list[str]:
    protocol = scores.pooled_protocol
    return [
        text("h3", "CSI by lead time"),
        chart_grid(
            [mean_csi_chart(scores), *csi_charts(scores)],
            legend=line_legend(styles),
            caption="Critical success index by lead time (higher is better): mean over thresholds, and each threshold, "
            f"pooled at each lead time (protocol {protocol}, hash {scores.protocols[protocol].hash}). Vertical axes "
            "differ between charts.",
        ),
    ]


def _heavy_rain(scores: ScoreFile, styles: dict[str, LineStyle]) -> list[str]:
    return [
        text("h3", "Heavy rain"),
        chart_grid(
            heavy_rain_charts(scores),
            legend=line_legend(styles),
            caption="Performance diagram, pooled over lead times: POD against success ratio, with curves of equal CSI "
            "and dashed lines of equal frequency bias. Axes are zoomed to the scores; a perfect forecast is at (1, 1). "
            "Frequency bias by lead time: 1 is unbiased, below 1 is under-forecast.",
        ),
        table(heavy_rain_table(scores)),
    ]


def _spectra(scores: ScoreFile) -> list[str]:
    charts, frames = spectra_charts(scores), complete_frames(scores)
    heading = text("h3", "Power spectra")
    if not charts or frames is None:
        return [heading, text("p", "This score file has no spectra (older version, or --tables-only).")]
    complete, total = frames
    if complete == 0:
        return [heading, text("p", "Every frame has missing pixels, so there are no spectra.")]
    excluded = "" if complete == total else f" {complete} of {total} frames have no missing pixels and are used."
    return [
        heading,
        chart_grid(
            charts,
            legend=line_legend(spectra_styles(scores)),
            caption="Radially averaged power of the [0, 1] field by wavelength, mean over windows. A forecast with "
            "less power than the observation at short wavelengths is overly smooth, as is expected of an ensemble mean "
            f"but not of a member.{excluded}",
        ),
    ]


def _ensembles(test_set: ScoredTestSet, styles: dict[str, LineStyle]) -> list[str]:
    scores = test_set.scores
    if not scores.ensembles:
        return []
    parts = [
        text("h3", "Ensemble and single forecasts"),
        table(ensemble_table(scores)),
        chart_grid(
            [crps_chart(scores)], legend=line_legend(styles), caption="Fair CRPS by lead time (lower is better)."
        ),
    ]
    for name in scores.ensembles:
        parts += [
            text("h3", f"{name}: spread and reliability"),
            chart_grid(
                [spread_chart(scores, name), rank_chart(scores, name)],
                legend=line_legend(spread_styles()),
                caption="The spread of the members, corrected for their number, should equal the error of their mean. "
                "The rank histogram over all lead times should be flat: a U shape indicates underdispersion, a slope "
                "indicates bias.",
            ),
            chart_grid(
                [reliability_chart(scores, name), sharpness_chart(scores, name)],
                legend=line_legend(threshold_styles(scores, name)),
                caption="Reliability: a reliable ensemble is on the diagonal. Sharpness: fraction of pixels for which "
                f"each probability was forecast. {scores.diagrams[name].members} members, all windows, pixels and lead "
                "times.",
            ),
            *_products(test_set, name),
        ]
    return parts


def _products(test_set: ScoredTestSet, name: str) -> list[str]:
    scores, example = test_set.scores, test_set.example
    if example is None or name not in example.ensembles:
        return []
    steps, unit = field_steps(scores, example)
    panels = product_panels(scores, example, name, steps, unit)
    probability_legend = color_legend(probability_steps(), title="Probability", unit="")
    return [
        text("h3", f"{name}: members and ensemble products"),
        viewer(panels, lead_minutes=scores.lead_minutes, label="Lead time of the ensemble's fields"),
        color_legend(steps, title=scores.quantity, unit=unit_text(scores.unit)) + probability_legend,
        text(
            "p",
            f"{len(example.ensembles[name].members)} of {scores.diagrams[name].members} members, ensemble mean, "
            "probability-matched mean, and exceedance probabilities (fraction of members at or above a threshold), for "
            f"{_window(scores, example)}.",
            kind="caption",
        ),
    ]


def unit_text(unit: str) -> str:
    """Return a unit for readers: encoded values have none."""
    return "encoded value" if unit == "code" else unit


def field_steps(scores: ScoreFile, example: ExampleFrames) -> tuple[Steps, str]:
    """Return the color scale of the fields of a test set and the unit of its labels; empty for encoded values."""
    labels = scores.protocols[scores.pooled_protocol].labels
    if len(labels) != len(example.thresholds):
        labels = tuple(f"{code:g}" for code in example.thresholds)
    is_reflectivity = "reflectivity" in scores.quantity.lower()  # whose thresholds may be given as codes
    steps = steps_for(example.thresholds, labels=labels, unit="dBZ" if is_reflectivity else scores.unit)
    return steps, "" if scores.unit == "code" else scores.unit


def _panels(scores: ScoreFile, example: ExampleFrames) -> tuple[Panel, list[Panel]]:
    """Return the panel of the inputs, and those of the observation and every forecast."""
    steps, unit = field_steps(scores, example)
    panels = [Panel("observed", example.observed, steps, unit)]
    panels += [
        Panel(f"{name}, member 1" if name in example.ensembles else name, example.forecasts[name], steps, unit)
        for name in scores.names
        if name in example.forecasts
    ]
    return Panel("inputs", example.inputs, steps, unit), panels


def _input_minutes(scores: ScoreFile, example: ExampleFrames) -> list[float]:
    return [(k - len(example.inputs) + 1) * scores.step_minutes for k in range(len(example.inputs))]


def slide(scores: ScoreFile, example: ExampleFrames) -> Image.Image:
    """Return one image of the example window: inputs, observation, and each forecast with its mean CSI of the run."""
    inputs, panels = _panels(scores, example)
    labeled = [panels[0]]
    shown = [entry for entry in scores.entries if entry.name in example.forecasts]
    for panel, entry in zip(panels[1:], shown, strict=True):
        title = f"{panel.title}, rolled out" if "rolled out" in entry.note else panel.title
        labeled.append(replace(panel, title=title, note=f"mean CSI {number(scores.mean_csi(entry.name))}"))
    return overview(
        inputs,
        labeled,
        minutes_in=_input_minutes(scores, example),
        minutes_out=scores.lead_minutes,
        title=f"{scores.quantity}, {unit_text(scores.unit)}; mean CSI: all {scores.windows} windows, all lead times",
    )


def _frames(test_set: ScoredTestSet) -> list[str]:
    scores, example = test_set.scores, test_set.example
    heading = text("h3", "Example frames")
    if example is None:
        return [heading, text("p", "This test set has no example window.")]
    inputs, panels = _panels(scores, example)
    alt = f"Rows of inputs and of {', '.join(panel.title for panel in panels)}; the same fields as above."
    caption = f"{_window(scores, example)}."
    moving = animation(panels, lead_minutes=scores.lead_minutes, start=example.inputs[-1])
    image = as_png(slide(scores, example))
    return [
        heading,
        text("p", f"The window with the most observed pixels of heavy rain, selected without regard to the forecasts: "
             f"{_window(scores, example)}. Missing pixels are gray and hatched."),
        strip(inputs, _input_minutes(scores, example)),
        viewer(panels, lead_minutes=scores.lead_minutes, label="Lead time of the forecasts"),
        color_legend(inputs.steps, title=scores.quantity, unit=unit_text(scores.unit)),
        collapsible("Single image for slides", picture(image, alt=alt, wide=True, caption=caption)),
        collapsible(
            "Animation",
            animated_figure(
                moving, alt=f"Animation of the same fields, from the last input to +{scores.lead_minutes[-1]:g} min."
            ),
        ),
    ]  # fmt: skip


def _window(scores: ScoreFile, example: ExampleFrames) -> str:
    height, width = example.observed.shape[1:]
    spacing = "" if scores.spacing_km is None else f" of {scores.spacing_km:g} km"
    return f"event {example.event}, {height} × {width} pixels{spacing}, frames {scores.step_minutes:g} minutes apart"
