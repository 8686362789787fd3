"""Which frames of a source form one data set: cadence, grid, quantity, and the frame of each nominal time."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.radar.radar_frame import RadarGrid

from .scan_frames import moment
from .scan_table import NO_INTERVAL, ScanTable

_T = TypeVar("_T", bound=Hashable)
MAX_INTERVAL_STEPS = 1.5
_MINUTE = 60_000_000  # in microseconds, the unit of all times here
_DAY = 1440 * _MINUTE
_EARLIEST = -30 * 365 * _DAY  # 1940
# Reasons, in the order in which they are checked. A frame with `used` is in the data set.
REASONS = ("used", "time", "quantity", "grid", "interval", "cadence", "duplicate")
MEANING = {
    "time": "its time is before 1940",
    "quantity": "another quantity or unit than most frames",
    "grid": "another grid than the reference",
    "interval": "an accumulation over more than 1.5 steps",
    "cadence": "more than a quarter of a step from a nominal time, or another frame is nearer to it",
    "duplicate": "another file contains the same time and was changed later, or at once and has a later name",
}


@dataclass(frozen=True)
class FrameSeries:
    """What the frames of a data set have in common.

    Attributes:
        step: time between frames in microseconds.
        phase: nominal times are multiples of ``step`` plus ``phase``, in microseconds.
        quantity: quantity of the fields.
        unit: unit of the fields.
        grid: reference grid.
        any_interval: whether accumulations over more than 1.5 steps are used.
    """

    step: int
    phase: int
    quantity: str
    unit: str
    grid: RadarGrid
    any_interval: bool = False

    @property
    def step_minutes(self) -> float:
        """Time between frames in minutes."""
        return self.step / _MINUTE


@dataclass(frozen=True, eq=False)
class Selection:
    """The frames of a series.

    Attributes:
        reason: number in ``REASONS`` for each frame of the table, uint8 ``[N]``.
        slot: number of the nominal time of each frame: ``slot * step + phase``, int64 ``[N]``.
        jitter: difference from the nominal time in microseconds, int64 ``[N]``.
    """

    reason: np.ndarray
    slot: np.ndarray
    jitter: np.ndarray

    @cached_property
    def used(self) -> np.ndarray:
        """Rows of the frames that are used, in the order of their times."""
        rows = np.flatnonzero(self.reason == 0)
        return rows[np.argsort(self.slot[rows])]


def find_series(
    table: ScanTable, *, step_minutes: float | None, grid: RadarGrid | None = None, any_interval: bool = False
) -> FrameSeries:
    """Return the series that most frames belong to.

    Args:
        table: frames of the source.
        step_minutes: time between frames; None derives it from the times.
        grid: reference grid; None is the grid of most frames.
        any_interval: accept accumulations over more than 1.5 steps.

    Raises:
        DataError: there is no frame, or no two times.
        ConfigError: ``step_minutes`` is not a positive number of whole seconds.
    """
    if not len(table):
        raise DataError("no frame of the source can be read" + _first_error(table))
    fields = [kind.field for kind in table.kinds]
    quantity, unit = _most_frequent(table.kind, fields)
    of_field = np.isin(table.kind, [k for k, kind in enumerate(table.kinds) if kind.field == (quantity, unit)])
    if grid is None:
        grid = _most_frequent(table.grid[of_field], table.grids)
    same_grid = np.array([not other.difference(grid) for other in table.grids])
    times = np.unique(table.time[of_field & same_grid[table.grid]])
    if not len(times):
        raise DataError(
            f"no frame of the source has the grid of --grid-of, {grid.height} x {grid.width} pixels of "
            f"{grid.spacing_km:g} km; --dry-run lists the grids"
        )
    if step_minutes is None:
        step = _cadence(times)
    else:
        step = round(step_minutes * _MINUTE) if 0 < step_minutes <= 1440 else 0
        if step <= 0 or step % 1_000_000 or _DAY % step:
            raise ConfigError(
                f"--step {step_minutes:g} is invalid; it must be minutes that divide a day, such as 5 or 10"
            )
    return FrameSeries(step, _phase(times, step), quantity, unit, grid, any_interval)


def select_frames(table: ScanTable, series: FrameSeries) -> Selection:
    """Return which frames of a table belong to a series.

    Each nominal time has the frame that is nearest to it and at most a quarter of a step away. Of several with the same
    time the one whose file was changed last is used, then the one with the last path.

    Raises:
        DataError: most frames are accumulations over more than 1.5 steps.
    """
    reason = np.zeros(len(table), np.uint8)

    def exclude(name: str, where: np.ndarray) -> None:
        reason[(reason == 0) & where] = REASONS.index(name)

    # 1. Frame by frame
    exclude("time", table.time < _EARLIEST)
    same_kind = np.array([kind.field == (series.quantity, series.unit) for kind in table.kinds] or [False])
    exclude("quantity", ~same_kind[table.kind])
    same_grid = np.array([not grid.difference(series.grid) for grid in table.grids] or [False])
    exclude("grid", ~same_grid[table.grid])
    if not series.any_interval:
        interval = np.where(table.start == NO_INTERVAL, 0, table.time - np.maximum(table.start, -(2**61)))
        is_long = interval > MAX_INTERVAL_STEPS * series.step
        candidates = reason == 0
        if candidates.any() and is_long[candidates].mean() > 0.5:
            row = int(np.flatnonzero(candidates & is_long)[0])
            raise DataError(
                f"{table.files[table.file[row]].path} is an accumulation over {interval[row] / _MINUTE:g} minutes and "
                f"the step is {series.step_minutes:g} minutes; use accumulations over at most "
                f"{MAX_INTERVAL_STEPS * series.step_minutes:g} minutes, a longer --step, or --any-interval to use the "
                "mean rate"
            )
        exclude("interval", is_long)
    slot = np.floor_divide(table.time - series.phase + series.step // 2, series.step)
    jitter = table.time - series.phase - slot * series.step
    exclude("cadence", np.abs(jitter) > series.step / 4)
    # 2. One frame per nominal time
    rows = np.flatnonzero(reason == 0)
    changed = np.array([file.mtime_ns for file in table.files] or [0], np.int64)[table.file]
    order = rows[np.lexsort((-table.file[rows], -changed[rows], table.time[rows], np.abs(jitter[rows]), slot[rows]))]
    repeated = np.zeros(len(order), bool)
    repeated[1:] = np.diff(slot[order]) == 0
    chosen = order[np.maximum.accumulate(np.where(repeated, 0, np.arange(len(order))))] if len(order) else order
    same_time = table.time[order] == table.time[chosen]
    reason[order[repeated & same_time]] = REASONS.index("duplicate")
    reason[order[repeated & ~same_time]] = REASONS.index("cadence")
    return Selection(reason, slot, jitter)


def gaps(slots: np.ndarray, series: FrameSeries) -> list[dict[str, object]]:
    """Return the gaps between nominal times that have a frame: first and last missing time, and their number."""
    found = []
    for row in np.flatnonzero(np.diff(slots) > 1):
        first, last = int(slots[row]) + 1, int(slots[row + 1]) - 1
        found.append(
            {
                "from": text_of(first * series.step + series.phase),
                "to": text_of(last * series.step + series.phase),
                "frames": last - first + 1,
            }
        )
    return found


def text_of(microseconds: Any) -> str:
    """Return a time as ISO 8601 text, UTC without a time zone."""
    return moment(int(microseconds)).replace(tzinfo=None).isoformat()


def _cadence(times: np.ndarray) -> int:
    """Return the most frequent difference of consecutive times, rounded to one that divides a day.

    Raises:
        DataError: there are no two times.
    """
    if len(times) < 2:
        raise DataError("the source contains one time only, so the cadence is unknown; give --step MINUTES")
    differences = np.diff(times)
    divisors = np.array([second * 1_000_000 for second in range(1, 86401) if 86400 % second == 0])
    # Jitter of a fraction of a step must not split the vote: every difference counts for its nearest divisor of a day.
    nearest = divisors[np.searchsorted(np.sqrt(divisors[1:] * 1.0 * divisors[:-1]), differences)]
    values, counts = np.unique(nearest[differences >= 10_000_000], return_counts=True)
    if not len(values):
        raise DataError("the times of the source are less than 10 s apart; give --step MINUTES")
    whole = values % _MINUTE == 0
    if whole.any() and counts[whole].sum() * 2 >= counts.sum():
        values, counts = values[whole], counts[whole]
    return int(values[counts.argmax()])


def _phase(times: np.ndarray, step: int) -> int:
    """Return the offset of most times from multiples of the step, in whole seconds; 0 if it is less than an eighth."""
    if not len(times):
        return 0
    angle = 2 * np.pi * (times % step) / step
    mean = np.angle(np.exp(1j * angle).mean()) / (2 * np.pi) * step
    seconds = round(mean / 1e6) * 1_000_000
    return 0 if abs(mean) <= step / 8 else seconds % step


def _most_frequent(numbers: np.ndarray, things: Sequence[_T]) -> _T:
    """Return the thing that most numbers stand for; of several the first in the order of their text."""
    counts = Counter(things[number] for number in numbers.tolist())
    return min(counts, key=lambda thing: (-counts[thing], repr(thing)))


def _first_error(table: ScanTable) -> str:
    errors = [error for error in table.errors if error]
    return f": {len(errors)} files cannot be read, the first because: {errors[0]}" if errors else ""
