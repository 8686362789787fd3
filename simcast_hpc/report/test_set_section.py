"""What a page shows of one test set: tables, curves, heavy rain, scales, ensembles, frames."""

from .animation import animation
from .colours import LineStyle, Steps, line_styles, probability_steps, steps_for
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
from .html_markup import chart_grid, colour_legend, folded, line_legend, looping, picture, table, text
from .lead_time_curves import csi_charts, mean_csi_chart
from .pipeline_results import ScoredTestSet, ScoreFile
from .score_tables import entry_table, lead_table, score_table, threshold_table
from .spectra_figures import spectra_charts, spectra_styles, whole_frames


def parts_of(test_set: ScoredTestSet) -> list[str]:
    """Return the parts of a test set's section in their order, as HTML."""
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
        text("h3", "The forecasts"),
        table(entry_table(scores)),
        text("h3", "Scores per threshold"),
        text("p", "The rarer a threshold, the fewer pixels its scores rest on and the more they move from run to run."),
        *(
            folded(f"Protocol {protocol}, hash {used.hash}", table(threshold_table(scores, protocol)))
            for protocol, used in scores.protocols.items()
        ),
    ]


def provenance(scores: ScoreFile) -> str:
    """Return in words which windows these are and where the data comes from."""
    return (
        f"Split “{scores.split}” of {scores.dataset}: {scores.windows} windows of {scores.events} events, "
        f"{scores.frames_in} frames in, {scores.frames_out} out, {scores.step_minutes:g} minutes apart"
        f"{_grid(scores)}. Source: {scores.citation}. Licence: {scores.license}."
    )


def _grid(scores: ScoreFile) -> str:
    if scores.grid is None or scores.spacing_km is None:
        return ""
    height, width = scores.grid
    return f", {height} × {width} pixels of {scores.spacing_km:g} km"


def _scores(scores: ScoreFile) -> list[str]:
    """Return the table of the protocol of the curves, and those of the others folded."""
    first, *others = sorted(scores.protocols, key=lambda name: name != scores.pooled_protocol)
    folds = [
        folded(f"Under protocol {name}, hash {scores.protocols[name].hash}", table(score_table(scores, name)))
        for name in others
    ]
    return [table(score_table(scores, first)), *folds]


def _curves(scores: ScoreFile, styles: dict[str, LineStyle]) -> list[str]:
    protocol = scores.pooled_protocol
    return [
        text("h3", "By lead time"),
        chart_grid(
            [mean_csi_chart(scores), *csi_charts(scores)],
            legend=line_legend(styles),
            caption=f"Critical success index by lead time, higher is better: the mean over thresholds, then each "
            f"threshold, counts pooled at each lead (protocol {protocol}, hash {scores.protocols[protocol].hash}). "
            "Every chart has its own vertical scale.",
        ),
    ]


def _heavy_rain(scores: ScoreFile, styles: dict[str, LineStyle]) -> list[str]:
    return [
        text("h3", "The heaviest echoes"),
        chart_grid(
            heavy_rain_charts(scores),
            legend=line_legend(styles),
            caption="Performance diagram, all leads together: POD against success ratio, the perfect forecast at the "
            "top right; grey curves have one CSI, dashed lines one frequency bias. Beside it the frequency bias by "
            "lead: 1 is right on average, below it heavy echoes are missed.",
        ),
        table(heavy_rain_table(scores)),
    ]


def _spectra(scores: ScoreFile) -> list[str]:
    drawn, kept = spectra_charts(scores), whole_frames(scores)
    heading = text("h3", "Scales: power spectra")
    if not drawn or kept is None:
        return [heading, text("p", "No spectra were summed for this test set (an older file, or --tables-only).")]
    whole, all_of_them = kept
    if whole == 0:
        return [heading, text("p", "Every frame misses pixels, so that none has a spectrum.")]
    left_out = "" if whole == all_of_them else f" Of {all_of_them} frames {whole} miss no pixel and are counted."
    return [
        heading,
        chart_grid(
            drawn,
            legend=line_legend(spectra_styles(scores)),
            caption="Radially averaged power of the [0, 1] field by wavelength, mean over windows. A forecast below "
            "the observation at short wavelengths is blurred; a mean of members is so by nature, a member should not "
            "be."
            f"{left_out}",
        ),
    ]


