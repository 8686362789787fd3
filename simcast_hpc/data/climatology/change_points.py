"""Find changes in a daily series that are larger than its weather: another calibration, processing or radar."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Days before and after a change that are compared; fewer than the minimum on one side are not.
_WINDOW, _MIN_DAYS = 30, 8
_MIN_Z = 6.0


@dataclass(frozen=True)
class Change:
    """A change at a date: medians of the days before and after it, and their difference in robust standard errors."""

    date: str
    before: float
    after: float
    z: float


def find_changes(
    dates: Sequence[str], values: Sequence[float], *, smallest: float, window: int = _WINDOW
) -> list[Change]:
    """Return the changes of a daily series, ascending by date.

    For every date the medians of up to ``window`` days before and after it are compared; the spread is the median
    absolute deviation from these medians. Dates whose difference is at least ``smallest`` and 6 standard errors are
    changes; of neighboring ones the largest is returned.

    Args:
        dates: ISO dates, ascending; days without data are absent.
        values: one value per date; NaN is ignored.
        smallest: smallest difference that matters, in the unit of the values.
        window: number of days on each side.
    """
    known = [(date, value) for date, value in zip(dates, values, strict=True) if np.isfinite(value)]
    series = np.array([value for _, value in known])
    z, before, after = (np.zeros(len(series)) for _ in range(3))
    for day in range(_MIN_DAYS, len(series) - _MIN_DAYS + 1):
        left, right = series[max(0, day - window) : day], series[day : day + window]
        before[day], after[day] = np.median(left), np.median(right)
        spread = 1.4826 * np.median(np.abs(np.concatenate([left - before[day], right - after[day]])))
        error = 1.2533 * max(spread, 1e-3 * smallest) * np.sqrt(1 / len(left) + 1 / len(right))
        if abs(after[day] - before[day]) >= smallest:
            z[day] = abs(after[day] - before[day]) / error
    changes = []
    while len(z) and z.max() >= _MIN_Z:
        day = int(z.argmax())
        changes.append(Change(known[day][0], float(before[day]), float(after[day]), float(z[day])))
        z[max(0, day - window) : day + window] = 0
    return sorted(changes, key=lambda change: change.date)
