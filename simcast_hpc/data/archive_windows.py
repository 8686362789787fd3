"""Windows of an archive in SEVIR's layout: ``CATALOG.csv`` and HDF5 files of events, time last.

``archive_catalog.py`` selects and sorts the events; complete windows of ``frames`` frames start every
``window_stride`` frames, as in the public SEVIR loader.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError

from .archive_catalog import CATALOG, Event, archive_path, choose_events, offset_count_problem
from .data_errors import DataProblem
from .dataset_spec import DatasetSpec, Split
from .hdf5_files import OpenFiles, time_major
from .hdf5_guard import HDF5_ERRORS, check_hdf5, read_column, read_texts, text_attribute
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
        """Read the catalog and check each file that the split needs.

        Args:
            spec: the dataset description.
            root: folder of ``CATALOG.csv``.
            split: ``train``, ``val``, ``test`` or ``all``.
            frames: frames per window, T, counted after ``frame_stride``.
            window_stride: frames between the starts of two windows of an event, counted after ``frame_stride``.
            frame_stride: keep every n-th frame of an event.
            max_percent_missing: skip events with a larger percentage of missing pixels; None keeps all.
            file_names: use only events of these files (``file_name`` in the catalog); None uses all.

        Raises:
            DataError: the catalog or a column is missing; the split is empty; a file is missing, truncated or not
                HDF5; an HDF5 dataset is missing or has the wrong type, unit or number of frames; or ids or times of
                a file contradict the catalog.
        """
        self.spec, self.root, self.frames = spec, Path(root), frames
        self.window_stride, self.frame_stride = window_stride, frame_stride
        self.events = choose_events(spec, self.root, split, max_percent_missing, file_names)
        # Files and their shape
        self._open = OpenFiles()
        self._last: tuple[Event, np.ndarray] | None = None
        shapes = {name: self._check_file(name, rows) for name, rows in events_by_file(self.events).items()}
        if len(set(shapes.values())) > 1:
            raise DataError(
                f"files of {self.root} have different [H, W, frames]: {shapes}; an archive must have one shape"
            )
        height, width, available = next(iter(shapes.values()))
        self.grid = (height, width)
        kept = (available + frame_stride - 1) // frame_stride
        if frames > kept:
            raise DataError(
                f"windows of {frames} frames do not fit in events of {kept} frames ({available} in the file, "
                f"data.frame_stride={frame_stride}) in {self.root}; reduce sequence.frames_in or frames_out"
            )
        self.windows_per_event = (kept - frames) // window_stride + 1

    def __len__(self) -> int:
        return len(self.events) * self.windows_per_event

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        event, window = divmod(range(len(self))[index], self.windows_per_event)
        return WindowKey(self.events[event].id, window * self.window_stride)

    def read(self, index: int) -> np.ndarray:
        """Return window ``index`` as uint8 ``[T, H, W]``.

        Raises:
            DataError: the file was damaged after it was checked.
        """
        return self.read_frames(index, 0, self.frames)

    def read_frames(self, index: int, first: int, last: int) -> np.ndarray:
        """Return frames ``first .. last - 1`` of window ``index``, uint8 ``[last - first, H, W]``; errors as above."""
        number, window = divmod(range(len(self))[index], self.windows_per_event)
        begin = (window * self.window_stride + first) * self.frame_stride
        stored = self._stored(self.events[number], begin, begin + (last - first - 1) * self.frame_stride + 1)
        # Read the frames in between as well: HDF5 is ten times slower for a selection with a stride.
        return time_major(stored[..., :: self.frame_stride])

    @property
    def dates(self) -> tuple[str, ...]:
        """Distinct UTC dates of the events, sorted."""
        return tuple(sorted({event.time.date().isoformat() for event in self.events}))

    @property
    def fingerprint(self) -> str:
        """Hash of the selected windows and of the frames of at most 16 of their events."""
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
        """Return frames of an event, ``[H, W, frames]``; the last event stored as one chunk is cached."""
        if self._last is not None and self._last[0] == event:
            return self._last[1][..., first:last]
        try:
            stored = self._open.get(self._path(event.file_name))[self.spec.image_type]
            assert isinstance(stored, h5py.Dataset)
            self._open.check_row(self._path(event.file_name), stored, event.file_index)
            if stored.chunks is None or stored.chunks[3] < stored.shape[3]:
                return stored[event.file_index, :, :, first:last]
            self._last = None
            self._last = (event, stored[event.file_index])
            return self._last[1][..., first:last]
        except HDF5_ERRORS as error:
            raise DataError(f"{self._path(event.file_name)}: event {event.id} cannot be read: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def _path(self, file_name: str) -> Path:
        return self.root / self.spec.folder / file_name

    def _check_file(self, file_name: str, rows: list[Event]) -> tuple[int, int, int]:
        path = archive_path(self.root, self.spec, file_name)
        shape, problems = check_archive_file(path, self.spec, rows)
        if problems:
            if problems[0].kind == "absent-file":
                raise DataError(
                    f"{self.root / CATALOG} lists event {rows[0].id} in {file_name}, but there is no file {path}"
                )
            raise DataError(f"{path}: {problems[0].message}")
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
    """Return ``[H, W, frames]`` of a file of an archive, or None, and its problems.

    A problem that makes the file unusable is the only one returned, and has no event.

    Raises:
        DataError: the file is not self-contained, see :func:`check_hdf5`.
    """
    if not path.is_file():
        return None, [DataProblem("absent-file", path.name, "", f"there is no file {path}")]
    try:
        with h5py.File(path, "r") as file:
            check_hdf5(file, path, reads_whole=False)
            stored = file.get(spec.image_type)
            if not isinstance(stored, h5py.Dataset):
                message = f"it has no dataset {spec.image_type!r}; it contains {sorted(file.keys())}"
                return None, [DataProblem("dtype", path.name, "", message)]
            problem = _dataset_problem(stored, spec)
            if problem is not None:
                return None, [DataProblem(problem[0], path.name, "", problem[1])]
            shape = stored.shape
            problems = _row_problems(file, path.name, spec, rows, shape)
            unusable = [problem for problem in problems if problem.kind == "dtype"]
            return (None, unusable) if unusable else ((shape[1], shape[2], shape[3]), problems)
    except DataError:
        raise
    except HDF5_ERRORS as error:
        message = f"truncated or not an HDF5 file: {error}; download it again"
        return None, [DataProblem("truncated", path.name, "", message)]


def _dataset_problem(stored: h5py.Dataset, spec: DatasetSpec) -> tuple[Any, str] | None:
    name, shape, frames = spec.image_type, stored.shape, spec.frames_per_event
    if stored.dtype != np.uint8 or len(shape) != 4:
        return "dtype", f"{name!r} is {stored.dtype} {shape}; it must be uint8 [events, H, W, frames]"
    if frames is not None and shape[3] != frames:
        return "missing-frame", f"{name!r} has {shape[3]} frames per event; {spec.name} has {frames}"
    units = text_attribute(stored if "units" in stored.attrs else stored.file, "units")
    if units is not None and _normalize(units) != _normalize(spec.encoding.unit):
        return "unit", f"{name!r} has units={units!r}; {spec.name} is encoded in {spec.encoding.unit!r}"
    return None


def _row_problems(
    file: h5py.File, name: str, spec: DatasetSpec, rows: Sequence[Event], shape: tuple[int, ...]
) -> list[DataProblem]:
    problems = []
    ids, times = file.get("id"), file.get("time")
    try:
        stored_ids = read_texts(ids) if isinstance(ids, h5py.Dataset) else None
        stamps = None
        if isinstance(times, h5py.Dataset) and times.shape == (shape[0], shape[3]):
            stamps = read_column(times).astype(np.float64)
    except ValueError as error:
        return [DataProblem("dtype", name, "", str(error))]
    if stored_ids is not None and len(stored_ids) != shape[0]:
        return [DataProblem("dtype", name, "", f"it has {len(stored_ids)} ids for {shape[0]} events")]
    ids_of_rows = Counter(row.id for row in rows)
    by_index: dict[int, str] = {}
    for row in rows:
        # Rows of a repeated id are never used together, see choose_events.
        other = by_index.setdefault(row.file_index, row.id) if ids_of_rows[row.id] == 1 else row.id
        if other != row.id:
            message = f"{CATALOG} has events {other} and {row.id} at the same index {row.file_index} of {name}"
            problems.append(DataProblem("catalog", name, row.id, message))
        elif message := offset_count_problem(row, shape[3], spec.frames_per_event):
            problems.append(DataProblem("catalog", name, row.id, message))
        elif not 0 <= row.file_index < shape[0]:
            message = (
                f"{CATALOG} has event {row.id} at index {row.file_index} of {name}, which contains {shape[0]} events"
            )
            problems.append(DataProblem("catalog", name, row.id, message))
        elif stored_ids is not None and stored_ids[row.file_index] != row.id:
            stored_id = stored_ids[row.file_index]
            message = f"{CATALOG} has event {row.id} at index {row.file_index}, where the file has {stored_id}"
            problems.append(DataProblem("catalog", name, row.id, message))
        elif stamps is not None:
            problems += _time_problems(stamps[row.file_index], spec, name, row)
    return problems


def _time_problems(stamps: np.ndarray, spec: DatasetSpec, name: str, row: Event) -> list[DataProblem]:
    steps = np.diff(stamps) / 60
    if not (steps > 0).all():
        return [DataProblem("unsorted-times", name, row.id, f"the times of event {row.id} are not ascending")]
    wrong = steps[np.abs(steps - spec.step_minutes) > spec.step_minutes / 2]
    if len(wrong):
        message = f"frames of event {row.id} are {wrong[0]:g} minutes apart; {spec.name} has {spec.step_minutes:g}"
        return [DataProblem("cadence", name, row.id, message)]
    if row.seconds + round(row.first_minute * 60) != stamps[0] and row.offsets:
        return [DataProblem("catalog", name, row.id, f"{CATALOG} and the file have different times for event {row.id}")]
    return []


def _normalize(unit: str) -> str:
    """Return a unit in a normalized spelling: kg m-2 is kg/m^2."""
    return unit.lower().replace(" ", "").replace("^", "").replace("**", "").replace("m-2", "/m2").replace("h-1", "/h")
