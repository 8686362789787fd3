"""Score tables as plain data, used by the HTML report and the terminal."""

from dataclasses import dataclass

from simcast_hpc.config import FORECASTING
from simcast_hpc.monitoring.progress import format_duration

from .findings_text import with_unit
from .pipeline_results import METRICS_PER_THRESHOLD, RunResults, ScoredEntry, ScoreFile

UNDEFINED = "–"
METRIC_TITLES = {"csi": "CSI", "pod": "POD", "far": "FAR", "frequency_bias": "Frequency bias"}
SCORE_TITLES = {
    "csi/mean": "Mean CSI",
    "csi_pool4/mean": "Mean CSI, 4 × 4 max pool",
    "csi_pool16/mean": "Mean CSI, 16 × 16 max pool",
    "hss/mean": "Mean HSS",
    "mse": "MSE",
    "mae": "MAE",
    "ssim": "SSIM",
}


@dataclass(frozen=True)
class Row:
    """One row: heading, cells, and the indices of cells that are best in their column."""

    heading: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Group:
    """Rows under a common heading; the heading is empty if the table has only one group."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table: caption, column headings (that of the row headings first) and groups of rows.

    The first ``text_cells`` cells of a row are text, the others numbers.
    """

    caption: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    text_cells: int = 0


def lead_table(scores: ScoreFile, *, bounds: bool = True) -> Table:
    """Return mean CSI by lead time, one row per entry; the best of each column is marked.

    Args:
        scores: the score file.
        bounds: whether the caption contains intervals, for output without a table of them.
    """
    columns = [[scores.mean_csi_by_lead[name][k] for name in scores.names] for k in range(scores.frames_out)]
    columns.append([scores.mean_csi(name) for name in scores.names])
    cells = [[number(value) for value in column] for column in columns]
    best = [{i for i, text in enumerate(column) if text == _highest(column)} for column in cells]
    rows = tuple(
        Row(name, tuple(column[i] for column in cells), frozenset(k for k, rows in enumerate(best) if i in rows))
        for i, name in enumerate(scores.names)
    )
    note = ""
    if len(scores.compared_leads) < scores.frames_out:
        leads = ", ".join(f"{scores.lead_minutes[k]:g}" for k in scores.compared_leads) or "none"
        note = f" The last column is over the lead times at which all forecasts have a score: {leads}."
    protocol, used = next(iter(scores.protocols.items()))
    return Table(
        caption=f"Mean CSI by lead time (1 is perfect) under protocol {protocol} ({used.hash}), pooled over events. "
        f"The last column is the mean of the lead times; the best value of each column is in bold.{note}"
        f"{_intervals(scores, protocol) if bounds else ''}",
        columns=("Forecast", *(f"{minutes:g} min" for minutes in scores.lead_minutes), "Mean"),
        groups=(Group("", rows),),
    )


def _intervals(scores: ScoreFile, protocol: str) -> str:
    """Return a sentence with the mean CSI and interval of each forecast; empty if there are no intervals."""
    values = []
    for name in scores.names:
        low, high = scores.intervals.get(name, {}).get(protocol, {}).get("csi/mean", (None, None))
        if low is not None and high is not None:
            value = scores.scores[name][protocol].get("csi/mean")
            values.append(f"{name} {number(value)} [{number(low)}, {number(high)}]")
    if not values:
        return ""
    how = ""
    if scores.protocols[protocol].aggregation == "global":
        how = " of the counts pooled over lead times, which differs from the last column,"
    return f" Mean CSI{how} over the same thresholds, with 95 % intervals over events in brackets: {'; '.join(values)}."


def score_table(scores: ScoreFile, protocol: str) -> Table:
    """Return means over thresholds and scores of the whole field with their intervals, one row per entry."""
    used = scores.protocols[protocol]
    by_entry = [scores.scores[name][protocol] for name in scores.names]
    keys = [key for key in SCORE_TITLES if any(by_key.get(key) is not None for by_key in by_entry)]
    rows = tuple(
        Row(name, tuple(bounded(scores, name, protocol, key, places=places(key)) for key in keys))
        for name in scores.names
    )
    over = ", ".join(scores.supported_thresholds) or "all thresholds"
    return Table(
        caption=f"Scores under protocol {protocol}, hash {used.hash}. Means are over the thresholds {over}"
        f"{'' if scores.unit == 'code' else ' ' + scores.unit}; MSE and MAE are of the [0, 1] field"
        f"{', of an ensemble those of its mean' if scores.ensembles else ''}. In brackets 95 % intervals over events.",
        columns=("Forecast", *(SCORE_TITLES[key] for key in keys)),
        groups=(Group("", rows),),
    )


