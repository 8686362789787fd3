"""The HTML page of ``simcast data inspect --report``: what a service needs to know before it trains on its data."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simcast_hpc.config.names import file_stem
from simcast_hpc.data.climatology import ClimatologySummary
from simcast_hpc.data.data_errors import DataProblem
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.storage.atomic_files import atomic_file

from .climatology_charts import day_charts, map_charts, month_charts, persistence_charts, threshold_line_styles
from .findings_text import with_unit
from .html_markup import bullets, chart_grid, collapsible, definitions, line_legend, links, table, text
from .html_report import write_page
from .lead_time_curves import Chart
from .score_tables import UNDEFINED, Group, Row, Table

_SHOWN_PROBLEMS = 200
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


def write_climatology_page(
    path: Path,
    spec: DatasetSpec,
    root: Path,
    summary: ClimatologySummary,
    *,
    facts: Mapping[str, Any],
    problems: Sequence[DataProblem],
    figures: Path | None = None,
) -> list[Path]:
    """Write the page, and its charts as PNG files to ``figures`` if it is given.

    Args:
        path: the page.
        spec: the dataset description.
        root: folder of the data.
        summary: of the climatology.
        facts: facts of the inspection by name.
        problems: of the inspection.
        figures: folder of the PNG files.

    Returns:
        The files that were written.

    Raises:
        ResultsError: the page cannot be written.
        OSError: a figure cannot be written.
    """
    styles = threshold_line_styles(summary)
    legend = line_legend(styles)
    groups: dict[str, list[Chart]] = {
        "months": month_charts(summary),
        "maps": map_charts(summary),
        "days": day_charts(summary),
        "persistence": persistence_charts(summary, styles),
    }
    # 1. Page
    body = [
        text("h1", f"Data: {spec.title}"),
        definitions(_about(spec, root, facts)),
        links(
            [
                ("findings", "Findings"), ("counts", "Counts"), ("climatology", "Climatology"), ("maps", "Maps"),
                ("days", "Changes in time"), ("persistence", "Persistence"),
            ],
            label="Contents",
        ),
        text("h2", "Findings", identifier="findings"),
        bullets(summary.findings),
        _problems(problems),
        text("h2", "Counts", identifier="counts"),
        table(event_table(summary)),
        table(split_table(summary)),
        text("h2", "Climatology", identifier="climatology"),
        chart_grid(
            groups["months"],
            caption="By month of the year and by hour, over all events of the data set. A data set of chosen events is "
            "wetter than the climate.",
            legend=legend,
        ),
        table(month_table(summary)),
        text("h2", "Maps", identifier="maps"),
        chart_grid(
            groups["maps"],
            caption="Row 0 is north. Color scales end at the 99.5th percentile. Suspicious pixels have echoes three "
            "times as often, or less than a third as often, as the median of the block of 24 x 24 pixels around them.",
        ),
        text("h2", "Changes in time", identifier="days"),
        chart_grid(
            groups["days"],
            caption="Days with data. Marked changes: medians of up to 30 days before and after differ by more than "
            "1.5 dB (wet pixels, at or above the first threshold) or 2 % (missing pixels), and by 6 standard errors.",
        ),
        text("h2", "Persistence", identifier="persistence"),
        chart_grid(
            groups["persistence"],
            caption="CSI of persistence, the last frame as the forecast, of up to 4 pairs of frames per event and lead "
            "time: what a model must exceed.",
            legend=legend,
        ) if groups["persistence"] else text("p", "Events have one frame."),
    ]  # fmt: skip
    written = [write_page(path, f"Data {spec.name}", body)]
    # 2. Figures
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for chart in (chart for charts in groups.values() for chart in charts):
            target = (
                figures / f"{file_stem(chart.title.partition(',')[0].partition(' (')[0].replace(' ', '-').lower())}.png"
            )
            if chart in groups["persistence"]:
                target = figures / f"{file_stem(chart.title.replace(', ', '-').replace(' ', '-').lower())}.png"
            with atomic_file(target) as temporary:
                temporary.write_bytes(chart.png)
            written.append(target)
    return written


def _about(spec: DatasetSpec, root: Path, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    about = [
        ("Folder", str(root)),
        ("Description", f"{spec.name}: {spec.quantity} in {spec.encoding.unit}, every {spec.step_minutes:g} minutes"),
        ("Events", f"{facts.get('events', UNDEFINED)} of {facts.get('frames', UNDEFINED)} frames"),
        ("Pixels", f"{' x '.join(map(str, facts.get('grid', [])))} of {spec.grid.spacing_km:g} km"),
        ("License", spec.license),
        ("Citation", spec.citation),
    ]
    attribution = getattr(spec, "attribution", "")
    return [*about, ("Attribution", attribution)] if attribution else about


def _problems(problems: Sequence[DataProblem]) -> str:
    if not problems:
        return text("p", "The inspection found no problem.")
    lines = [str(problem) for problem in problems[:_SHOWN_PROBLEMS]]
    more = [f"{len(problems) - len(lines)} more"] if len(problems) > len(lines) else []
    return collapsible(f"Problems: {len(problems)}", bullets([*lines, *more]), is_open=len(problems) <= 10)


def event_table(summary: ClimatologySummary) -> Table:
    """Return the number of events by year and split."""
    splits = list(summary.splits)
    rows = tuple(
        Row(year, (*(f"{by_split.get(split, 0)}" for split in splits), f"{sum(by_split.values())}"))
        for year, by_split in summary.events.items()
    )
    return Table(caption="Events by year and split.", columns=("Year", *splits, "All"), groups=(Group("", rows),))


def split_table(summary: ClimatologySummary) -> Table:
    """Return mean rate, wet shares, percentiles and missing share by split."""
    rows = tuple(
        Row(split, (*_cells(row), *(_number(value) for value in row["percentiles"])))
        for split, row in summary.splits.items()
    )
    unit = summary.rate_unit
    return Table(
        caption="Pixels by split: shares are of valid pixels; percentiles are of wet pixels, at or above the first "
        "threshold.",
        columns=("Split", *_columns(summary), *(f"{label} of wet, {unit}" for label in ("Median", "95 %", "99 %"))),
        groups=(Group("", rows),),
    )


def month_table(summary: ClimatologySummary) -> Table:
    """Return mean rate, wet shares and missing share by month of the year."""
    rows = tuple(Row(_MONTHS[month - 1], _cells(row)) for month, row in summary.months.items())
    return Table(caption="By month of the year.", columns=("Month", *_columns(summary)), groups=(Group("", rows),))


def _columns(summary: ClimatologySummary) -> tuple[str, ...]:
    labels = (f"≥ {with_unit(label, summary.threshold_unit)}" for label in summary.thresholds)
    return (f"Mean, {summary.rate_unit}", *labels, "Missing")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return _number(row["mean_rate"]), *map(_percent, row["wet_shares"]), _percent(row["missing_share"])


def _number(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.3g}"


def _percent(share: float) -> str:
    return UNDEFINED if math.isnan(share) else f"{100 * share:.3g} %"
