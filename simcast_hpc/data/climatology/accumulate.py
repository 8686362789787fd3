"""Accumulate a climatology event by event. Memory depends on the grid and the number of days, not on the events.

Everything without a map follows from histograms of pixel values, which are exact for uint8 data: means, percentiles,
shares of wet and missing pixels.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.prepare.raw_events import RawEvent
from simcast_hpc.data.sampling_statistics import frame_histograms, rates

from .persistence_counts import PersistenceCounts

CODES = MISSING_CODE + 1
NO_SPLIT = "no split"


@dataclass
class DomainMaps:
    """Sums per pixel of the domain, int64 or float64 ``[H, W]``; a tile adds to its part.

    Attributes:
        frames: frames of the pixel, valid or not.
        valid: valid frames.
        echo: valid frames with an echo.
        wet: valid frames at or above the first threshold.
        rate: sum of the rate over valid frames.
    """

    frames: np.ndarray
    valid: np.ndarray
    echo: np.ndarray
    wet: np.ndarray
    rate: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> "DomainMaps":
        """Return sums of no frames."""
        frames, valid, echo, wet = np.zeros((4, *shape), np.int64)
        return cls(frames, valid, echo, wet, np.zeros(shape, np.float64))

    def grown(self, shape: tuple[int, int]) -> "DomainMaps":
        """Return the same sums on a domain that is larger below and at the right."""
        pads = [(0, max(0, new - old)) for old, new in zip(self.frames.shape, shape, strict=True)]
        return DomainMaps(*(np.pad(one, pads) for one in (self.frames, self.valid, self.echo, self.wet, self.rate)))


@dataclass
class Climatology:
    """Sums over the frames of a data set; add events with :meth:`add`.

    Attributes:
        spec: description, which defines encoding, thresholds and cadence.
        by_day: counts of the 256 codes by UTC date, int64 ``[256]``.
        by_month_and_hour: the same by month and UTC hour, int64 ``[12, 24, 256]``.
        by_split: the same by split.
        maps: sums per pixel.
        events: number of events by split and year.
        persistence: contingency counts of persistence by split and lead time.
        repeated_frames: number of frames with an echo that equal the frame before, by date: a radar that repeats.
    """

    spec: DatasetSpec
    by_day: dict[str, np.ndarray] = field(default_factory=dict)
    by_month_and_hour: np.ndarray = field(default_factory=lambda: np.zeros((12, 24, CODES), np.int64))
    by_split: dict[str, np.ndarray] = field(default_factory=dict)
    frames_by_day: Counter[str] = field(default_factory=Counter)
    maps: DomainMaps = field(default_factory=lambda: DomainMaps.empty((0, 0)))
    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    persistence: dict[str, PersistenceCounts] = field(default_factory=dict)
    repeated_frames: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rates = np.append(rates(self.spec), 0.0)
        self._first_threshold = self.spec.threshold_codes()[0]
        self._first_echo = self.spec.encoding.first_echo

    def add(self, event: RawEvent, codes: np.ndarray, corner: tuple[int, int] = (0, 0)) -> None:
        """Add an event. Entirely missing frames, such as gaps of an import, are not counted, unless all are.

        Args:
            event: its metadata.
            codes: frames, uint8 ``[T, H, W]``, 255 where missing.
            corner: row and column of the upper left pixel in the domain.
        """
        # 1. Histograms by time and split
        split = event.split or NO_SPLIT
        histograms = frame_histograms(codes)
        step = self.spec.step_minutes * 60
        moments = [datetime.fromtimestamp(event.begin + number * step, UTC) for number in range(len(codes))]
        exists = [bool(histogram[:MISSING_CODE].any()) for histogram in histograms]
        if not any(exists):  # a tile outside of the coverage
            exists = [True] * len(codes)
        for moment, histogram, one_exists in zip(moments, histograms, exists, strict=True):
            if not one_exists:
                continue
            day = f"{moment:%Y-%m-%d}"
            self.frames_by_day[day] += 1
            self.by_day[day] = self.by_day.get(day, 0) + histogram
            self.by_month_and_hour[moment.month - 1, moment.hour] += histogram
        self.by_split[split] = self.by_split.get(split, 0) + histograms[exists].sum(0)
        self.events[split, f"{moments[0]:%Y}"] += 1
        # 2. Maps
        self._add_maps(codes[exists], corner)
        # 3. Persistence, and frames that repeat the one before
        counts = self.persistence.setdefault(split, PersistenceCounts(self.spec.threshold_codes()))
        counts.add(codes, seed=int.from_bytes(hashlib.sha256(event.id.encode()).digest()[:4], "big"))
        for number in range(1, len(codes)):
            has_echo = histograms[number, self._first_echo : MISSING_CODE].any()
            if has_echo and np.array_equal(codes[number], codes[number - 1]):
                self.repeated_frames[f"{moments[number]:%Y-%m-%d}"] += 1

    def _add_maps(self, codes: np.ndarray, corner: tuple[int, int]) -> None:
        height, width = (first + size for first, size in zip(corner, codes.shape[1:], strict=True))
        domain = self.maps.frames.shape
        if height > domain[0] or width > domain[1]:
            self.maps = self.maps.grown((max(height, domain[0]), max(width, domain[1])))
        place = slice(corner[0], height), slice(corner[1], width)
        self.maps.frames[place] += len(codes)
        for frame in codes:  # one frame at a time, which stays in the cache
            valid = frame != MISSING_CODE
            self.maps.valid[place] += valid
            self.maps.echo[place] += valid & (frame >= self._first_echo)
            self.maps.wet[place] += valid & (frame >= self._first_threshold)
            self.maps.rate[place] += self._rates[frame]
