"""Scores of a series of issued forecasts by month, with intervals over days, and their CSV files."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from simcast_hpc.radar.frame_encoding import ModelEncoding
from simcast_hpc.verification.bootstrap import resample
from simcast_hpc.verification.diagram_statistics import brier
from simcast_hpc.verification.protocols import ScoreProtocol
from simcast_hpc.verification.scores import scores, supported_thresholds
from simcast_hpc.verification.sufficient_statistics import Statistics, merge

from .count_cache import IssueCounts
from .issue_counts import FORECAST
from .issue_log import ALL, Issue, month_of
from .issued_files import IssuedForecast

LEVEL = 0.95
_MIN_PIXELS, _MIN_DAYS = 1000, 5
# Statistics of single forecasts are added up in groups of this size, so that memory does not grow with their number.
_PENDING = 64


@dataclass
class Period:
    """Sums over the forecasts of one month."""

    issues: int = 0
    verified: int = 0
    expected_frames: np.ndarray | None = None
    missing_frames: np.ndarray | None = None
    statistics: dict[tuple[str, str], list[Statistics]] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    probability: list[np.ndarray] | None = None

    def add(self, leads: int, counts: IssueCounts | None) -> None:
        """Add the counts of a forecast; None if its file was removed."""
        self.issues += 1
        arrived = np.zeros(leads, bool) if counts is None else counts.arrived
        before = np.zeros(leads, np.int64) if self.missing_frames is None else self.missing_frames
        self.missing_frames = before + ~arrived
        if counts is None or not arrived.any():
            return
        self.verified += 1
        for name, by_hash in counts.statistics.items():
            self.counted[name] = self.counted.get(name, 0) + 1
            for counting_hash, one in by_hash.items():
                waiting = self.statistics.setdefault((name, counting_hash), [])
                waiting.append(one)
                if len(waiting) >= _PENDING:
                    waiting[:] = [merge(waiting)]
        if counts.probability_forecasts is not None and counts.probability_events is not None:
            own = [counts.probability_forecasts, counts.probability_events]
            self.probability = own if self.probability is None else [
                total + part for total, part in zip(self.probability, own, strict=True)
            ]  # fmt: skip

    def absorb(self, other: "Period") -> None:
        """Add the sums of another rank or month."""
        self.issues += other.issues
        self.verified += other.verified
        for name, number in other.counted.items():
            self.counted[name] = self.counted.get(name, 0) + number
        for key, waiting in other.statistics.items():
            self.statistics[key] = [*self.statistics.get(key, ()), *waiting]
        if other.missing_frames is not None:
            before = 0 if self.missing_frames is None else self.missing_frames
            self.missing_frames = before + other.missing_frames
        if other.probability is not None:
            own = other.probability
            self.probability = own if self.probability is None else [
                total + part for total, part in zip(self.probability, own, strict=True)
            ]  # fmt: skip

    def merged(self) -> dict[str, dict[str, Statistics]]:
        """Return the statistics by name and counting hash, one row per day."""
        result: dict[str, dict[str, Statistics]] = {}
        for (name, counting_hash), waiting in self.statistics.items():
            result.setdefault(name, {})[counting_hash] = merge(waiting)
        return result


@dataclass
class Series:
    """Forecasts of one model, version and form: their attributes, encoding, protocols, and sums by month."""

    method: Mapping[str, str]
    code: ModelEncoding
    protocols: Sequence[ScoreProtocol]
    example: IssuedForecast
    months: dict[str, Period] = field(default_factory=dict)
    issues: list[dict[str, Any]] = field(default_factory=list)

    def add(self, issue: Issue, counts: IssueCounts | None) -> None:
        """Add the counts of a forecast."""
        forecast = issue.forecast
        leads = len(forecast.leads_minutes)
        self.months.setdefault(month_of(forecast.issue), Period()).add(leads, counts)
        created = forecast.created or issue.written
        self.issues.append({
            "issue": forecast.issue.isoformat(),
            "file": forecast.path.name,
            "created": created.isoformat(),
            "latency_seconds": issue.latency_seconds,
            "fallback": forecast.fallback,
            "lead_times": leads,
            "frames_missing": leads if counts is None else int((~counts.arrived).sum()),
            "status": "removed" if counts is None else "scored" if counts.arrived.any() else "no frame yet",
        })  # fmt: skip

    def absorb(self, other: "Series") -> None:
        """Add the forecasts of another rank."""
        for month, period in other.months.items():
            self.months.setdefault(month, Period()).absorb(period)
        self.issues = sorted([*self.issues, *other.issues], key=lambda issue: issue["issue"])


def series_result(series: Series, *, name: str, draws: int) -> dict[str, Any]:
    """Return the scores of a series by month and for all months as nested plain data.

    Scores have the keys of :func:`~simcast_hpc.verification.scores.scores` with those by lead time; means over
    thresholds are over those that were observed in 1000 pixels and on 5 days (or on all days, if there are fewer) of
    the whole period. Intervals are 95 % percentile intervals over days, absent for a single day.
    """
    periods = dict(sorted(series.months.items())) | {ALL: Period()}
    for period in series.months.values():
        periods[ALL].absorb(period)
    merged = {label: period.merged() for label, period in periods.items()}
    supported = _supported(merged[ALL], series.protocols)
    spec = series.code.spec
    return {
        "name": name,
        "method": dict(series.method),
        "dataset": spec.name,
        "quantity": spec.quantity,
        "license": series.example.attributes.get("license", spec.license),
        "attribution": series.example.attributes.get("attribution", ""),
        "unit": series.code.unit,
        "threshold_unit": series.protocols[0].unit,
        "spacing_km": series.code.spacing_km,
        "grid": [len(series.example.grid.y), len(series.example.grid.x)],
        "leads_minutes": list(series.example.leads_minutes),
        "supported_thresholds": list(supported),
        "protocols": {
            one.name: {
                "hash": one.hash, "labels": list(one.labels), "aggregation": one.aggregation, "source": one.source,
                "codes": list(one.thresholds),
            }
            for one in series.protocols
        },
        "issues": series.issues,
        "periods": {
            label: _period_result(period, merged[label], series, supported, draws) for label, period in periods.items()
        },
    }  # fmt: skip


def _supported(
    statistics: Mapping[str, Mapping[str, Statistics]], protocols: Sequence[ScoreProtocol]
) -> tuple[str, ...]:
    own = statistics.get(FORECAST) or next(iter(statistics.values()), None)
    if own is None:
        return ()
    first = own[protocols[0].counting_hash]
    return supported_thresholds(first, min_pixels=_MIN_PIXELS, min_events=min(_MIN_DAYS, len(first.events)))


def _period_result(
    period: Period,
    statistics: Mapping[str, Mapping[str, Statistics]],
    series: Series,
    supported: Sequence[str],
    draws: int,
) -> dict[str, Any]:
    scored: dict[str, Any] = {}
    bounds: dict[str, Any] = {}
    for name, by_hash in statistics.items():
        for protocol in series.protocols:
            one = by_hash[protocol.counting_hash].under(protocol)
            mean_over = [label for label in supported if label in protocol.labels] or None
            scored.setdefault(name, {})[protocol.name] = scores(one, per_lead=True, mean_over=mean_over)
            if draws > 0 and len(one.events) > 1:
                resampled = resample(one, draws=draws, mean_over=mean_over, per_lead=True)
                bounds.setdefault(name, {})[protocol.name] = {
                    key: [interval.low, interval.high] for key, interval in resampled.intervals(level=LEVEL).items()
                }
    days = next((len(one.events) for by_hash in statistics.values() for one in by_hash.values()), 0)
    missing = period.missing_frames
    return {
        "issues": period.issues,
        "verified": period.verified,
        "days": days,
        "frames_missing": [] if missing is None else missing.tolist(),
        "counted": period.counted,
        "scores": scored,
        "intervals": bounds,
        "reliability": {} if period.probability is None else _reliability(period.probability, series),
    }


def _reliability(probability: Sequence[np.ndarray], series: Series) -> dict[str, Any]:
    """Return the reliability diagram and the Brier score of the issued probabilities, over all lead times."""
    forecasts, events = (torch.from_numpy(one) for one in probability)
    result = {}
    for row, threshold in enumerate(series.example.thresholds):
        issued, observed = forecasts[row].sum(0), events[row].sum(0)
        result[f"{threshold:.6g}"] = {
            "probability": np.linspace(0, 1, len(issued)).tolist(),
            "observed_frequency": (observed / issued).tolist(),
            "forecasts": issued.tolist(),
            "brier": float(brier(issued, observed)),
            "base_rate": float(observed.sum() / issued.sum()),
            "brier_by_lead": brier(forecasts[row], events[row]).tolist(),
        }
    return result


def scores_csv(result: Mapping[str, Any]) -> str:
    """Return every score as CSV: one row per series, period, forecast or baseline, protocol, score and lead time."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    where = ("series", "period", "forecast", "protocol", "hash", "score", "threshold", "lead_minutes")
    writer.writerow([*where, "value", "low", "high"])
    for series in result["series"]:
        for period, values in series["periods"].items():
            start = [series["name"], period]
            for name, by_protocol in values["scores"].items():
                for protocol, by_key in by_protocol.items():
                    digest = series["protocols"][protocol]["hash"]
                    bounds = values["intervals"].get(name, {}).get(protocol, {})
                    for key, value in by_key.items():
                        where = _split_key(key, series["leads_minutes"])
                        row = [_cell(one) for one in (value, *bounds.get(key, ("", "")))]
                        writer.writerow([*start, name, protocol, digest, *where, *row])
            for label, curve in values["reliability"].items():
                writer.writerow([*start, FORECAST, "issued probabilities", "", "brier", label, "",
                                 _cell(curve["brier"]), "", ""])  # fmt: skip
    return text.getvalue()


def issues_csv(result: Mapping[str, Any]) -> str:
    """Return the issued and the missing forecasts as CSV, one row each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("issue", "file", "created", "latency_seconds", "fallback", "lead_times", "frames_missing", "status")
    writer.writerow(["series", *columns])
    for series in result["series"]:
        writer.writerows([[series["name"], *(issue[column] for column in columns)] for issue in series["issues"]])
    for period, log in result["operation"].items():
        if period != ALL:
            writer.writerows([["", time, "", "", "", "", "", "", "missing"] for time in log["missing_times"]])
    return text.getvalue()


def _split_key(key: str, leads_minutes: Sequence[float]) -> tuple[str, str, str]:
    """Return score, threshold and lead time of a key such as ``csi/2/lead/3``."""
    base, is_lead, number = key.partition("/lead/")
    lead = f"{leads_minutes[int(number) - 1]:g}" if is_lead else ""
    score, _, threshold = base.rpartition("/")
    return (score, threshold, lead) if score else (base, "", lead)


def _cell(value: Any) -> str:
    return "" if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else f"{value:.12g}"
