"""Length of events, and splits by date, of an import without options."""

import re
from datetime import date, datetime, timedelta

from simcast_hpc.config import ConfigError

from .scan_frames import moment

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(d|h|min|m|)\s*")
_MINUTES = {"d": 1440.0, "h": 60.0, "min": 1.0, "m": 1.0, "": 1.0}
WINDOW_FRAMES = 18  # of configs/direct/own.yaml
_EVENT_FRAMES, _FEWEST_FRAMES = 48, 24
_WANTED_SLOTS, _FEWEST_SLOTS = 5, 3  # with a gap of one event between splits, and without
_SHARES = (0.7, 0.15)
_GAP_FROM_DAYS = 20


def parse_minutes(text: str) -> float:
    """Return the minutes of a duration such as ``4h``, ``90min`` or ``1d``.

    Raises:
        ConfigError: the text has another form, or the duration does not divide a day.
    """
    match = _DURATION.fullmatch(text.lower())
    minutes = float(match[1]) * _MINUTES[match[2]] if match else 0.0
    if not 0 < minutes <= 1440 or (1440 / minutes) % 1:
        raise ConfigError(f"--event {text!r} is invalid; it must be a duration that divides a day, such as 4h or 90min")
    return minutes


def event_minutes(text: str | None, step: float, times: list[int]) -> float:
    """Return the length of an event in minutes.

    Args:
        text: as given; None chooses 48 frames, or less for a short archive, but at least 24 if they fit in a day.
        step: minutes between frames.
        times: of the frames, in microseconds since 1970.

    Raises:
        ConfigError: the text is invalid, or no multiple of the step.
    """
    if text is not None:
        minutes = parse_minutes(text)
        if (minutes / step) % 1 or minutes < 2 * step:
            raise ConfigError(
                f"--event {text!r} is not a multiple of the cadence of {step:g} minutes, at least 2 steps"
            )
        return minutes
    whole = [1440 / parts for parts in range(1, 721) if (1440 / parts / step) % 1 == 0 and 1440 / parts % 1 == 0]
    choices = [minutes for minutes in whole if _FEWEST_FRAMES * step <= minutes] or [1440.0]
    usual = min((minutes for minutes in choices if minutes >= _EVENT_FRAMES * step), default=max(choices))
    for wanted in (_WANTED_SLOTS, _FEWEST_SLOTS):
        for minutes in (minutes for minutes in choices if minutes <= usual):
            if len(_usable_slots(times, round(minutes * 60e6), round(step * 60e6))) >= wanted:
                return minutes
    return usual


def _usable_slots(times: list[int], length: int, step: int) -> list[int]:
    """Return the numbers of the slots that contain a window of 18 frames."""
    found: list[int] = []
    run, before = 0, None
    for time in sorted(set(times)):
        follows = before is not None and time - before == step and time // length == before // length
        run, before = run + 1 if follows else 1, time
        if run == WINDOW_FRAMES:
            found.append(time // length)
    return sorted(set(found))


def default_splits(
    times: list[int], event: float, step: float, gap_days: float | None
) -> tuple[datetime | None, datetime | None, float, str]:
    """Return the ends of train and val, the gap in days, and a note: 70, 15 and 15 % of the days, or of the slots.

    Slots count if they contain a window of 18 frames.
    """
    days = sorted({moment(time).date() for time in times})
    if len(days) >= 3:
        first = max(1, min(len(days) - 2, round(_SHARES[0] * len(days))))
        second = max(first + 1, min(len(days) - 1, round(sum(_SHARES) * len(days))))
        gap = gap_days if gap_days is not None else 1.0 if len(days) >= _GAP_FROM_DAYS else 0.0
        train, val = _end_of(days[first - 1]), _end_of(days[second - 1])
        text = (
            f"splits: train until {train}, val until {val}, {gap:g} day{'' if gap == 1 else 's'} between splits "
            "(70, 15, 15 % of the days)"
        )
        return train, val, gap, text
    length = round(event * 60e6)
    slots = _usable_slots(times, length, round(step * 60e6)) or sorted({time // length for time in times})
    if len(slots) < _FEWEST_SLOTS:
        text = f"splits: all events are of the split train, because only {len(slots)} could be divided"
        return None, None, 0.0, text
    has_gap = len(slots) >= _WANTED_SLOTS
    rest = len(slots) - 2 * has_gap
    first = max(1, min(rest - 2, int(_SHARES[0] * rest)))
    second = first + max(1, (rest - first) // 2)
    ends = [moment((slots[k] + 1) * length).replace(tzinfo=None) - timedelta(seconds=1)
            for k in (first - 1, second - 1 + has_gap)]  # fmt: skip
    gap = event / 1440 if has_gap else 0.0
    text = (
        f"splits: the source has only {len(days)} day{'s' if len(days) > 1 else ''}, so the splits are parts of a day, "
        f"{'one event' if has_gap else 'nothing'} apart: train until {ends[0]}, val until {ends[1]}; "
        "scores on such splits are too optimistic"
    )
    return ends[0], ends[1], gap, text


def _end_of(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 23, 59, 59)
