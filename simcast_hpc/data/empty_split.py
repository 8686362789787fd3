"""The error for a split without events: events lost for each reason, and the key that changes it."""

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np

from simcast_hpc.config import DataError

from .dataset_spec import DatasetSpec, Split


def empty_split(spec: DatasetSpec, where: str, split: Split, total: int, lost: Iterable[tuple[int, str]]) -> DataError:
    """Return the error for a split that has no event.

    Args:
        spec: the dataset description.
        where: file or folder of the events.
        split: the split.
        total: number of events before the choice.
        lost: number of events and reason, each event under the first reason that applies; reasons without an event
            are omitted.
    """
    reasons = [f"{count} {reason}" for count, reason in lost if count]
    if not reasons:
        reasons = ["there is no event"] if not total else ["no event remains"]
    return DataError(f"split {split!r} of {spec.name} is empty in {where}: of {total} events, {'; '.join(reasons)}")


def in_other_splits(splits: Iterable[str], seconds: Iterable[int], *, wanted: str) -> str:
    """Return the reason of events in other splits than ``wanted``: their splits and first and last dates.

    Args:
        splits: split of each event, empty for none.
        seconds: time of each event in seconds since 1970 UTC.
        wanted: the split that is read.
    """
    times: dict[str, list[int]] = {}
    for name, time in zip(splits, seconds, strict=True):
        if name != wanted:
            times.setdefault(name or "no split", []).append(int(time))
    shown = ", ".join(f"{name} {len(own)} ({_dates(own)})" for name, own in sorted(times.items()))
    return f"belong to other splits: {shown} (`splits` of the description)"


def too_many_missing(percent: Iterable[float], limit: float | None) -> list[tuple[int, str]]:
    """Return the number and reason of events with more missing pixels than ``limit`` %, and with an unknown share."""
    if limit is None or limit >= 100:
        return []
    shares = np.asarray(list(percent), np.float64)
    above = shares[shares > limit]
    least = f", at least {above.min():.4g} %" if len(above) else ""
    key = f"data.max_percent_missing={limit:g}, --max-percent-missing; null or 100 keeps them"
    return [
        (len(above), f"have more missing pixels than the limit{least} ({key})"),
        (int(np.isnan(shares).sum()), f"have an unknown share of missing pixels ({key})"),
    ]


def _dates(seconds: list[int]) -> str:
    days = [datetime.fromtimestamp(time, UTC).date().isoformat() for time in (min(seconds), max(seconds))]
    return days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"
