"""Windows of an archive in SEVIR's layout: ``CATALOG.csv`` and HDF5 files of whole events, time last.

Events and their order are chosen in ``catalog.py``; windows of ``frames`` begin every ``window_stride`` frames, whole
ones only, as those of the public SEVIR loader (method.md 4.1).
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .catalog import CATALOG, Event, choose_events
from .data_errors import DataProblem
from .dataset_spec import DatasetSpec, Split
from .hdf5_files import OpenFiles, time_major
from .window_source import WindowKey, event_checksum, fingerprint


class ArchiveSource:
    """A :class:`~simcast_hpc.data.window_source.WindowSource` over an archive in SEVIR's layout."""

    def __init__(
        self,
        spec: DatasetSpec,
        root: Path,
        *,
        split: Split,
        frames: int,
        window_stride: int = 12,
        frame_stride: int = 1,
        max_percent_missing: float | None = 0.0,
        file_names: Sequence[str] | None = None,
    ):
        """Read the catalog and look into every file that the split needs.

        Args:
            spec: the data set's description.
            root: folder of ``CATALOG.csv``.
            split: ``train``, ``val``, ``test``, or ``all``.
            frames: frames in a window, T, counted after ``frame_stride``.
            window_stride: frames between the starts of two windows of an event, counted after ``frame_stride``.
            frame_stride: every n-th frame of an event is kept.
            max_percent_missing: events with more missing pixels are left out; None keeps all.
            file_names: only events of these files (the catalog's ``file_name``); None takes all.

        Raises:
            DataError: no catalog, a column of it missing, an empty split, a row without its file, a file that is
                truncated or not HDF5, a data set missing or of the wrong type, unit or number of frames, a file
                whose ids or times are not the catalog's.
        """
        self.spec, self.root, self.frames = spec, Path(root), frames
        self.window_stride, self.frame_stride = window_stride, frame_stride
        self.events = choose_events(spec, self.root, split, max_percent_missing, file_names)
        self._open = OpenFiles()
        self._last: tuple[Event, np.ndarray] | None = None
        shapes = {name: self._check_file(name, rows) for name, rows in events_by_file(self.events).items()}
        if len(set(shapes.values())) > 1:
            raise DataError(f"files of {self.root} disagree on [H, W, frames]: {shapes}; one archive holds one grid")
        height, width, available = next(iter(shapes.values()))
        self.grid = (height, width)
        kept = (available + frame_stride - 1) // frame_stride
        if frames > kept:
            raise DataError(
                f"windows of {frames} frames are asked of events of {kept} frames ({available} in the file, "
                f"data.frame_stride={frame_stride}) in {self.root}; shorten sequence.frames_in or frames_out"
            )
        self.windows_per_event = (kept - frames) // window_stride + 1

    def __len__(self) -> int:
        return len(self.events) * self.windows_per_event

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        event, place = divmod(range(len(self))[index], self.windows_per_event)
        return WindowKey(self.events[event].id, place * self.window_stride)

    def read(self, index: int) -> np.ndarray:
        """Return window ``index`` as uint8 ``[T, H, W]``.

        Raises:
            DataError: the file broke since it was looked into.
        """
        number, place = divmod(range(len(self))[index], self.windows_per_event)
        first = place * self.window_stride * self.frame_stride
        stored = self._stored(self.events[number], first, first + (self.frames - 1) * self.frame_stride + 1)
        # The frames between are read too: HDF5 takes ten times as long over a selection with a stride.
        return time_major(stored[..., :: self.frame_stride])

    @property
    def dates(self) -> tuple[str, ...]:
        """UTC dates of the events, each once, in order."""
        return tuple(sorted({event.time.date().isoformat() for event in self.events}))

    @property
    def fingerprint(self) -> str:
        """Hash of the chosen windows and of all codes of 16 of their events (of all where there are fewer)."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(
            f"{self.frames} {self.window_stride} {self.frame_stride}",
            [event.id.encode() for event in self.events],
            np.array([event.seconds for event in self.events], np.int64),
            np.full(len(self.events), self.windows_per_event),
            lambda number: event_checksum(time_major(self._stored(self.events[number]))),
        )

    def _stored(self, event: Event, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return frames of an event, ``[H, W, frames]``; an event compressed as one is kept until the next is asked."""
        if self._last is not None and self._last[0] == event:
            return self._last[1][..., first:last]
        try:
            stored = self._open.get(self._path(event.file_name))[self.spec.image_type]
            assert isinstance(stored, h5py.Dataset)
            if stored.chunks is None or stored.chunks[3] < stored.shape[3]:
                return stored[event.file_index, :, :, first:last]
            self._last = None
            self._last = (event, stored[event.file_index])
            return self._last[1][..., first:last]
        except OSError as error:
            raise DataError(f"{self._path(event.file_name)}: event {event.id} cannot be read: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def _path(self, file_name: str) -> Path:
        return self.root / self.spec.folder / file_name

    def _check_file(self, file_name: str, rows: list[Event]) -> tuple[int, int, int]:
        path = self._path(file_name)
        shape, problems = check_archive_file(path, self.spec, rows)
        if problems:
            if problems[0].kind == "absent-file":
                raise DataError(
                    f"{self.root / CATALOG} lists event {rows[0].id} in {file_name}, but there is no file {path}"
                )
            raise DataError(f"{path}: {problems[0].says}")
        assert shape is not None
        return shape


def events_by_file(events: Sequence[Event]) -> dict[str, list[Event]]:
    """Return the events of each file, in the order given."""
    rows: dict[str, list[Event]] = {}
    for event in events:
        rows.setdefault(event.file_name, []).append(event)
    return rows


def check_archive_file(
    path: Path, spec: DatasetSpec, rows: Sequence[Event]
) -> tuple[tuple[int, int, int] | None, list[DataProblem]]:
    """Return the [H, W, frames] of an archive's file, None where it has none, and what is wrong with it.

    A problem of the whole file comes alone, without an event.
    """
    if not path.is_file():
        return None, [DataProblem("absent-file", path.name, "", f"there is no file {path}")]
    try:
        with h5py.File(path, "r") as file:
            stored = file.get(spec.image_type)
            if not isinstance(stored, h5py.Dataset):
                says = f"it has no data set {spec.image_type!r}; it holds {sorted(file.keys())}"
                return None, [DataProblem("dtype", path.name, "", says)]
            wrong = _wrong_dataset(stored, spec)
            if wrong is not None:
                return None, [DataProblem(wrong[0], path.name, "", wrong[1])]
            shape = stored.shape
            return (shape[1], shape[2], shape[3]), _rows_at_odds(file, path.name, spec, rows, shape)
    except OSError as error:
        says = f"truncated or not an HDF5 file: {error}; fetch it again"
        return None, [DataProblem("truncated", path.name, "", says)]


def _wrong_dataset(stored: h5py.Dataset, spec: DatasetSpec) -> tuple[Any, str] | None:
    kind, shape, want = spec.image_type, stored.shape, spec.frames_per_event
    if stored.dtype != np.uint8 or len(shape) != 4:
        return "dtype", f"{kind!r} is {stored.dtype} {shape}; it must be uint8 [events, H, W, frames]"
    if want is not None and shape[3] != want:
        return "missing-frame", f"{kind!r} has {shape[3]} frames an event; {spec.name} has {want}"
    units = _text(stored.attrs.get("units", stored.file.attrs.get("units")))
    if units is not None and _plain(units) != _plain(spec.encoding.unit):
        return "unit", f"{kind!r} says units={units!r}; {spec.name} is coded in {spec.encoding.unit!r}"
    return None


def _rows_at_odds(
    file: h5py.File, name: str, spec: DatasetSpec, rows: Sequence[Event], shape: tuple[int, ...]
) -> list[DataProblem]:
    problems = []
    ids, times = file.get("id"), file.get("time")
    held = None if not isinstance(ids, h5py.Dataset) else [_text(value) for value in ids[:]]
    stamps = times[:] if isinstance(times, h5py.Dataset) and times.shape == (shape[0], shape[3]) else None
    for row in rows:
        if not 0 <= row.file_index < shape[0]:
            says = f"{CATALOG} places event {row.id} at index {row.file_index} of {name}, which holds {shape[0]} events"
            problems.append(DataProblem("catalog", name, row.id, says))
        elif held is not None and held[row.file_index] != row.id:
            says = (
                f"{CATALOG} places event {row.id} at index {row.file_index}, where the file has {held[row.file_index]}"
            )
            problems.append(DataProblem("catalog", name, row.id, says))
        elif stamps is not None:
            problems += _wrong_stamps(stamps[row.file_index], spec, name, row)
    return problems


def _wrong_stamps(stamps: np.ndarray, spec: DatasetSpec, name: str, row: Event) -> list[DataProblem]:
    steps = np.diff(stamps) / 60
    if (steps <= 0).any():
        return [DataProblem("unsorted-times", name, row.id, f"the times of event {row.id} do not ascend")]
    wrong = steps[np.abs(steps - spec.step_minutes) > spec.step_minutes / 2]
    if len(wrong):
        says = f"frames of event {row.id} are {wrong[0]:g} minutes apart; {spec.name} has {spec.step_minutes:g}"
        return [DataProblem("cadence", name, row.id, says)]
    if row.seconds + round(row.first_minute * 60) != stamps[0] and row.offsets:
        return [DataProblem("catalog", name, row.id, f"{CATALOG} and the file date event {row.id} differently")]
    return []


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


def _plain(unit: str) -> str:
    """Return a unit without the ways of writing it: kg m-2 is kg/m^2."""
    return unit.lower().replace(" ", "").replace("^", "").replace("**", "").replace("m-2", "/m2").replace("h-1", "/h")