def _ensembles(test_set: ScoredTestSet, styles: dict[str, LineStyle]) -> list[str]:
    scores = test_set.scores
    if not scores.ensembles:
        return []
    parts = [
        text("h3", "The ensemble beside single forecasts"),
        table(ensemble_table(scores)),
        chart_grid(
            [crps_chart(scores)], legend=line_legend(styles), caption="Fair CRPS by lead time, lower is better."
        ),
    ]
    for name in scores.ensembles:
        parts += [
            text("h3", f"{name}: is it sure enough, is it right?"),
            chart_grid(
                [spread_chart(scores, name), rank_chart(scores, name)],
                legend=line_legend(spread_styles()),
                caption="The spread of the members, enlarged for their number, should equal the error of their mean at "
                "every lead. The rank histogram, of all leads, should be flat: a U says that the members are too "
                "alike, a slope that they are biased.",
            ),
            chart_grid(
                [reliability_chart(scores, name), sharpness_chart(scores, name)],
                legend=line_legend(threshold_styles(scores, name)),
                caption="Reliability: where an event is forecast by so many members, it should be observed as often; "
                "on the diagonal it is. Beside it the share of pixels for which each probability was forecast. "
                f"{scores.diagrams[name].members} members, all windows, pixels and leads.",
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
    chances = colour_legend(probability_steps(), title="Probability", unit="")
    return [
        text("h3", f"{name}: members and what follows from them"),
        viewer(panels, lead_minutes=scores.lead_minutes, label="Lead time of the ensemble's fields"),
        colour_legend(steps, title=scores.quantity, unit=scores.unit) + chances,
        text(
            "p",
            f"{len(example.ensembles[name].members)} of {scores.diagrams[name].members} members, the mean of all "
            "(blurred by nature), the mean's pattern with the members' values, and the share of members at or above a "
            f"threshold, for {_window(scores, example)}.",
            kind="caption",
        ),
    ]


def field_steps(scores: ScoreFile, example: ExampleFrames) -> tuple[Steps, str]:
    """Return the colour scale of a test set's fields and the unit of its labels, empty where they are codes."""
    labels = scores.protocols[scores.pooled_protocol].labels
    if len(labels) != len(example.thresholds):
        labels = tuple(f"{code:g}" for code in example.thresholds)
    is_reflectivity = "reflectivity" in scores.quantity.lower()  # whose thresholds may be given as codes
    steps = steps_for(example.thresholds, labels=labels, unit="dBZ" if is_reflectivity else scores.unit)
    return steps, "" if scores.unit == "code" else scores.unit


def _frames(test_set: ScoredTestSet) -> list[str]:
    scores, example = test_set.scores, test_set.example
    heading = text("h3", "Frames side by side")
    if example is None:
        return [heading, text("p", "No example frames were kept for this test set.")]
    steps, unit = field_steps(scores, example)
    panels = [Panel("observed", example.observed, steps, unit)]
    panels += [
        Panel(f"{name}, member 1" if name in example.ensembles else name, example.forecasts[name], steps, unit)
        for name in scores.names
        if name in example.forecasts
    ]
    before = [(k - len(example.inputs) + 1) * scores.step_minutes for k in range(len(example.inputs))]
    inputs = Panel("inputs", example.inputs, steps, unit)
    whole = overview(
        inputs, panels, minutes_in=before, minutes_out=scores.lead_minutes, title=f"{scores.quantity}, {scores.unit}"
    )
    alt = f"Rows of inputs and of {', '.join(panel.title for panel in panels)}: the same fields as above."
    caption = f"{_window(scores, example)}."
    moving = animation(panels, lead_minutes=scores.lead_minutes, start=example.inputs[-1])
    return [
        heading,
        text("p", f"One window chosen by its observations alone (most heavy pixels), not by how well it was forecast: "
             f"{_window(scores, example)}. Missing pixels are grey and hatched."),
        strip(inputs, before),
        viewer(panels, lead_minutes=scores.lead_minutes, label="Lead time of the forecasts"),
        colour_legend(steps, title=scores.quantity, unit=scores.unit),
        folded("All in one picture, for slides", picture(as_png(whole), alt=alt, wide=True, caption=caption)),
        folded(
            "Animation",
            looping(moving, alt=f"The same fields in motion, from the last input to +{scores.lead_minutes[-1]:g} min."),
        ),
    ]  # fmt: skip


def _window(scores: ScoreFile, example: ExampleFrames) -> str:
    height, width = example.observed.shape[1:]
    spacing = "" if scores.spacing_km is None else f" of {scores.spacing_km:g} km"
    return f"event {example.event}, {height} × {width} pixels{spacing}, frames {scores.step_minutes:g} minutes apart"
