"""The HTML page of ``simcast score-issued``: operation by month, scores by month, lead time and threshold."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .colors import LineStyle, line_styles
from .findings_text import with_unit
from .html_markup import bullets, chart_grid, collapsible, definitions, line_legend, links, table, text
from .html_report import write_page
from .issued_charts import lead_chart, missing_chart, month_chart, reliability_chart, sharpness_chart, threshold_styles
from .score_tables import UNDEFINED, Group, Row, Table

_ALL = "all"
FORECAST = "forecast"
_METRICS = {"csi": "CSI", "pod": "POD", "far": "FAR", "frequency_bias": "Frequency bias"}
_FIELD_METRICS = {"csi/mean": "Mean CSI", "mae": "MAE", "mse": "MSE", "crps": "CRPS"}
_TERMS = [
    ("Issue time", "time of the last radar frame from which a forecast is made."),
    (
        "Verified",
        "forecasts for which the frame of at least one valid time came. Valid times without a frame do not count.",
    ),
    ("Latency", "time from the issue time to the writing of the forecast file."),
    ("Fallback", "a forecast that replaces that of the model; the file has the attribute `simcast_fallback`."),
    ("CSI", "critical success index: hits / (hits + misses + false alarms). 1 is perfect."),
    (
        "MAE, MSE, CRPS",
        "errors of the [0, 1] field, the pixel value of the encoding divided by 255, as in evaluations.",
    ),
    ("95 % interval", "range of a score when the days are resampled; there is none for a single day."),
    (
        "Reliability",
        "how often the threshold was reached where a probability was issued; on the diagonal both agree.",
    ),
    (UNDEFINED, "an undefined value."),
]


def write_issued_page(result: Mapping[str, Any], folder: Path) -> Path:
    """Write ``index.html`` from the result of :func:`~simcast_hpc.evaluation.issued.score_issued`; return its path.

    Raises:
        ResultsError: it cannot be written.
    """
    names = [series["name"] for series in result["series"]]
    first, last = (_short(result[key]) for key in ("first_issue", "last_issue"))
    total = result["operation"][_ALL]
    targets = [("operation", "Operation"), *((f"series-{k}", name) for k, name in enumerate(names, start=1))]
    body = [
        text("h1", "Scores of issued forecasts"),
        text(
            "p",
            f"{total['issued']} issue times from {first} to {last} UTC, verified against {result['frames']['times']} "
            f"radar frames that came. {len(names)} series of forecasts: each model and version is scored separately.",
        ),
        definitions([("Forecasts", result["products"]), ("Frames", ", ".join(result["radar"]))]),
        links([*targets, ("terms", "Glossary")], label="Contents"),
        text("h2", "Operation", identifier="operation"),
        table(operation_table(result)),
        _problems(result),
    ]
    for number, series in enumerate(result["series"], start=1):
        body += [text("h2", series["name"], identifier=f"series-{number}"), *_series(series)]
    body += [text("h2", "Glossary", identifier="terms"), f'<div class="terms">{definitions(_TERMS)}</div>']
    return write_page(folder / "index.html", "Issued forecasts", body)


def issued_table(result: Mapping[str, Any]) -> str:
    """Return the scores of all months as lines of text for a terminal."""
    lines = []
    for series in result["series"]:
        lines.append(f"{series['name']}: {series['dataset']}, {len(series['issues'])} forecasts")
        protocol = next(iter(series["protocols"]))
        for period, values in series["periods"].items():
            cells = [f"{name} {_number(one[protocol]['csi/mean'])}" for name, one in values["scores"].items()]
            mean_csi = f"mean CSI: {', '.join(cells)}" if cells else "no frame came"
            lines.append(f"  {period}: {values['verified']} of {values['issues']} verified; {mean_csi}")
    total = result["operation"][_ALL]
    lines.append(
        f"operation: {total['missing']} of {total['expected']} issue times missing ({total['missing_with_frame']} with "
        f"a frame), {total['fallbacks']} fallbacks, median latency {_seconds(total['latency']['p50'])}"
    )
    lines += [f"skipped: {reason}" for reason in result["skipped"]]
    return "\n".join(lines)


def operation_table(result: Mapping[str, Any]) -> Table:
    """Return expected and missing issue times, fallbacks and latency, one row per month."""
    rows = []
    for period, log in result["operation"].items():
        share = log["fallback_share"]
        cells = [f"{log[key]}" for key in ("expected", "issued", "missing", "missing_with_frame")]
        cells.append(UNDEFINED if share is None else f"{100 * share:.1f} %")
        cells += [_seconds(log["latency"][key]) for key in ("p50", "p90", "p99", "max")]
        rows.append(Row(period, tuple(cells)))
    return Table(
        caption=f"Issue times expected every {result['cadence_minutes']:g} minutes, and latency of the forecast files. "
        "A missing forecast whose frame came is a failure of the forecast and not of the feed.",
        columns=(
            "Month", "Expected", "Issued", "Missing", "of these with a frame", "Fallbacks", "Latency, median", "90 %",
            "99 %", "Longest",
        ),
        groups=(Group("", tuple(rows)),),
    )  # fmt: skip


def _problems(result: Mapping[str, Any]) -> str:
    parts = []
    missing = [time for log in result["operation"].values() for time in log["missing_times"]]
    if missing:
        parts.append(collapsible(f"Missing issue times: {len(missing)}", text("p", ", ".join(missing))))
    if result["skipped"]:
        parts.append(collapsible(f"Skipped files: {len(result['skipped'])}", bullets(result["skipped"])))
    if problems := result["frames"]["problems"]:
        parts.append(collapsible(f"Unreadable frames: {len(problems)}", bullets(problems)))
    return "\n".join(parts)


def _series(series: Mapping[str, Any]) -> list[str]:
    """Return the elements of the section of a series."""
    whole, protocol = series["periods"][_ALL], next(iter(series["protocols"]))
    # 1. Description and tables
    about = [(name, value) for name, value in series["method"].items() if value]
    about += [
        ("data", f"{series['dataset']}, {series['quantity']} in {series['unit']}"),
        ("pixels", f"{series['grid'][0]} x {series['grid'][1]} of {series['spacing_km']:.3g} km"),
        ("license", series["license"]),
    ]
    about += [("attribution", series["attribution"])] if series["attribution"] else []
    parts = [collapsible("Attributes of the forecasts", definitions(about))]
    parts.append(table(month_table(series, protocol)))
    if not whole["scores"] and not whole["reliability"]:
        return [*parts, text("p", "No frame of a valid time came, so there is no score.")]
    # 2. Curves
    if whole["scores"]:
        styles = _styles(whole["scores"])
        labels, unit = series["protocols"][protocol]["labels"], series["threshold_unit"]
        curves = [
            lead_chart(series, f"csi/{label}", protocol, styles, title=f"≥ {with_unit(label, unit)}", up="CSI")
            for label in labels
        ]
        parts.append(chart_grid(curves, caption="CSI by lead time, all months.", legend=line_legend(styles)))
        others = [
            lead_chart(series, f"frequency_bias/{labels[0]}", protocol, styles, title="Frequency bias", reference=1.0),
            lead_chart(series, "mae", protocol, styles, title="MAE"),
            lead_chart(series, "crps", protocol, styles, title="CRPS (MAE of single forecasts)"),
            missing_chart(series),
        ]
        others += _fss_charts(series, styles)
        caption = f"Frequency bias at the lowest threshold, errors, missing frames and FSS by lead time. {protocol}."
        parts.append(chart_grid(others, caption=caption, legend=line_legend(styles)))
        if len(series["periods"]) > 2:
            months = [
                month_chart(series, key, protocol, styles, title=_FIELD_METRICS[key]) for key in ("csi/mean", "mae")
            ]
            parts.append(
                chart_grid(months, caption="By month, with 95 % intervals over days.", legend=line_legend(styles))
            )
        parts += [table(threshold_table(series, name)) for name in series["protocols"]]
    # 3. Probabilities
    if whole["reliability"]:
        shades = threshold_styles(whole["reliability"], series["unit"])
        charts = [reliability_chart(whole["reliability"], shades), sharpness_chart(whole["reliability"], shades)]
        caption = "Reliability of the issued probabilities and how often each was issued, all lead times and months."
        parts.append(chart_grid(charts, caption=caption, legend=line_legend(shades)))
        parts.append(table(probability_table(series)))
    return parts


def _fss_charts(series: Mapping[str, Any], styles: Mapping[str, LineStyle]) -> list[Any]:
    for protocol, about in series["protocols"].items():
        keys = next(iter(series["periods"][_ALL]["scores"].values()))[protocol]
        scales = list(dict.fromkeys(key.split("/")[1] for key in keys if key.startswith("fss/")))
        if scales:
            label = about["labels"][len(about["labels"]) // 2]
            unit = with_unit(label, series["threshold_unit"])
            return [
                lead_chart(series, f"fss/{km}/{label}", protocol, styles, title=f"FSS, {km} km, {unit}")
                for km in scales
            ]
    return []


def month_table(series: Mapping[str, Any], protocol: str) -> Table:
    """Return numbers of forecasts and means over thresholds by month, one group per month."""
    groups = []
    for period, values in series["periods"].items():
        heading = f"{period}: {values['verified']} of {values['issues']} forecasts verified, days: {values['days']}"
        rows = tuple(
            Row(
                f"{name}, {values['counted'][name]} forecasts",
                tuple(_bounded(values, name, protocol, key) for key in _FIELD_METRICS),
            )
            for name in values["scores"]
        )
        groups.append(Group(heading, rows))
    over = ", ".join(series["supported_thresholds"]) or "all thresholds"
    return Table(
        caption=f"Scores by month under protocol {protocol}, hash {series['protocols'][protocol]['hash']}. Mean CSI is "
        f"over the thresholds {over} {series['threshold_unit']}. In brackets 95 % intervals over days.",
        columns=("Forecast", *_FIELD_METRICS.values()),
        groups=tuple(groups),
    )


def threshold_table(series: Mapping[str, Any], protocol: str) -> Table:
    """Return CSI, POD, FAR and frequency bias by threshold and forecast, of all months."""
    values, about = series["periods"][_ALL], series["protocols"][protocol]
    groups = tuple(
        Group(
            f"≥ {with_unit(label, series['threshold_unit'])}",
            tuple(
                Row(name, tuple(_bounded(values, name, protocol, f"{metric}/{label}") for metric in _METRICS))
                for name in values["scores"]
            ),
        )
        for label in about["labels"]
    )
    return Table(
        caption=f"Scores by threshold, all months, under protocol {protocol}, hash {about['hash']}. {about['source']}.",
        columns=("Forecast", *_METRICS.values()),
        groups=groups,
    )


def probability_table(series: Mapping[str, Any]) -> Table:
    """Return the Brier score of the issued probabilities by threshold, with that of the observed frequency."""
    rows = []
    for label, curve in series["periods"][_ALL]["reliability"].items():
        rate, score = curve["base_rate"], curve["brier"]
        reference = rate * (1 - rate)
        skill = 1 - score / reference if reference > 0 else math.nan
        rows.append(
            Row(f"≥ {with_unit(label, series['unit'])}", tuple(_number(one, 5) for one in (score, rate, skill)))
        )
    return Table(
        caption="Brier score of the issued probabilities (0 is perfect), observed frequency of the event, and Brier "
        "skill relative to always issuing that frequency (1 is perfect, 0 no skill).",
        columns=("Threshold", "Brier score", "Observed frequency", "Brier skill"),
        groups=(Group("", tuple(rows)),),
    )


def _styles(scores: Mapping[str, Any]) -> dict[str, LineStyle]:
    names = tuple(scores)
    known = line_styles(tuple("student" if name == FORECAST else name for name in names))
    return {name: known["student" if name == FORECAST else name] for name in names}


def _bounded(values: Mapping[str, Any], name: str, protocol: str, key: str) -> str:
    places = {"mse": 5, "mae": 4, "crps": 4}.get(key, 3)
    value = _number(values["scores"][name][protocol].get(key), places)
    bounds = values["intervals"].get(name, {}).get(protocol, {}).get(key)
    if bounds is None or not all(_is_finite(bound) for bound in bounds):
        return value
    return f"{value} [{', '.join(_number(bound, places) for bound in bounds)}]"


def _number(value: float | None, places: int = 3) -> str:
    return f"{value:.{places}f}" if _is_finite(value) else UNDEFINED


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _seconds(value: float | None) -> str:
    if value is None:
        return UNDEFINED
    for limit, size, unit in ((600, 1, "s"), (36_000, 60, "min"), (172_800, 3600, "h")):
        if abs(value) < limit:
            return f"{value / size:.0f} {unit}"
    return f"{value / 86_400:,.0f} days"  # forecasts that were computed from an archive


def _short(time: str) -> str:
    return time[:16].replace("T", " ")