def bounded(scores: ScoreFile, name: str, protocol: str, key: str, *, places: int = 3) -> str:
    """Return a score as text, with the bounds of its interval if it has one."""
    value, bounds = number(scores.scores[name][protocol].get(key), places=places), scores.interval(name, protocol, key)
    return value if bounds is None else f"{value} [{', '.join(number(bound, places=places) for bound in bounds)}]"


def places(key: str) -> int:
    """Return the number of decimal places with which a score is printed."""
    return {"mse": 5, "mae": 4, "rmse": 4, "mean_error": 4, "crps": 4}.get(key, 3)


def threshold_table(scores: ScoreFile, protocol: str) -> Table:
    """Return CSI, POD, FAR and frequency bias per threshold and entry under one protocol."""
    used = scores.protocols[protocol]
    groups = tuple(
        Group(observed_heading(scores, label), _threshold_rows(scores, protocol, label)) for label in used.labels
    )
    rule = {
        "global": "counts pooled over lead times",
        "lead-mean": "mean of the scores of all lead times",
    }.get(used.aggregation, used.aggregation)
    source = f"; {used.source}" if used.source else ""
    return Table(
        caption=f"Scores per threshold under protocol {protocol}, hash {used.hash}: {rule}{source}.",
        columns=("Forecast", *METRIC_TITLES.values()),
        groups=groups,
    )


def entry_table(scores: ScoreFile) -> Table:
    """Return the description, optimizer steps and parameters of each forecast."""
    rows = tuple(
        Row(entry.name, (entry.note or UNDEFINED, _integer(entry.steps), _integer(entry.parameters)))
        for entry in scores.entries
    )
    return Table(
        caption="Compared forecasts.",
        columns=("Forecast", "Description", "Optimizer steps", "Parameters"),
        groups=(Group("", rows),),
        text_cells=1,
    )


def stage_table(run: RunResults) -> Table:
    """Return the training settings, time and weights of each stage."""
    rows = []
    for stage in run.stages:
        config = stage.config
        weights = " / ".join(f"{weight:g}" for weight in config.loss.pixel_weights)
        weighted = config.stage in FORECASTING and len(config.loss.pixel_weights) > 1
        cells = (
            config.stage,
            f"{stage.steps}",
            f"{stage.selection.get('exported_step', stage.steps)}",
            f"{stage.steps * config.batch.global_size}",
            "1 → 1" if config.stage == "autoencoder" else f"{config.sequence.frames_in} → {config.frames_out}",
            weights if weighted else "none",
            format_duration(stage.seconds),
            str(stage.marker.get("weights", UNDEFINED))[:12],
        )
        rows.append(Row(stage.name, cells))
    return Table(
        caption="Training of each model. Exported step: the step whose weights are exported, by default that of the "
        "best validation score. Loss weights: below / above the thresholds of the loss.",
        columns=(
            "Model",
            "Stage",
            "Optimizer steps",
            "Exported step",
            "Samples",
            "Frames in → out",
            "Loss weights",
            "Time",
            "Hash of weights",
        ),
        groups=(Group("", tuple(rows)),),
        text_cells=1,
    )


def number(value: float | None, *, places: int = 3) -> str:
    """Return a score as text; a dash if it is undefined."""
    return UNDEFINED if value is None else f"{value:.{places}f}"


def observed_heading(scores: ScoreFile, label: str) -> str:
    """Return a threshold with the numbers of observed pixels and events."""
    count = scores.observed.get(label)
    observed = f": {count.pixels} pixels, {count.events} events observed" if count is not None else ""
    excluded = "" if label in scores.supported_thresholds else " (excluded from means)"
    return f"≥ {with_unit(label, scores.unit)}{observed}{excluded}"


def _threshold_rows(scores: ScoreFile, protocol: str, label: str) -> tuple[Row, ...]:
    def row(entry: ScoredEntry) -> Row:
        keys = [f"{metric}/{label}" for metric in METRICS_PER_THRESHOLD]
        return Row(entry.name, tuple(bounded(scores, entry.name, protocol, key) for key in keys))

    return tuple(row(entry) for entry in scores.entries)


def _highest(column: list[str]) -> str | None:
    numbers = [text for text in column if text != UNDEFINED]
    return max(numbers, key=float) if numbers else None


def _integer(value: int | None) -> str:
    return UNDEFINED if value is None else f"{value:,}"
