"""Events of MeteoNet from its npz files, for preparation: gap-free runs of cropped frames, or only rainy ones.

The selection of rainy events is that of CasCast, see ``raw_layouts.RainSelection``. A run ends with its file, which
contains ten days.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.data.data_errors import DataProblem, ProblemKind
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.raw_layouts import Crop, MeteoNetLayout, RainSelection
from simcast_hpc.distributed.ranks import Ranks

from ..encoding import MISSING_CODE
from .meteonet_file import GRIDS, MeteoNetFile, WrongTypeError, find_files
from .raw_events import RawEvent

STEP = timedelta(minutes=5)


@dataclass(frozen=True)
class FileSummary:
    """Per frame of a file, within the crop: time, mean of the stored values, number of missing pixels."""

    dates: tuple[datetime, ...]
    means: tuple[float, ...]
    missing: tuple[int, ...]


class MeteoNetEvents:
    """An :class:`~simcast_hpc.data.prepare.raw_events.EventSource` over MeteoNet's files of one product and region."""

    def __init__(self, spec: DatasetSpec, root: Path):
        """Find the files; :meth:`complete` reads them.

        Raises:
            DataError: there is no file of the product and region, or crop or cadence of the description are invalid.
        """
        assert isinstance(spec.layout, MeteoNetLayout)
        self.spec, self.root, self.layout = spec, Path(root), spec.layout
        self.frames = self.layout.event_frames
        height, width = GRIDS[self.layout.region]
        self.crop = self.layout.crop or Crop(height=height, width=width)
        self.grid = (self.crop.height, self.crop.width)
        if self.crop.top + self.crop.height > height or self.crop.left + self.crop.width > width:
            raise DataError(
                f"{spec.name}: layout.crop {self.crop} is not within region {self.layout.region}, {height} x {width}"
            )
        if spec.frames_per_event not in (None, self.frames) or spec.step_minutes != 5:
            raise DataError(
                f"{spec.name}: frames_per_event={spec.frames_per_event} and step_minutes={spec.step_minutes} must be "
                f"{self.frames} (layout.event_frames) and 5"
            )
        self.files = find_files(self.root, self.layout)
        self.events: list[RawEvent] = []
        self.absent: list[RawEvent] = []
        self.problems: list[DataProblem] = []
        self.notes: list[DataProblem] = []
        sizes = [f"{file.path.name} {file.size}" for file in self.files]
        self.identity = hashlib.sha256("\n".join(sizes).encode()).hexdigest()[:16]
        self._decoded: tuple[int, np.ndarray] | None = None

    def complete(self, ranks: Ranks) -> None:
        """Read all files, each rank its share, and select the events. A collective."""
        # 1. Summaries of the files, distributed over the ranks
        own: dict[int, FileSummary | DataProblem] = {}
        for number in range(ranks.rank, len(self.files), ranks.size):
            own[number] = self._summarize(self.files[number])
        summaries = {number: summary for part in ranks.gather(own) for number, summary in part.items()}
        # 2. Events, problems and notes, the same on each rank
        choose = self.spec.splits.chooser(self.root)
        for number, file in enumerate(self.files):
            summary = summaries[number]
            if isinstance(summary, DataProblem):
                self.problems.append(summary)
                continue
            for first in self._first_frames(summary):
                lead = self.layout.selection.before if self.layout.selection else 0
                begin, time = summary.dates[first], summary.dates[first + lead]
                name = f"{self.layout.region}_{begin:%Y%m%dT%H%M}"
                split = choose(name, time)
                self.events.append(RawEvent(name, _seconds(time), _seconds(begin), split, None, file.path.name, first))
            holes = sum(later - earlier != STEP for earlier, later in pairwise(summary.dates))
            incomplete = sum(count > 0 for count in summary.missing)
            message = f"{len(summary.dates)} frames, {holes} gaps, {incomplete} frames with missing pixels in the crop"
            self.notes.append(DataProblem("gap", file.path.name, "", message))

    def read(self, number: int) -> np.ndarray:
        """Return event ``number`` as uint8 ``[T, H, W]``; a file is decoded once for all of its events.

        Raises:
            DataError: the file was damaged after it was checked.
        """
        event = self.events[number]
        file_number = next(n for n, file in enumerate(self.files) if file.path.name == event.file)
        if self._decoded is None or self._decoded[0] != file_number:
            self._decoded = None  # free the previous file first: one is half a gigabyte
            frames = [self._codes(self._cropped(frame)) for frame in self.files[file_number].frames()]
            self._decoded = (file_number, np.stack(frames))
        return self._decoded[1][event.file_index : event.file_index + self.frames]

    def _cropped(self, frame: np.ndarray) -> np.ndarray:
        crop = self.crop
        return frame[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]

    def _summarize(self, file: MeteoNetFile) -> FileSummary | DataProblem:
        try:
            dates = file.read_dates()
            problem = _dates_problem(dates)
            if problem is not None:
                return DataProblem(problem[0], file.path.name, "", problem[1])
            means, missing = [], []
            small, low, high = False, 0, 0
            for frame in file.frames():
                if frame.shape != GRIDS[self.layout.region]:
                    message = (
                        f"frames of {frame.shape} pixels; region {self.layout.region} has {GRIDS[self.layout.region]}"
                    )
                    return DataProblem("grid", file.path.name, "", message)
                small |= bool(((frame > 0) & (frame < 8)).any())
                low, high = min(low, int(frame.min())), max(high, _largest(frame, self.layout.product))
                values, is_missing = self._values(self._cropped(frame))
                means.append(float(values.mean()))
                missing.append(int(is_missing.sum()))
        except DataError as error:
            kind = "dtype" if isinstance(error, WrongTypeError) else "truncated"
            return DataProblem(kind, file.path.name, "", str(error).removeprefix(f"{file.path}").lstrip(": "))
        if len(means) != len(dates):
            return DataProblem("catalog", file.path.name, "", f"{len(dates)} dates for {len(means)} frames")
        unit_problem = _unit_problem(self.layout.product, low=low, high=high, small=small)
        if unit_problem is not None:
            return DataProblem("unit", file.path.name, "", unit_problem)
        return FileSummary(tuple(dates), tuple(means), tuple(missing))

    def _values(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a frame in dBZ (no echo 0) or hundredths of mm, 0 where missing, and the mask of missing pixels."""
        if self.layout.product == "reflectivity_old":
            is_missing = stored == 255
            return np.where(is_missing, 0, stored), is_missing
        if self.layout.product == "reflectivity_new":
            return np.maximum(stored, 0) / 10, stored == -200
        return np.maximum(stored, 0), stored == -1

    def _codes(self, stored: np.ndarray) -> np.ndarray:
        values, is_missing = self._values(stored)
        physical = values * 0.12 if self.layout.product == "rainfall" else values  # 0.01 mm in 5 minutes is 0.12 mm/h
        codes = self.spec.encoding.encode(physical.astype(np.float64))
        return np.where(is_missing, np.uint8(MISSING_CODE), codes)

    def _first_frames(self, summary: FileSummary) -> list[int]:
        firsts = []
        for begin, end in _runs(summary, complete_only=self.layout.whole_frames):
            if self.layout.selection is None:
                firsts += range(begin, end - self.frames + 1, self.frames)
            else:
                firsts += [begin + first for first in rainy_events(summary.means[begin:end], self.layout.selection)]
        return firsts


def rainy_events(means: Sequence[float], selection: RainSelection) -> list[int]:
    """Return the first frames of the rainy events of one gap-free run, from the mean of each frame."""
    firsts, frame = [], selection.first_frame
    while frame + selection.after < len(means):
        if means[frame] > selection.mean:
            window = means[frame - selection.before : frame + selection.after]
            if float(np.mean(window)) >= selection.mean:
                firsts.append(frame - selection.before)
                frame += selection.after
        frame += 1
    return firsts


def _runs(summary: FileSummary, *, complete_only: bool) -> list[tuple[int, int]]:
    """Return the gap-free runs of frames as (first, last + 1)."""
    usable = [not complete_only or count == 0 for count in summary.missing]
    runs: list[tuple[int, int]] = []
    for frame, good in enumerate(usable):
        if not good:
            continue
        if runs and runs[-1][1] == frame and summary.dates[frame] - summary.dates[frame - 1] == STEP:
            runs[-1] = (runs[-1][0], frame + 1)
        else:
            runs.append((frame, frame + 1))
    return runs


def _dates_problem(dates: Sequence[datetime]) -> tuple[ProblemKind, str] | None:
    steps = [later - earlier for earlier, later in pairwise(dates)]
    if any(step <= timedelta(0) for step in steps):
        return "unsorted-times", "the dates are not ascending"
    invalid = [step for step in steps if step % STEP]
    return ("cadence", f"two frames are {invalid[0]} apart; MeteoNet has one every 5 minutes") if invalid else None


def _largest(frame: np.ndarray, product: str) -> int:
    return int(frame[frame != 255].max(initial=0)) if product == "reflectivity_old" else int(frame.max())


def _unit_problem(product: str, *, low: int, high: int, small: bool) -> str | None:
    """Return why the values contradict the product, or None; ``small`` is whether a value is in 1 .. 7."""
    if product == "reflectivity_old" and (low < 0 or high > 100 or small):
        return f"values from {low} to {high} are not dBZ of 0, 8, 16, 20, ...; is it rainfall or the new product?"
    if product == "reflectivity_new" and (low < -200 or low >= 0 or high > 1000):
        return f"values from {low} to {high} are not tenths of dBZ with -100 for no echo; is it another product?"
    if product == "rainfall" and (low < -1 or (high >= 20 and not small)):
        return f"values from {low} to {high} are not hundredths of mm; is it reflectivity in dBZ?"
    return None


def _seconds(time: datetime) -> int:
    return int(time.replace(tzinfo=UTC).timestamp())
