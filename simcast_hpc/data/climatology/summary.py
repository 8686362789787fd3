"""Summarize a climatology: tables and series as plain data, maps of coverage and clutter, and findings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.sampling_statistics import rates

from .accumulate import Climatology
from .change_points import Change, find_changes

PERCENTILES = (50.0, 95.0, 99.0)
# A change of the wet pixels' median that is reported, in dB of the rate, and of the missing share.
_SMALLEST_DB, _SMALLEST_SHARE = 1.5, 0.02
_MIN_WET_PIXELS = 200
# A pixel whose frequency of echo differs so much from the median around it is suspicious.
_CLUTTER_RATIO, _BLOCKED_RATIO, _BLOCK = 3.0, 1 / 3, 24
_MIN_FRAMES, _MIN_FREQUENCY = 500, 0.02


@dataclass(frozen=True)
class ClimatologySummary:
    """What a report shows of a climatology.

    Attributes:
        thresholds: labels of the thresholds, in ``threshold_unit``.
        rate_unit: unit of rates: mm/h, or that of the encoding where no rate is defined.
        months: by month of the year with data, 1 to 12: ``pixels mean_rate wet_shares missing_share``.
        hours: the same by UTC hour, 0 to 23.
        month_hour_rate: mean rate, ``[12, 24]``, NaN without data.
        splits: the same by split, with ``percentiles`` of the wet pixels.
        days: by date: ``frames mean_rate wet_median_db missing_share repeated``.
        events: number of events by year and split.
        persistence: by split and lead time in minutes: CSI by threshold and ``mae``.
        maps: ``coverage`` (share of valid frames), ``echo`` (share of valid frames with an echo), ``wet``, ``rate``
            (mean over valid frames), float32 ``[H, W]``, NaN where never valid; ``suspicious``: 1 clutter, 2 blocked.
        calibration_changes: changes of the median of wet pixels, dB.
        missing_changes: changes of the missing share.
        findings: sentences.
    """

    thresholds: tuple[str, ...]
    threshold_unit: str
    rate_unit: str
    months: Mapping[int, Mapping[str, Any]]
    hours: Mapping[int, Mapping[str, Any]]
    month_hour_rate: np.ndarray
    splits: Mapping[str, Mapping[str, Any]]
    days: Mapping[str, Mapping[str, Any]]
    events: Mapping[str, Mapping[str, int]]
    persistence: Mapping[str, Mapping[float, Mapping[str, Any]]]
    maps: Mapping[str, np.ndarray]
    calibration_changes: tuple[Change, ...]
    missing_changes: tuple[Change, ...]
    findings: tuple[str, ...]


def summarize(climatology: Climatology) -> ClimatologySummary:
    """Return the summary of a climatology with at least one event."""
    spec = climatology.spec
    table = _Histograms(climatology)
    # 1. Tables by time and split
    by_hour = climatology.by_month_and_hour.sum(0)
    by_month = climatology.by_month_and_hour.sum(1)
    months = {number + 1: table.row(one) for number, one in enumerate(by_month) if one.any()}
    hours = {number: table.row(one) for number, one in enumerate(by_hour) if one.any()}
    splits = {
        split: table.row(one) | {"percentiles": table.percentiles(one)} for split, one in climatology.by_split.items()
    }
    days = {
        day: table.row(one)
        | {
            "frames": climatology.frames_by_day[day],
            "wet_median_db": table.wet_median_db(one),
            "repeated": climatology.repeated_frames[day],
        }
        for day, one in sorted(climatology.by_day.items())
    }
    years: dict[str, dict[str, int]] = {}
    for (split, year), count in sorted(climatology.events.items()):
        years.setdefault(year, {})[split] = count
    # 2. Changes and maps
    wet = [day["wet_median_db"] for day in days.values()]
    missing = [day["missing_share"] for day in days.values()]
    calibration = find_changes(list(days), wet, smallest=_SMALLEST_DB)
    coverage = find_changes(list(days), missing, smallest=_SMALLEST_SHARE)
    maps = _maps(climatology)
    # 3. Persistence
    persistence = {
        split: {
            lead * spec.step_minutes: {"csi": scores, "mae": counts.mae().get(lead)}
            for lead, scores in counts.csi().items()
        }
        for split, counts in climatology.persistence.items()
    }
    return ClimatologySummary(
        spec.threshold_labels(),
        spec.thresholds.unit,
        "mm/h" if spec.encoding.unit.lower() in ("mm/h", "dbz") else spec.encoding.unit,
        months,
        hours,
        table.mean_rates(climatology.by_month_and_hour),
        splits,
        days,
        years,
        persistence,
        maps,
        tuple(calibration),
        tuple(coverage),
        tuple(_findings(climatology, days, maps, calibration, coverage)),
    )


class _Histograms:
    """Statistics of histograms of codes."""

    def __init__(self, climatology: Climatology):
        spec = climatology.spec
        self._rates = rates(spec)
        codes = np.arange(MISSING_CODE)
        self._wet = np.stack([codes >= code for code in spec.threshold_codes()])
        with np.errstate(divide="ignore"):
            self._decibels = 10 * np.log10(self._rates)

    def row(self, histogram: np.ndarray) -> dict[str, Any]:
        """Return the statistics of a histogram ``[256]``."""
        valid, total = int(histogram[:MISSING_CODE].sum()), int(histogram.sum())
        known = histogram[:MISSING_CODE]
        return {
            "pixels": total,
            "mean_rate": float(known @ self._rates) / valid if valid else np.nan,
            "wet_shares": [float(known[wet].sum()) / valid if valid else np.nan for wet in self._wet],
            "missing_share": 1 - valid / total if total else np.nan,
        }

    def mean_rates(self, histograms: np.ndarray) -> np.ndarray:
        """Return the mean rates of histograms ``[..., 256]``, NaN without a valid pixel."""
        known = histograms[..., :MISSING_CODE]
        with np.errstate(invalid="ignore", divide="ignore"):
            return known @ self._rates / known.sum(-1)

    def percentiles(self, histogram: np.ndarray) -> list[float]:
        """Return percentiles of the rate of pixels at or above the first threshold; NaN without one."""
        return [self._quantile(histogram, one / 100) for one in PERCENTILES]

    def wet_median_db(self, histogram: np.ndarray) -> float:
        """Return the median of pixels at or above the first threshold in dB of the rate, NaN for less than 200."""
        if histogram[:MISSING_CODE][self._wet[0]].sum() < _MIN_WET_PIXELS:
            return np.nan
        rate = self._quantile(histogram, 0.5)
        return float(10 * np.log10(rate)) if rate > 0 else np.nan

    def _quantile(self, histogram: np.ndarray, share: float) -> float:
        """Return a quantile of the wet pixels, interpolated within the code that contains it."""
        wet = np.where(self._wet[0], histogram[:MISSING_CODE], 0)
        total = wet.sum()
        if not total:
            return np.nan
        below = wet.cumsum()
        code = int(np.searchsorted(below, share * total))
        inside = (share * total - (below[code] - wet[code])) / max(wet[code], 1) - 0.5
        return float(np.interp(code + inside, np.arange(MISSING_CODE), self._rates))


def _maps(climatology: Climatology) -> dict[str, np.ndarray]:
    sums = climatology.maps
    with np.errstate(invalid="ignore", divide="ignore"):
        maps = {
            "coverage": np.where(sums.frames > 0, sums.valid / np.maximum(sums.frames, 1), np.nan),
            "echo": sums.echo / sums.valid,
            "wet": sums.wet / sums.valid,
            "rate": sums.rate / sums.valid,
        }
    found = {name: one.astype(np.float32) for name, one in maps.items()}
    return found | {"suspicious": suspicious_pixels(found["echo"], sums.valid)}


def suspicious_pixels(echo: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return 1 where echoes are far more frequent than around a pixel, 2 where far less, else 0, uint8 ``[H, W]``.

    The reference is the median of the valid pixels of the block of 24 x 24 pixels around it, so that clutter that
    covers less than half of a block is found. Pixels with fewer than 500 valid frames are 0.

    Args:
        echo: share of valid frames with an echo, NaN where never valid.
        valid: number of valid frames.
    """
    result = np.zeros(echo.shape, np.uint8)
    for row in range(0, echo.shape[0], _BLOCK):
        for column in range(0, echo.shape[1], _BLOCK):
            place = slice(row, row + _BLOCK), slice(column, column + _BLOCK)
            block, enough = echo[place], valid[place] >= _MIN_FRAMES
            if not enough.any():
                continue
            usual = float(np.median(block[enough]))
            often = enough & (block > max(_CLUTTER_RATIO * usual, usual + 0.05))
            seldom = enough & (usual >= _MIN_FREQUENCY) & (block < _BLOCKED_RATIO * usual)
            result[place] = np.where(often, 1, np.where(seldom, 2, 0))
    return result


