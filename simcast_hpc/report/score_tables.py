"""The tables of a run as plain data: the page and the terminal show the same cells."""

from dataclasses import dataclass

from simcast_hpc.config import FORECASTING

from .findings_text import with_unit
from .pipeline_results import METRICS_PER_THRESHOLD, RunResults, ScoredEntry, ScoreFile

UNDEFINED = "–"
METRIC_TITLES = {"csi": "CSI", "pod": "POD", "far": "FAR", "frequency_bias": "Frequency bias"}
SCORE_TITLES = {
    "csi/mean": "Mean CSI",
    "csi_pool4/mean": "Mean CSI, 4-pixel maxima",
    "csi_pool16/mean": "Mean CSI, 16-pixel maxima",
    "hss/mean": "Mean HSS",
    "mse": "MSE",
    "mae": "MAE",
    "ssim": "SSIM",
}


@dataclass(frozen=True)
class Row:
    """One row: its heading, its cells, and which of the cells are best."""

    heading: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Group:
    """Rows that belong together under one heading; the heading of a table's only group is empty."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A caption, the heading of every column (that of the row headings first) and the rows in groups.

    The first ``text_cells`` cells of a row are words, the others numbers.
    """

    caption: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    text_cells: int = 0


def lead_table(scores: ScoreFile, *, bounds: bool = True) -> Table:
    """Return mean CSI by lead time, an entry a row; the best of a column is marked, at the precision that is shown.

    Args:
        scores: the file.
        bounds: whether the caption tells the intervals, for a reader who has no table of them.
    """
    columns = [[scores.mean_csi_by_lead[name][k] for name in scores.names] for k in range(scores.frames_out)]
    columns.append([scores.mean_csi(name) for name in scores.names])
    shown = [[number(value) for value in column] for column in columns]
    best = [{i for i, text in enumerate(column) if text == _highest(column)} for column in shown]
    rows = tuple(
        Row(name, tuple(column[i] for column in shown), frozenset(k for k, which in enumerate(best) if i in which))
        for i, name in enumerate(scores.names)
    )
    note = ""
    if len(scores.compared_leads) < scores.frames_out:
        leads = ", ".join(f"{scores.lead_minutes[k]:g}" for k in scores.compared_leads) or "none"
        note = f" The last column is over the leads at which every forecast has a score: {leads}."
    protocol, used = next(iter(scores.protocols.items()))
    return Table(
        caption=f"Mean CSI by lead time (1 is perfect), counted under protocol {protocol} ({used.hash}), pooled "
        f"over events at each lead; the last column is the mean over leads. The best of each column in bold.{note}"
        f"{_intervals(scores, protocol) if bounds else ''}",
        columns=("Forecast", *(f"{minutes:g} min" for minutes in scores.lead_minutes), "Mean of leads"),
        groups=(Group("", rows),),
    )


def _intervals(scores: ScoreFile, protocol: str) -> str:
    """Return a sentence with each forecast's mean CSI and its interval; empty where nothing was resampled."""
    said = []
    for name in scores.names:
        low, high = scores.intervals.get(name, {}).get(protocol, {}).get("csi/mean", (None, None))
        if low is not None and high is not None:
            value = scores.scores[name][protocol].get("csi/mean")
            said.append(f"{name} {number(value)} [{number(low)}, {number(high)}]")
    if not said:
        return ""
    pooled = f"With all leads pooled instead, mean CSI of {protocol} and 95 % of the resamples of events in brackets"
    return f" {pooled}: {'; '.join(said)}."


def score_table(scores: ScoreFile, protocol: str) -> Table:
    """Return the scores that are means over thresholds or of the whole field, with their intervals, an entry a row."""
    used = scores.protocols[protocol]
    held = [scores.scores[name][protocol] for name in scores.names]
    keys = [key for key in SCORE_TITLES if any(found.get(key) is not None for found in held)]
    rows = tuple(
        Row(name, tuple(bounded(scores, name, protocol, key, places=_places(key)) for key in keys))
        for name in scores.names
    )
    over = ", ".join(scores.supported_thresholds) or "all thresholds"
    return Table(
        caption=f"Scores under protocol {protocol}, hash {used.hash}. Means are over the thresholds {over}"
        f"{'' if scores.unit == 'code' else ' ' + scores.unit}; errors are of the field in [0, 1]. In brackets the "
        "bounds of 95 % of resamples of whole events.",
        columns=("Forecast", *(SCORE_TITLES[key] for key in keys)),
        groups=(Group("", rows),),
    )


