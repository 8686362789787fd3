"""Windows of an archive in SEVIR's layout: ``CATALOG.csv`` and HDF5 files of whole events, time last.

The events, their order and the windows are those of the public SEVIR loader (method.md 4.1; Earthformer's
``SEVIRDataLoader``): rows of one image type, inside a split's dates, with at most so much missing, ids that
stand once, sorted by id; windows of ``frames`` every ``window_stride`` frames, whole ones only.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the LZ4 and Zstd filters with h5py
import numpy as np

from .source import WindowKey
from .spec import DataError, DatasetSpec, Split

CATALOG = "CATALOG.csv"
_COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")
_BLOCK = 4096
_BLOCKS_PER_FILE = 256


@dataclass(frozen=True)
class Event:
    """One row of the catalog that is used."""

    id: str
    file_name: str
    file_index: int
    time: datetime


class ArchiveSource:
    """A :class:`~simcast_hpc.data.source.WindowSource` over an archive in SEVIR's layout."""

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
                truncated or not HDF5, a data set missing or of the wrong type or number of frames.
        """
        self.spec, self.root, self.frames = spec, Path(root), frames
        self.window_stride, self.frame_stride = window_stride, frame_stride
        self.events = _choose_events(spec, self.root, split, max_percent_missing, file_names)
        self._handles: tuple[int, dict[str, h5py.File]] = (os.getpid(), {})
        shapes = {name: self._check_file(name, rows) for name, rows in self._rows_by_file().items()}
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
        event = self.events[number]
        first = place * self.window_stride * self.frame_stride
        last = first + (self.frames - 1) * self.frame_stride
        try:
            stored = self._dataset(event.file_name)[event.file_index, :, :, first : last + 1]
        except OSError as error:
            raise DataError(f"{self._path(event.file_name)}: event {event.id} cannot be read: {error}") from error
        # The frames between are read too: HDF5 takes ten times as long over a selection with a stride.
        return np.ascontiguousarray(np.moveaxis(stored[..., :: self.frame_stride], -1, 0))

    @property
    def dates(self) -> tuple[str, ...]:
        """UTC dates of the events, each once, in order."""
        return tuple(sorted({event.time.date().isoformat() for event in self.events}))

    @property
    def fingerprint(self) -> str:
        """Hash of the chosen windows and of the files' bytes (all of a small file, 256 blocks of a large one)."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.frames} {self.window_stride} {self.frame_stride}".encode())
        for event in self.events:
            digest.update(f"{event.id} {event.file_name} {event.file_index} {event.time.isoformat()}\n".encode())
        for name in self._rows_by_file():
            digest.update(_sample_bytes(self._path(name)))
        return digest.hexdigest()[:16]

    def _rows_by_file(self) -> dict[str, list[Event]]:
        rows: dict[str, list[Event]] = {}
        for event in self.events:
            rows.setdefault(event.file_name, []).append(event)
        return rows

    def _path(self, file_name: str) -> Path:
        return self.root / self.spec.folder / file_name

    def _dataset(self, file_name: str) -> h5py.Dataset:
        owner, handles = self._handles
        if owner != os.getpid():  # a worker made by fork must not share the parent's open files
            handles = {}
            self._handles = (os.getpid(), handles)
        if file_name not in handles:
            handles[file_name] = h5py.File(self._path(file_name), "r")
        stored = handles[file_name][self.spec.image_type]
        assert isinstance(stored, h5py.Dataset)
        return stored

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": (-1, {})}

    def _check_file(self, file_name: str, rows: list[Event]) -> tuple[int, int, int]:
        path, kind = self._path(file_name), self.spec.image_type
        if not path.is_file():
            raise DataError(
                f"{self.root / CATALOG} lists event {rows[0].id} in {file_name}, but there is no file {path}"
            )
        try:
            with h5py.File(path, "r") as file:
                stored = file.get(kind)
                if not isinstance(stored, h5py.Dataset):
                    raise DataError(f"{path} has no data set {kind!r}; it holds {sorted(file.keys())}")
                shape, dtype = stored.shape, stored.dtype
        except OSError as error:
            raise DataError(f"{path} is truncated or not an HDF5 file: {error}; fetch it again") from error
        want = self.spec.frames_per_event
        if dtype != np.uint8 or len(shape) != 4:
            raise DataError(f"{path}: {kind!r} is {dtype} {shape}; it must be uint8 [events, H, W, frames]")
        if want is not None and shape[3] != want:
            raise DataError(f"{path}: {kind!r} has {shape[3]} frames an event; {self.spec.name} has {want}")
        beyond = [row for row in rows if not 0 <= row.file_index < shape[0]]
        if beyond:
            raise DataError(
                f"{self.root / CATALOG} places event {beyond[0].id} at index {beyond[0].file_index} of {path}, "
                f"which holds {shape[0]} events"
            )
        return shape[1], shape[2], shape[3]


def _choose_events(
    spec: DatasetSpec, root: Path, split: Split, max_percent_missing: float | None, file_names: Sequence[str] | None
) -> list[Event]:
    catalog = root / CATALOG
    try:
        with catalog.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            absent = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if absent:
                raise DataError(f"{catalog} has no column {', '.join(absent)}; it has {reader.fieldnames}")
            rows = list(reader)
    except OSError as error:
        raise DataError(f"the catalog {catalog} cannot be read: {error.strerror}; is data.root right?") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the catalog {catalog} is no UTF-8 text: {error}; fetch it again") from error
    choose = spec.splits.chooser(root)
    chosen: list[Event] = []
    for number, row in enumerate(rows, start=2):
        absent = [column for column in _COLUMNS if row[column] is None]
        if absent:
            raise DataError(f"{catalog}, line {number}, event {row['id']}: it ends before {absent[0]}; was it cut?")
        if row["img_type"] != spec.image_type:
            continue
        try:
            event = Event(row["id"], row["file_name"], int(row["file_index"]), _utc(row["time_utc"]))
            missing = float(row["pct_missing"] or "nan")  # unknown is not "none": the public loader drops it too
        except ValueError as error:
            raise DataError(f"{catalog}, line {number}, event {row['id']}: {error}") from error
        if file_names is not None and event.file_name not in file_names:
            continue
        if max_percent_missing is not None and not missing <= max_percent_missing:
            continue
        if split in ("all", choose(event.id, event.time)):
            chosen.append(event)
    times_seen = Counter(event.id for event in chosen)  # SEVIR repeats some ids; the public loader drops them all
    events = sorted((event for event in chosen if times_seen[event.id] == 1), key=lambda event: event.id)
    if not events:
        raise DataError(
            f"split {split!r} of {spec.name} is empty in {catalog}: {len(rows)} rows, none of type "
            f"{spec.image_type!r} inside the split with at most {max_percent_missing} % missing"
            + (f" in files {list(file_names)}" if file_names is not None else "")
        )
    return events


def _utc(text: str) -> datetime:
    """Return a time without a zone, as SEVIR writes UTC; one with a zone is turned to UTC first."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)


def _sample_bytes(path: Path) -> bytes:
    """Return a hash of the file's size and of evenly spaced blocks of it: 1 MiB at most, however large the file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _BLOCK * _BLOCKS_PER_FILE:
            digest.update(file.read())
        else:
            for place in range(_BLOCKS_PER_FILE):
                file.seek((size - _BLOCK) * place // (_BLOCKS_PER_FILE - 1))
                digest.update(file.read(_BLOCK))
    return digest.digest()