def _findings(
    climatology: Climatology,
    days: Mapping[str, Mapping[str, Any]],
    maps: Mapping[str, np.ndarray],
    calibration: list[Change],
    coverage: list[Change],
) -> list[str]:
    sentences = []
    for change in calibration:
        difference = change.after - change.before
        sentences.append(
            f"On {change.date} the median of wet pixels changed by {difference:+.1f} dB of the rate (from "
            f"{change.before:.1f} to {change.after:.1f} dB, {change.z:.0f} standard errors): check calibration, Z-R "
            "relation and processing around this date."
        )
    for change in coverage:
        sentences.append(
            f"On {change.date} the share of missing pixels changed from {100 * change.before:.1f} % to "
            f"{100 * change.after:.1f} %: a radar was added or removed, or the domain changed."
        )
    repeated = sum(climatology.repeated_frames.values())
    if repeated:
        worst = max(climatology.repeated_frames, key=lambda day: climatology.repeated_frames[day])
        sentences.append(
            f"{repeated} frames with echoes equal the frame before them, most on {worst}: the composite was repeated "
            "or the data of a radar did not change."
        )
    clutter, blocked = (int((maps["suspicious"] == kind).sum()) for kind in (1, 2))
    if clutter:
        sentences.append(f"{clutter} pixels have echoes far more often than the pixels around them: clutter.")
    if blocked:
        sentences.append(f"{blocked} pixels have echoes far less often than the pixels around them: blocked beams.")
    never = int((climatology.maps.valid == 0).sum())
    if never:
        share = 100 * never / climatology.maps.valid.size
        sentences.append(f"{share:.1f} % of the pixels of the domain are never valid: outside the coverage of radars.")
    dates = list(days)
    sentences.append(
        f"The frames are of {len(dates)} day{'s' if len(dates) > 1 else ''} from {dates[0]} to {dates[-1]} UTC."
    )
    return sentences
