"""Events of MeteoNet from its npz files, for preparation: unbroken runs of frames, cropped, rainy ones where asked.

The choice of rainy events is CasCast's (method.md 4.3): see ``layouts.RainSelection``. Runs end with their file, which
holds ten days.
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
from simcast_hpc.distributed.ranks import Ranks

from ..encoding import MISSING_CODE
from ..layouts import Crop, MeteoNetLayout, RainSelection
from .meteonet_file import GRIDS, MeteoNetFile, WrongTypeError, find_files
from .raw_events import RawEvent

STEP = timedelta(minutes=5)


@dataclass(frozen=True)
class FileSummary:
    """What the frames of a file hold inside the crop: times, means over the file's values, missing pixels."""

    dates: tuple[datetime, ...]
    means: tuple[float, ...]
    missing: tuple[int, ...]


class MeteoNetEvents:
    """An :class:`~simcast_hpc.data.prepare.raw_events.EventSource` over MeteoNet's files of one product and region."""

    def __init__(self, spec: DatasetSpec, root: Path):
        """Find the files; :meth:`complete` looks into them.

        Raises:
            DataError: no file of that product and region, or the description's crop or grid does not fit.
        """
        assert isinstance(spec.layout, MeteoNetLayout)
        self.spec, self.root, self.layout = spec, Path(root), spec.layout
        self.frames = self.layout.event_frames
        height, width = GRIDS[self.layout.region]
        self.crop = self.layout.crop or Crop(height=height, width=width)
        self.grid = (self.crop.height, self.crop.width)
        if self.crop.top + self.crop.height > height or self.crop.left + self.crop.width > width:
            raise DataError(
                f"{spec.name}: layout.crop {self.crop} leaves region {self.layout.region}, {height} x {width}"
            )
        if spec.frames_per_event not in (None, self.frames) or spec.step_minutes != 5:
            raise DataError(f"{spec.name}: events of {self.frames} frames every 5 minutes are what layout says")
        self.files = find_files(self.root, self.layout)
        self.events: list[RawEvent] = []
        self.absent: list[RawEvent] = []
        self.problems: list[DataProblem] = []
        self.notes: list[DataProblem] = []
        told = [f"{file.path.name} {file.size}" for file in self.files]
        self.identity = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
        self._decoded: tuple[int, np.ndarray] | None = None

    def complete(self, ranks: Ranks) -> None:
        """FileSummary into all files, each rank into its share, and choose the events. A collective."""
        mine: dict[int, FileSummary | DataProblem] = {}
        for number in range(ranks.rank, len(self.files), ranks.size):
            mine[number] = self._look(self.files[number])
        looks = {number: look for part in ranks.gather(mine) for number, look in part.items()}
        choose = self.spec.splits.chooser(self.root)
        for number, file in enumerate(self.files):
            look = looks[number]
            if isinstance(look, DataProblem):
                self.problems.append(look)
                continue
            for first in self._firsts(look):
                lead = self.layout.selection.before if self.layout.selection else 0
                begin, time = look.dates[first], look.dates[first + lead]
                name = f"{self.layout.region}_{begin:%Y%m%dT%H%M}"
                split = choose(name, time)
                self.events.append(RawEvent(name, _seconds(time), _seconds(begin), split, None, file.path.name, first))
            holes = sum(later - earlier != STEP for earlier, later in pairwise(look.dates))
            broken = sum(count > 0 for count in look.missing)
            says = f"{len(look.dates)} frames, {holes} gaps between them, {broken} with missing pixels in the crop"
            self.notes.append(DataProblem("gap", file.path.name, "", says))

    def read(self, number: int) -> np.ndarray:
        """Return event ``number`` as uint8 ``[T, H, W]``; its whole file is decoded once for all of its events.

        Raises:
            DataError: the file broke since it was looked into.
        """
        event = self.events[number]
        place = next(n for n, file in enumerate(self.files) if file.path.name == event.file)
        if self._decoded is None or self._decoded[0] != place:
            self._decoded = None  # the one before goes first: a file is half a gigabyte
            frames = [self._codes(self._cropped(frame)) for frame in self.files[place].frames()]
            self._decoded = (place, np.stack(frames))
        return self._decoded[1][event.file_index : event.file_index + self.frames]

    def _cropped(self, frame: np.ndarray) -> np.ndarray:
        crop = self.crop
        return frame[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]

    def _look(self, file: MeteoNetFile) -> FileSummary | DataProblem:
        try:
            dates = file.read_dates()
            wrong = _wrong_dates(dates)
            if wrong is not None:
                return DataProblem(wrong[0], file.path.name, "", wrong[1])
            means, missing = [], []
            small, low, high = False, 0, 0
            for frame in file.frames():
                if frame.shape != GRIDS[self.layout.region]:
                    says = (
                        f"frames of {frame.shape} pixels; region {self.layout.region} has {GRIDS[self.layout.region]}"
                    )
                    return DataProblem("grid", file.path.name, "", says)
                small |= bool(((frame > 0) & (frame < 8)).any())
                low, high = min(low, int(frame.min())), max(high, _largest(frame, self.layout.product))
                values, gone = self._values(self._cropped(frame))
                means.append(float(values.mean()))
                missing.append(int(gone.sum()))
        except DataError as error:
            kind = "dtype" if isinstance(error, WrongTypeError) else "truncated"
            return DataProblem(kind, file.path.name, "", str(error).removeprefix(f"{file.path}").lstrip(": "))
        if len(means) != len(dates):
            return DataProblem("catalog", file.path.name, "", f"{len(dates)} dates for {len(means)} frames")
        wrong_unit = _wrong_unit(self.layout.product, low=low, high=high, small=small)
        if wrong_unit is not None:
            return DataProblem("unit", file.path.name, "", wrong_unit)
        return FileSummary(tuple(dates), tuple(means), tuple(missing))

    def _values(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a frame's values in dBZ (no echo 0) or hundredths of mm, missing ones 0, and where it is missing."""
        if self.layout.product == "reflectivity_old":
            gone = stored == 255
            return np.where(gone, 0, stored), gone
        if self.layout.product == "reflectivity_new":
            return np.maximum(stored, 0) / 10, stored == -200
        return np.maximum(stored, 0), stored == -1

    def _codes(self, stored: np.ndarray) -> np.ndarray:
        values, gone = self._values(stored)
        physical = values * 0.12 if self.layout.product == "rainfall" else values  # 0.01 mm in 5 minutes is 0.12 mm/h
        codes = self.spec.encoding.encode(physical.astype(np.float64))
        return np.where(gone, np.uint8(MISSING_CODE), codes)

    def _firsts(self, look: FileSummary) -> list[int]:
        firsts = []
        for begin, end in _runs(look, whole=self.layout.whole_frames):
            if self.layout.selection is None:
                firsts += range(begin, end - self.frames + 1, self.frames)
            else:
                firsts += [begin + first for first in rainy(look.means[begin:end], self.layout.selection)]
        return firsts


def rainy(means: Sequence[float], selection: RainSelection) -> list[int]:
    """Return the first frames of the rainy events of one unbroken run, given the mean of each of its frames."""
    firsts, frame = [], selection.first_frame
    while frame + selection.after < len(means):
        if means[frame] > selection.mean:
            window = means[frame - selection.before : frame + selection.after]
            if float(np.mean(window)) >= selection.mean:
                firsts.append(frame - selection.before)
                frame += selection.after
        frame += 1
    return firsts


def _runs(look: FileSummary, *, whole: bool) -> list[tuple[int, int]]:
    """Return the unbroken runs of frames, as first and last + 1."""
    usable = [not whole or count == 0 for count in look.missing]
    runs: list[tuple[int, int]] = []
    for frame, good in enumerate(usable):
        if not good:
            continue
        if runs and runs[-1][1] == frame and look.dates[frame] - look.dates[frame - 1] == STEP:
            runs[-1] = (runs[-1][0], frame + 1)
        else:
            runs.append((frame, frame + 1))
    return runs


def _wrong_dates(dates: Sequence[datetime]) -> tuple[ProblemKind, str] | None:
    steps = [later - earlier for earlier, later in pairwise(dates)]
    if any(step <= timedelta(0) for step in steps):
        return "unsorted-times", "its dates do not ascend"
    odd = [step for step in steps if step % STEP]
    return ("cadence", f"two frames are {odd[0]} apart; MeteoNet's come every 5 minutes") if odd else None


def _largest(frame: np.ndarray, product: str) -> int:
    return int(frame[frame != 255].max(initial=0)) if product == "reflectivity_old" else int(frame.max())


def _wrong_unit(product: str, *, low: int, high: int, small: bool) -> str | None:
    """Say what speaks against a file's being what its name says; ``small`` is whether a value lies in 1 to 7."""
    if product == "reflectivity_old" and (low < 0 or high > 100 or small):
        return f"values from {low} to {high} are no whole dBZ of 0, 8, 16, 20, ...; is it rainfall or the new product?"
    if product == "reflectivity_new" and (low < -200 or low >= 0 or high > 1000):
        return f"values from {low} to {high} are no tenths of dBZ with -100 for no echo; is it another product?"
    if product == "rainfall" and (low < -1 or (high >= 20 and not small)):
        return f"values from {low} to {high} are no hundredths of mm; is it reflectivity in dBZ?"
    return None


def _seconds(time: datetime) -> int:
    return int(time.replace(tzinfo=UTC).timestamp())
