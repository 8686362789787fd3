"""Which frames a forecast begins from: at the model's cadence, on one grid, without a gap; or what is missing."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from simcast_hpc.config import DataError

from .frame_encoding import CodedFrame
from .radar_frame import RadarFrame


@dataclass(frozen=True)
class Wanted:
    """What a model wants: ``frames_in`` frames every ``step_minutes``, and how far the files may fall short of it.

    ``bridge``: at most so many frames in a row may be missing; they are interpolated in time, in linear units. The
    first and the last frame never are. A frame counts for a time up to a quarter of a step away.
    """

    frames_in: int
    step_minutes: float
    bridge: int = 0

    @property
    def tolerance(self) -> timedelta:
        """How far from the wanted time a frame may lie."""
        return timedelta(minutes=self.step_minutes / 4)

    def times(self, issue: datetime) -> list[datetime]:
        """Return the times of the inputs of a forecast issued at ``issue``, ascending."""
        step = timedelta(minutes=self.step_minutes)
        return [issue - step * (self.frames_in - 1 - k) for k in range(self.frames_in)]


@dataclass(frozen=True)
class FrameSet:
    """The choice for one issue time: the frame or, where it is missing, None; times ascend."""

    issue: datetime
    wanted_times: tuple[datetime, ...]
    chosen: tuple[datetime | None, ...]

    @property
    def lacking(self) -> tuple[datetime, ...]:
        """The wanted times that no frame serves."""
        return tuple(time for time, found in zip(self.wanted_times, self.chosen, strict=True) if found is None)


def choose_frames(available: Iterable[datetime], issue: datetime, wanted: Wanted) -> FrameSet:
    """Choose for every wanted time the frame that is nearest to it, within the tolerance.

    Raises:
        DataError: the last or first frame is missing, or more in a row than may be bridged; names the times.
    """
    held = sorted(available)
    times = wanted.times(issue)
    chosen: list[datetime | None] = []
    for time in times:
        nearest = min(held, key=lambda one: abs(one - time), default=None)
        chosen.append(nearest if nearest is not None and abs(nearest - time) <= wanted.tolerance else None)
    found = FrameSet(issue, tuple(times), tuple(chosen))
    row = _longest_gap(chosen)
    if not found.lacking:
        return found
    if chosen[0] is None or chosen[-1] is None or row > wanted.bridge:
        cadence = _cadence(held)
        minutes = wanted.step_minutes * (wanted.frames_in - 1)
        inside = chosen[0] is not None and chosen[-1] is not None
        raise DataError(
            f"no forecast for {issue:%Y-%m-%d %H:%M} UTC: of {wanted.frames_in} frames every {wanted.step_minutes:g} "
            f"minutes, {len(found.lacking)} missing: {_listed(found.lacking)}"
            + (f"; the frames there come every {cadence:g} minutes" if _differs(cadence, wanted) else "")
            + (
                f"; --bridge {row} would bridge them"
                if inside
                else f"; the frames must reach over {minutes:g} minutes, from {times[0]:%H:%M} to {times[-1]:%H:%M}: "
                "--bridge fills gaps between frames, never the first or the last"
            )
        )
    return found


def reject_a_mixture(frames: Sequence[RadarFrame | CodedFrame]) -> None:
    """Refuse frames of different units or grids.

    Raises:
        DataError: names the two files and what differs.
    """
    first = frames[0]
    for frame in frames[1:]:
        if frame.unit != first.unit:
            raise DataError(f"{frame.path} is in {frame.unit} and {first.path} in {first.unit}; one unit is needed")
        if difference := frame.grid.differs_from(first.grid):
            raise DataError(f"{frame.path} has another grid than {first.path}: {difference}")


def reject_twins(times: Mapping[Path, Sequence[datetime]]) -> None:
    """Refuse two files of one time: which of them counts would be a guess.

    Raises:
        DataError: names both.
    """
    seen: dict[datetime, Path] = {}
    for path, moments in times.items():
        for moment in moments:
            if (other := seen.setdefault(moment, path)) != path:
                raise DataError(
                    f"{path} and {other} hold the same time {moment:%Y-%m-%d %H:%M:%S} UTC; give one of them "
                    "(--pattern chooses files by name)"
                )


def bridged(linear: Sequence[np.ndarray | None], times: Sequence[datetime]) -> list[np.ndarray]:
    """Return fields ``[H, W]`` with the missing ones (None) interpolated in time between their neighbours.

    ``linear`` must be linear in the amount of water or echo. A pixel that is missing in a neighbour is missing.
    """
    there = [k for k, field in enumerate(linear) if field is not None]
    whole: list[np.ndarray] = []
    for k, field in enumerate(linear):
        if field is None:
            before, after = max(i for i in there if i < k), min(i for i in there if i > k)
            share = (times[k] - times[before]) / (times[after] - times[before])
            earlier, later = linear[before], linear[after]
            assert earlier is not None and later is not None
            field = (earlier * (1 - share) + later * share).astype(np.float32)
        whole.append(field)
    return whole


def _longest_gap(chosen: Sequence[datetime | None]) -> int:
    longest = row = 0
    for one in chosen:
        row = row + 1 if one is None else 0
        longest = max(longest, row)
    return longest


def _cadence(held: Sequence[datetime]) -> float | None:
    steps = [(later - sooner).total_seconds() / 60 for sooner, later in itertools.pairwise(held)]
    return float(np.median(steps)) if steps else None


def _differs(cadence: float | None, wanted: Wanted) -> bool:
    return cadence is not None and abs(cadence - wanted.step_minutes) > wanted.step_minutes / 4


def _listed(times: Sequence[datetime]) -> str:
    said = ", ".join(f"{time:%H:%M}" for time in times[:6])
    return said + (", ..." if len(times) > 6 else "")
