"""Training and test windows of the study's archive, cut from events in memory."""

from functools import cached_property
from pathlib import Path

import numpy as np

from simcast_hpc.config import DataConfig
from simcast_hpc.data.dataset_spec import Split
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.data.window_source import WindowKey

from .arms import Windows
from .study import Study

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class EventWindows:
    """A ``WindowSource`` over events with the same first frames for every event."""

    def __init__(self, events: np.ndarray, names: list[str], *, frames: int, starts: range, fingerprint: str):
        """Take ``events``, uint8 ``[N, frames per event, H, W]``; windows are numbered event by event."""
        self.events, self.names, self.frames, self.starts = events, names, frames, starts
        self.fingerprint = f"{fingerprint}-{starts.start}:{starts.stop}:{starts.step}"
        self.dates: tuple[str, ...] = ()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.events.shape[2], self.events.shape[3]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.events) * len(self.starts)

    def read(self, index: int) -> np.ndarray:
        """Return window ``index``, uint8 ``[frames, H, W]``."""
        event, place = divmod(index, len(self.starts))
        first = self.starts[place]
        return self.events[event, first : first + self.frames]

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        event, place = divmod(index, len(self.starts))
        return WindowKey(self.names[event], self.starts[place])


class Archive:
    """The study's archive in ``root``, written on first use."""

    def __init__(self, study: Study, root: Path):
        self.study, self.root = study, root

    def write(self) -> None:
        """Write the archive, or check that the existing one has these settings.

        Raises:
            DataError: ``root`` contains another archive.
        """
        settings = self.study.archive
        write_archive(
            self.root,
            seed=settings.seed,
            events={str(split): count for split, count in settings.events.items()},
            size=settings.size,
            frames_per_event=settings.frames_per_event,
        )

    def windows(
        self, split: Split, *, frames: int, which: Windows = "strided", room: int = 0, limit: int | None = None
    ) -> EventWindows:
        """Return the windows of ``frames`` frames of a split.

        Args:
            split: train, val or test.
            frames: frames per window.
            which: see :class:`~benchmarks.evidence.arms.Arm`.
            room: later frames that ``with_future`` requires.
            limit: use only the first events, this many.
        """
        events, names, fingerprint = self._events[split]
        events, names = events[:limit], names[:limit]
        last = events.shape[1] - frames - (room if which == "with_future" else 0)
        step = self.study.window_stride if split == "train" else self.study.scoring.window_stride
        step = 1 if which == "anywhere" else step
        return EventWindows(events, names, frames=frames, starts=range(0, last + 1, step), fingerprint=fingerprint)

    @cached_property
    def _events(self) -> dict[str, tuple[np.ndarray, list[str], str]]:
        result = {}
        frames = self.study.archive.frames_per_event
        for split in SPLITS:
            config = DataConfig(dataset="synthetic", root=self.root, window_stride=frames)
            source = open_windows(config, split=split, frames=frames)
            numbers = range(len(source))
            events = np.stack([source.read(number) for number in numbers])
            result[split] = (events, [source.key(number).event for number in numbers], source.fingerprint)
        return result
