"""Choose the input frames of a forecast: the model's cadence, one grid, one unit, gaps only where interpolated."""

import bisect
import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import MAXYEAR, datetime, timedelta

import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.radar.frame_encoding import EncodedFrame
from simcast_hpc.radar.radar_frame import RadarFrame

# Before the first weather radars: the time of a damaged file, or of a clock that was reset.
EARLIEST_YEAR = 1940


@dataclass(frozen=True)
class FrameRequest:
    """The input frames of a model: ``frames_in`` frames, one every ``step_minutes``.

    ``bridge`` is the largest number of consecutive frames in which a pixel may be missing and is interpolated in time,
    in linear units; also if complete frames are missing. The first and the last frame are never interpolated. A frame
    may be up to a quarter of a step from its nominal time. With ``fewest``, that number of frames without a gap, up to
    the last one, is sufficient. ``history`` is the number of frames up to the issue time that accumulations need; those
    before the inputs of the model are read as far as they exist without a gap.
    """

    frames_in: int
    step_minutes: float
    bridge: int = 0
    fewest: int | None = None
    history: int = 0

    @property
    def tolerance(self) -> timedelta:
        """Largest difference between the time of a frame and its nominal time."""
        return timedelta(minutes=self.step_minutes / 4)

    def times(self, issue: datetime) -> list[datetime]:
        """Return the nominal times of the inputs of a forecast issued at ``issue``, ascending.

        Raises:
            DataError: ``issue`` is not a time of radar measurements.
        """
        if not EARLIEST_YEAR <= issue.year < MAXYEAR:
            raise DataError(f"the issue time {issue.isoformat()} must be between {EARLIEST_YEAR} and {MAXYEAR - 1}")
        step = timedelta(minutes=self.step_minutes)
        return [issue - step * (self.frames_in - 1 - k) for k in range(self.frames_in)]


@dataclass(frozen=True)
class FrameSet:
    """The input frames of one issue time: nominal ``times``, ascending, and the time of each frame or None.

    ``earlier`` are the nominal times and the times of frames before them, ascending, which only accumulations use;
    these need ``history`` frames in all.
    """

    issue: datetime
    times: tuple[datetime, ...]
    frames: tuple[datetime | None, ...]
    earlier: tuple[tuple[datetime, datetime], ...] = ()
    history: int = 0

    @property
    def existing(self) -> list[datetime]:
        """The times of all frames, ascending: those before the inputs, and the inputs without the missing ones."""
        return [frame for _, frame in self.earlier] + [frame for frame in self.frames if frame is not None]

    @property
    def missing(self) -> tuple[datetime, ...]:
        """The nominal times without a frame."""
        return tuple(time for time, frame in zip(self.times, self.frames, strict=True) if frame is None)


def choose_frames(available: Iterable[datetime], issue: datetime, request: FrameRequest) -> FrameSet:
    """Choose the nearest frame within the tolerance for each nominal time.

    Raises:
        DataError: the first or last frame is missing, or more consecutive frames than ``request.bridge``; with
            ``request.fewest``, the same holds for the last ``fewest`` frames.
    """
    available = sorted(available)
    fewest = request.frames_in if request.fewest is None else min(request.fewest, request.frames_in)
    for count in range(request.frames_in, fewest, -1):
        with contextlib.suppress(DataError):
            return _with_earlier(available, _choose(available, issue, replace(request, frames_in=count)), request)
    return _with_earlier(available, _choose(available, issue, replace(request, frames_in=fewest)), request)


def _with_earlier(available: Sequence[datetime], chosen: FrameSet, request: FrameRequest) -> FrameSet:
    """Return the inputs with the frames before them, up to ``request.history`` frames or the first gap."""
    earlier: list[tuple[datetime, datetime]] = []
    step = timedelta(minutes=request.step_minutes)
    for back in range(1, request.history - len(chosen.times) + 1):
        time = chosen.times[0] - step * back
        frame = _nearest(available, time, request.tolerance)
        if frame is None:
            break
        earlier.append((time, frame))
    return replace(chosen, earlier=tuple(reversed(earlier)), history=request.history)