def bounded(scores: ScoreFile, name: str, protocol: str, key: str, *, places: int = 3) -> str:
    """Return a score with the bounds of its interval, where it has one."""
    value, bounds = number(scores.scores[name][protocol].get(key), places=places), scores.interval(name, protocol, key)
    return value if bounds is None else f"{value} [{', '.join(number(bound, places=places) for bound in bounds)}]"


def _places(key: str) -> int:
    return 4 if key in ("mse", "mae", "crps") else 3


def threshold_table(scores: ScoreFile, protocol: str) -> Table:
    """Return CSI, POD, FAR and frequency bias per threshold and entry under one protocol."""
    used = scores.protocols[protocol]
    groups = tuple(
        Group(observed_heading(scores, label), _threshold_rows(scores, protocol, label)) for label in used.labels
    )
    rule = {
        "global": "counts pooled over all lead times",
        "lead-mean": "a score for every lead time, then their mean",
    }.get(used.aggregation, used.aggregation)
    source = f"; {used.source}" if used.source else ""
    return Table(
        caption=f"Scores per threshold under protocol {protocol}, hash {used.hash}: {rule}{source}.",
        columns=("Forecast", *METRIC_TITLES.values()),
        groups=groups,
    )


def entry_table(scores: ScoreFile) -> Table:
    """Return what each forecast is, what it cost, and its squared and absolute error."""
    found = {entry.name: scores.scores[entry.name][scores.pooled_protocol] for entry in scores.entries}
    measured = {"mse": "MSE", "mae": "MAE"}
    caption = "The forecasts compared. MSE and MAE: mean squared and absolute error of the field in [0, 1]."
    if any("spread_skill" in values for values in found.values()):
        measured |= {"crps": "CRPS", "spread_skill": "Spread / error"}
        caption += (
            " Of an ensemble they are its mean's. CRPS: the fair score of members, of a single forecast its MAE; lower "
            "is better. Spread / error: members' standard deviation over the error of their mean; 1 is right."
        )
    rows = tuple(
        Row(
            entry.name,
            (
                entry.note or UNDEFINED,
                _whole(entry.steps),
                _whole(entry.parameters),
                *(number(found[entry.name].get(key), places=5) for key in measured),
            ),
        )
        for entry in scores.entries
    )
    return Table(
        caption=caption,
        columns=("Forecast", "What it is", "Optimizer steps", "Parameters", *measured.values()),
        groups=(Group("", rows),),
        text_cells=1,
    )


def stage_table(run: RunResults) -> Table:
    """Return how each stage was trained."""
    rows = []
    for stage in run.stages:
        config = stage.config
        weights = " / ".join(f"{weight:g}" for weight in config.loss.weights)
        weighted = config.stage in FORECASTING and len(config.loss.weights) > 1
        cells = (
            config.stage,
            f"{stage.steps}",
            f"{stage.steps * config.batch.global_size}",
            "1 → 1" if config.stage == "autoencoder" else f"{config.sequence.frames_in} → {config.frames_out}",
            weights if weighted else "none",
            duration(stage.seconds),
            str(stage.marker.get("weights", UNDEFINED))[:12],
        )
        rows.append(Row(stage.name, cells))
    return Table(
        caption="How each model was trained. Loss weights: below / above the loss's thresholds.",
        columns=(
            "Model",
            "Stage",
            "Optimizer steps",
            "Samples",
            "Frames in → out",
            "Loss weights",
            "Time",
            "Weights' hash",
        ),
        groups=(Group("", tuple(rows)),),
        text_cells=1,
    )


def number(value: float | None, *, places: int = 3) -> str:
    """Return a score as text; an undefined one is a dash."""
    return UNDEFINED if value is None else f"{value:.{places}f}"


def duration(seconds: float) -> str:
    """Return a time as people say it: 48 s, 4 min 12 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def observed_heading(scores: ScoreFile, label: str) -> str:
    """Return a threshold and how much of it was observed."""
    count = scores.observed.get(label)
    seen = f": {count.pixels} pixels, {count.events} events observed" if count is not None else ""
    aside = "" if label in scores.supported_thresholds else " (too rare for the mean)"
    return f"≥ {with_unit(label, scores.unit)}{seen}{aside}"


def _threshold_rows(scores: ScoreFile, protocol: str, label: str) -> tuple[Row, ...]:
    def row(entry: ScoredEntry) -> Row:
        keys = [f"{metric}/{label}" for metric in METRICS_PER_THRESHOLD]
        return Row(entry.name, tuple(bounded(scores, entry.name, protocol, key) for key in keys))

    return tuple(row(entry) for entry in scores.entries)


def _highest(column: list[str]) -> str | None:
    numbers = [text for text in column if text != UNDEFINED]
    return max(numbers, key=float) if numbers else None


def _whole(value: int | None) -> str:
    return UNDEFINED if value is None else f"{value:,}"
