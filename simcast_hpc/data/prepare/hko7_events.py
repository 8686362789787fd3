"""Days of HKO-7 from its folder of PNG files, for preparation; for the layout see ``raw_layouts.HKO7Layout``.

A pixel is floor(255 (dBZ + 10) / 70 + 0.5) (Shi et al. 2017), which is the code of the description; 255, the missing
code, becomes 254. A frame without image or noise mask is entirely missing, and no window contains it.
"""

import hashlib
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from simcast_hpc.config import DataError
from simcast_hpc.data.data_errors import DataProblem
from simcast_hpc.data.dataset_spec import DatasetSpec, DayListSplits
from simcast_hpc.data.raw_layouts import HKO7Layout
from simcast_hpc.distributed.ranks import Ranks
from simcast_hpc.storage.npz_files import load_npz

from ..encoding import LAST_CODE, MISSING_CODE
from .raw_events import RawEvent


class HKO7Events:
    """An :class:`~.raw_events.EventSource` over HKO-7: one day per event, 240 frames from midnight."""

    def __init__(self, spec: DatasetSpec, root: Path):
        """List the frames of the listed days, and read the domain mask.

        Raises:
            DataError: a list of days, the images, or masks that the description uses are missing.
        """
        assert isinstance(spec.layout, HKO7Layout) and isinstance(spec.splits, DayListSplits)
        self.spec, self.root, self.layout = spec, Path(root), spec.layout
        self.frames = spec.frames_per_event or round(24 * 60 / spec.step_minutes)
        self.grid = (spec.grid.height, spec.grid.width)
        self._domain = None if self.layout.domain == "ignore" else self._domain_mask()
        for folder, required in ((self.layout.images, True), (self.layout.masks, self.layout.noise != "ignore")):
            if required and not (self.root / folder).is_dir():
                raise DataError(
                    f"{self.root} has no folder {folder} of HKO-7; set layout.noise: ignore in the description to read "
                    "it without noise masks"
                )
        self.events: list[RawEvent] = []
        self.absent: list[RawEvent] = []
        self.problems: list[DataProblem] = []
        self.notes: list[DataProblem] = []
        digest = hashlib.sha256(b"" if self._domain is None else self._domain.tobytes())
        for split, day in sorted(self._days(), key=lambda pair: pair[1]):
            present = self._present(day)
            digest.update(f"{day} {split} ".encode() + np.packbits(present).tobytes())
            self._add(day, split, int(present.sum()))
        self.identity = digest.hexdigest()[:16]
        if not self.events:
            raise DataError(f"{self.root / self.layout.images} contains no frame of a listed day")

    def _add(self, day: datetime, split: str, present: int) -> None:
        name, seconds = f"{day:%Y%m%d}", int(day.replace(tzinfo=UTC).timestamp())
        event = RawEvent(name, seconds, seconds, split, None, f"{self.layout.images}/{day:%Y/%m/%d}", 0)
        if not present:
            self.problems.append(DataProblem("absent-file", event.file, name, "the day has no frame"))
            self.absent.append(event._replace(percent_missing=100.0))
            return
        self.events.append(event)
        if present < self.frames:
            message = f"{self.frames - present} of {self.frames} frames are missing; no window contains them"
            self.notes.append(DataProblem("missing-frame", event.file, name, message))

    def complete(self, ranks: Ranks) -> None:
        """Do nothing: the constructor has found all events."""

    def read(self, number: int) -> np.ndarray:
        """Return a day as uint8 ``[240, H, W]``.

        Raises:
            DataError: an image or mask is damaged, or has the wrong size or mode.
        """
        day = datetime.fromtimestamp(self.events[number].time, UTC)
        codes = np.full((self.frames, *self.grid), MISSING_CODE, np.uint8)
        for frame, (image, mask) in enumerate(self._paths(day)):
            if image.is_file() and (self.layout.noise == "ignore" or mask.is_file()):
                codes[frame] = self._frame(image, mask)
        return codes

    def _frame(self, image: Path, mask: Path) -> np.ndarray:
        pixels = np.minimum(self._pixels(image), LAST_CODE)
        if self.layout.noise != "ignore":
            pixels = np.where(self._noise(mask), _masked_code(self.layout.noise), pixels)
        if self._domain is not None:
            pixels = np.where(self._domain, _masked_code(self.layout.domain), pixels)
        return pixels

    def _pixels(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                if image.mode != "L":
                    raise DataError(f"{path} has mode {image.mode}; an image of HKO-7 must be 8-bit gray (L)")
                if (shape := image.size[::-1]) != self.grid:
                    raise DataError(f"{path} has {shape} pixels; {self.spec.name} has {self.grid}")
                return np.asarray(image)
        except DataError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} is truncated or not a PNG: {error}; extract it again") from error

    def _noise(self, path: Path) -> np.ndarray:
        """Return where a noise mask excludes pixels (the file is true where they are valid)."""
        try:
            most = self.grid[0] * self.grid[1] + 1  # a longer mask is an error and is not expanded
            unpacked = zlib.decompressobj()
            valid = np.frombuffer(unpacked.decompress(path.read_bytes(), most), np.uint8)
            if not unpacked.eof and valid.size < most:
                raise zlib.error("incomplete stream")
        except (OSError, zlib.error) as error:
            raise DataError(f"{path} is truncated or not a noise mask: {error}; extract it again") from error
        if valid.size != self.grid[0] * self.grid[1]:
            raise DataError(f"{path} masks {valid.size} pixels; {self.spec.name} has {self.grid[0]} x {self.grid[1]}")
        return valid.reshape(self.grid) == 0

    def _domain_mask(self) -> np.ndarray:
        path = self.root / self.layout.domain_file
        try:
            excluded = load_npz(path, error=DataError, what="the domain mask")["exclude_mask"] != 0
        except (KeyError, ValueError) as error:
            raise DataError(
                f"the domain mask {path} cannot be read: {error}; copy it from the HKO-7 repository"
            ) from error
        if excluded.shape != self.grid:
            raise DataError(f"{path} masks {excluded.shape} pixels; {self.spec.name} has {self.grid}")
        return excluded

    def _days(self) -> list[tuple[str, datetime]]:
        days = self.spec.splits.days(self.root)  # pyright: ignore[reportAttributeAccessIssue]
        return [(split, datetime.strptime(day, "%Y%m%d")) for day, split in days.items()]

    def _present(self, day: datetime) -> np.ndarray:
        images, masks = (
            {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            for folder in (self.root / top / f"{day:%Y/%m/%d}" for top in (self.layout.images, self.layout.masks))
        )  # fmt: skip
        needs_masks = self.layout.noise != "ignore"
        return np.array([i.name in images and (not needs_masks or m.name in masks) for i, m in self._paths(day)])

    def _paths(self, day: datetime) -> list[tuple[Path, Path]]:
        paths = []
        for frame in range(self.frames):
            time = day + timedelta(minutes=frame * self.spec.step_minutes)
            stem = f"{day:%Y/%m/%d}/RAD{time:%y%m%d%H%M}00"
            image, mask = (self.root / top / stem for top in (self.layout.images, self.layout.masks))
            paths.append((image.with_suffix(".png"), mask.with_suffix(".mask")))
        return paths


def _masked_code(choice: str) -> np.uint8:
    return np.uint8(MISSING_CODE if choice == "missing" else 0)