def _nearest(available: Sequence[datetime], time: datetime, tolerance: timedelta) -> datetime | None:
    """Return the nearest of ascending times within the tolerance; None if there is none."""
    after = bisect.bisect(available, time)
    nearest = min(available[max(after - 1, 0) : after + 1], key=lambda frame: abs(frame - time), default=None)
    return nearest if nearest is not None and abs(nearest - time) <= tolerance else None


def _choose(available: Sequence[datetime], issue: datetime, request: FrameRequest) -> FrameSet:
    # 1. Nearest frame per nominal time
    times = request.times(issue)
    frames = [_nearest(available, time, request.tolerance) for time in times]
    frame_set = FrameSet(issue, tuple(times), tuple(frames))
    # 2. Gaps
    gap = _longest_gap(frames)
    if not frame_set.missing:
        return frame_set
    if frames[0] is None or frames[-1] is None or gap > request.bridge:
        cadence = _cadence(available)
        minutes = request.step_minutes * (request.frames_in - 1)
        can_bridge = frames[0] is not None and frames[-1] is not None
        raise DataError(
            f"no forecast for {issue:%Y-%m-%d %H:%M} UTC: {len(frame_set.missing)} of {request.frames_in} frames every "
            f"{request.step_minutes:g} minutes are missing: {_format_times(frame_set.missing)}"
            + (f"; the available frames are {cadence:g} minutes apart" if _differs(cadence, request) else "")
            + (
                f"; --bridge {gap} interpolates them"
                if can_bridge
                else f"; the frames must span {minutes:g} minutes, from {times[0]:%H:%M} to {times[-1]:%H:%M}: "
                "--bridge interpolates between frames, never the first or the last"
            )
        )
    return frame_set


def require_one_grid_and_unit(frames: Sequence[RadarFrame | EncodedFrame]) -> None:
    """Check that all frames have one grid and one unit.

    Raises:
        DataError: two frames differ; names the two files and the difference.
    """
    first = frames[0]
    for frame in frames[1:]:
        if frame.unit != first.unit:
            raise DataError(f"{frame.path} is in {frame.unit} and {first.path} in {first.unit}; use one unit")
        if difference := frame.grid.difference(first.grid):
            raise DataError(f"{frame.path} has another grid than {first.path}: {difference}")


def pixel_gaps(missing: np.ndarray, longest: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Find the pixels that are missing in at most ``longest`` consecutive frames and exist before and after these.

    Args:
        missing: bool ``[T, H, W]``.
        longest: largest number of consecutive frames.

    Yields:
        The frames before and after the gap, and the pixels ``[H, W]`` that have it; only gaps that occur.
    """
    frames = len(missing)
    for before in range(frames - 2):
        inside = ~missing[before]  # pixels that exist before the gap and are missing since
        for after in range(before + 1, min(before + longest + 2, frames)):
            pixels = inside & ~missing[after]
            if after > before + 1 and pixels.any():
                yield before, after, pixels
            inside &= missing[after]
            if not inside.any():
                break


def interpolate(earlier: np.ndarray, later: np.ndarray, times: Sequence[datetime], between: int) -> np.ndarray:
    """Interpolate float32 fields in time, linearly between the first and the last of ``times``, to ``times[between]``.

    Values must be linear in the amount of water or echo.
    """
    weight = np.float32((times[between] - times[0]) / (times[-1] - times[0]))
    return earlier * (1 - weight) + later * weight


def _longest_gap(frames: Sequence[datetime | None]) -> int:
    longest = length = 0
    for frame in frames:
        length = length + 1 if frame is None else 0
        longest = max(longest, length)
    return longest


def _cadence(times: Sequence[datetime]) -> float | None:
    steps = [(later - earlier).total_seconds() / 60 for earlier, later in itertools.pairwise(times)]
    return float(np.median(steps)) if steps else None


def _differs(cadence: float | None, request: FrameRequest) -> bool:
    return cadence is not None and abs(cadence - request.step_minutes) > request.step_minutes / 4


def _format_times(times: Sequence[datetime]) -> str:
    return ", ".join(f"{time:%H:%M}" for time in times[:6]) + (", ..." if len(times) > 6 else "")
