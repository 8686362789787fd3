"""What was issued: missing issue times, latency and fallbacks, by month."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from .arrived_frames import ArrivedFrames
from .issued_files import IssuedForecast

ALL = "all"
_PERCENTILES = (50, 90, 95, 99)
_LISTED = 1000  # missing issue times that are listed one by one


@dataclass(frozen=True, eq=False)
class Issue:
    """One issued forecast: its metadata, and when its file was written."""

    forecast: IssuedForecast
    written: datetime

    @property
    def latency_seconds(self) -> float:
        """Seconds from the issue time to the writing of the forecast.

        The time is that in the attribute ``history``; without it, the modification time of the file.
        """
        return ((self.forecast.created or self.written) - self.forecast.issue).total_seconds()


def month_of(issue: datetime) -> str:
    """Return the UTC month of an issue time, such as ``2024-11``."""
    return f"{issue:%Y-%m}"


def operation_log(
    issues: Sequence[Issue],
    frames: ArrivedFrames,
    *,
    cadence_minutes: float,
    since: datetime | None,
    until: datetime | None,
) -> dict[str, dict[str, Any]]:
    """Return by month, and for all, the numbers of expected, issued and missing forecasts, latency and fallbacks.

    Expected are issue times at the cadence, in phase with most of the issue times, from the first to the last issue
    time or from ``since`` to ``until``, and not after the newest frame.

    Args:
        issues: issued forecasts of all series.
        frames: the frames that came: a missing forecast whose frame came is a failure of the forecast, not of the feed.
        cadence_minutes: expected minutes between issue times.
        since: first issue time; None for the first that exists.
        until: last issue time; None for the last that exists.

    Returns:
        By month ``expected issued missing missing_with_frame missing_times fallback_share latency``; ``latency`` has
        percentiles in seconds.
    """
    times = sorted({issue.forecast.issue for issue in issues})
    slots = expected_times(times, cadence_minutes, since=since, until=until, newest=max(frames.times, default=None))
    tolerance = timedelta(minutes=cadence_minutes / 4)
    missing = [slot for slot in slots if not _is_near(times, slot, tolerance)]
    months = sorted({month_of(time) for time in (*times, *slots)})
    log: dict[str, dict[str, Any]] = {}
    for period in (*months, ALL):
        own = [one for one in issues if period in (ALL, month_of(one.forecast.issue))]
        absent = [slot for slot in missing if period in (ALL, month_of(slot))]
        with_frame = [slot for slot in absent if frames.nearest(slot, tolerance) is not None]
        issued = len({one.forecast.issue for one in own})
        fallbacks = len({one.forecast.issue for one in own if one.forecast.fallback})
        log[period] = {
            "expected": sum(period in (ALL, month_of(slot)) for slot in slots),
            "issued": issued,
            "missing": len(absent),
            "missing_with_frame": len(with_frame),
            "missing_times": [f"{slot:%Y-%m-%dT%H:%MZ}" for slot in absent[:_LISTED]] if period != ALL else [],
            "fallbacks": fallbacks,
            "fallback_share": fallbacks / issued if issued else None,
            "latency": latency(own),
        }
    return log


def expected_times(
    times: Sequence[datetime],
    cadence_minutes: float,
    *,
    since: datetime | None,
    until: datetime | None,
    newest: datetime | None,
) -> list[datetime]:
    """Return the issue times that are expected at a cadence, ascending; empty without issue times."""
    if not times:
        return []
    cadence = 60.0 * cadence_minutes
    phases = np.array([time.timestamp() % cadence for time in times])
    values, counts = np.unique(np.round(phases, 3), return_counts=True)
    phase = float(values[counts.argmax()])
    first = (since or times[0]).timestamp()
    last = (until or times[-1]).timestamp()
    if newest is not None:
        last = min(last, max(newest.timestamp(), times[-1].timestamp()))
    start, end = math.ceil((first - phase) / cadence - 1e-6), math.floor((last - phase) / cadence + 1e-6)
    return [datetime.fromtimestamp(phase + cadence * number, UTC) for number in range(start, end + 1)]


def latency(issues: Sequence[Issue]) -> Mapping[str, float | int | None]:
    """Return the number of forecasts and percentiles of their latency in seconds."""
    seconds = np.array([one.latency_seconds for one in issues])
    if not len(seconds):
        return {"forecasts": 0} | {f"p{one}": None for one in _PERCENTILES} | {"max": None}
    values = np.percentile(seconds, _PERCENTILES)
    named = {f"p{one}": float(value) for one, value in zip(_PERCENTILES, values, strict=True)}
    return {"forecasts": len(seconds), **named, "max": float(seconds.max())}


def _is_near(times: Sequence[datetime], slot: datetime, tolerance: timedelta) -> bool:
    after = bisect.bisect(times, slot)
    return any(abs(one - slot) <= tolerance for one in times[max(after - 1, 0) : after + 1])
