"""Windows of prepared shards: identical, in the same order, to those of the data they were prepared from."""

from collections.abc import Collection
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import DatasetSpec, Split
from simcast_hpc.data.empty_split import empty_split, in_other_splits, too_many_missing
from simcast_hpc.data.hdf5_files import OpenFiles
from simcast_hpc.data.hdf5_guard import HDF5_ERRORS
from simcast_hpc.data.importance_sampling import window_means
from simcast_hpc.data.sampling_statistics import STATISTICS, EventStatistics, read_statistics
from simcast_hpc.data.window_source import WindowKey, fingerprint

from .local_copy import stage
from .shard_format import SPLITS, Index, Manifest, check_present, read_index, read_manifest, require_description


class ShardSource:
    """A :class:`~simcast_hpc.data.window_source.WindowSource` over prepared shards."""

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
        file_names: Collection[str] | None = None,
    ):
        """Read manifest and index; for the arguments see :class:`~simcast_hpc.data.archive_windows.ArchiveSource`.

        Windows with an entirely missing frame are skipped, except for an archive in SEVIR's layout, whose readers
        keep them.

        Raises:
            DataError: the preparation is unfinished, a shard of the split is missing or has another size, the data
                was prepared with another description, or the split is empty.
        """
        # 1. Manifest
        self.spec, self.root, self.frames = spec, Path(root), frames
        self.window_stride, self.frame_stride = window_stride, frame_stride
        self.manifest = read_manifest(self.root)
        require_description(spec, self.root, self.manifest)
        self.grid: tuple[int, int] = self.manifest.grid
        kept = (self.manifest.frames_per_event + frame_stride - 1) // frame_stride
        if frames > kept:
            raise DataError(
                f"windows of {frames} frames do not fit in events of {kept} frames ({self.manifest.frames_per_event} "
                f"prepared, data.frame_stride={frame_stride}) in {self.root}; reduce sequence.frames_in or frames_out "
                "(--frames-in, --frames-out)"
            )
        # 2. Events of the split
        index = read_index(self.root, self.manifest)
        events = _choose(index, self.manifest, split, max_percent_missing, file_names)
        if not len(events):
            lost = _lost(index, self.manifest, split, max_percent_missing, file_names)
            raise empty_split(spec, str(self.root), split, len(index), lost)
        check_present(self.root, self.manifest, np.unique(index.shard[events]).tolist())
        # 3. Windows
        self._starts, self._events = self._windows(index, events, kept)
        if not len(self._starts):
            raise DataError(
                f"split {split!r} of {spec.name} in {self.root} has no window of {frames} frames without a gap"
            )
        self._index, self._open = index, OpenFiles()
        self._prepared = self.root  # where the statistics are, also if shards are read from a local copy

    def _windows(self, index: Index, events: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
        """Return first frame (after ``frame_stride``) and event (row of the index) of each window."""
        starts = np.arange(0, kept - self.frames + 1, self.window_stride, dtype=np.int32)
        complete = np.ones((len(events), len(starts)), bool)
        if index.gaps is not None and self.manifest.whole_frames:
            gaps = np.cumsum(index.gaps[events][:, :: self.frame_stride], axis=1)
            gaps = np.concatenate([np.zeros((len(events), 1), gaps.dtype), gaps], axis=1)
            complete = gaps[:, starts + self.frames] == gaps[:, starts]
        event, window = np.nonzero(complete)
        return starts[window], events[event].astype(np.int32)

    def __len__(self) -> int:
        return len(self._starts)

    def stage(self, into: Path) -> None:
        """Copy the needed shards below ``into``, a folder on a local disk, and read from there."""
        used = np.unique(self._index.shard[np.unique(self._events)])
        self.root = stage(self.root, self.manifest, used.tolist(), into)

    def statistics(self) -> EventStatistics:
        """Return the rain statistics of each window, float64 ``[N]``.

        Raises:
            DataError: the preparation wrote none, or they are damaged.
        """
        frames = self.manifest.frames_per_event
        stored = read_statistics(
            self._prepared, index_sha256=self.manifest.index.sha256, events=len(self._index), frames=frames
        )
        if stored is None:
            raise DataError(
                f"{self._prepared / STATISTICS} does not exist, because an earlier version prepared the data; run "
                "`simcast data prepare` again into another folder, or set data.sampling=null"
            )
        return window_means(stored, self._events, self._starts, frames=self.frames, frame_stride=self.frame_stride)

    def mean_rates(self) -> np.ndarray:
        """Return the mean rain rate of each window in mm/h, float64 ``[N]``; errors as :meth:`statistics`."""
        return self.statistics().mean_rate

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        window = range(len(self))[index]
        return WindowKey(bytes(self._index.id[self._events[window]]).decode(), int(self._starts[window]))

    def read(self, index: int) -> np.ndarray:
        """Return window ``index`` as uint8 ``[T, H, W]``; only its frames are decompressed.

        Raises:
            DataError: the shard is damaged or incomplete.
        """
        return self.read_frames(index, 0, self.frames)

    def read_frames(self, index: int, first: int, last: int) -> np.ndarray:
        """Return frames ``first .. last - 1`` of window ``index``, uint8 ``[last - first, H, W]``; errors as above."""
        window = range(len(self))[index]
        event = int(self._events[window])
        path = self.root / self.manifest.shards[self._index.shard[event]].name
        row, count = int(self._index.row[event]), last - first
        begin = (int(self._starts[window]) + first) * self.frame_stride
        try:
            codes = self._codes(path, self.manifest.shards[self._index.shard[event]].events)
            self._open.check_row(path, codes, row)
            if self.frame_stride == 1:
                return codes[row, begin : begin + count]
            return np.stack([codes[row, begin + number * self.frame_stride] for number in range(count)])
        except HDF5_ERRORS as error:
            name = bytes(self._index.id[event]).decode()
            raise DataError(f"{path}: event {name} cannot be read: {error}; inspect {self.root}") from error

    def _codes(self, path: Path, events: int) -> h5py.Dataset:
        is_new = path not in self._open
        codes = self._open.get(path).get("codes")
        if not isinstance(codes, h5py.Dataset):
            raise OSError("it contains no dataset 'codes'")
        if is_new:
            frames, each = self.manifest.frames_per_event, self.manifest.chunk_frames
            expected = (events, frames, *self.grid)
            if codes.dtype != np.uint8 or codes.shape != expected or codes.chunks is None:
                raise OSError(f"'codes' is {codes.dtype} {list(codes.shape)}, not uint8 {list(expected)} in chunks")
            chunks = events * ((frames + each - 1) // each)
            if codes.id.get_num_chunks() != chunks:
                raise OSError(f"{codes.id.get_num_chunks()} of {chunks} chunks exist")  # HDF5 would read zeros
        return codes

    @property
    def dates(self) -> tuple[str, ...]:
        """Distinct UTC dates of the events, sorted."""
        days = np.unique(self._index.time[np.unique(self._events)] // 86400)
        return tuple(datetime.fromtimestamp(int(day) * 86400, UTC).date().isoformat() for day in days)

    @property
    def fingerprint(self) -> str:
        """Hash of the selected windows and of the checksums of at most 16 events, equal to that of the archive."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        events, first_windows, windows = np.unique(self._events, return_index=True, return_counts=True)
        order = np.argsort(first_windows)
        events, windows = events[order], windows[order]
        return fingerprint(
            f"{self.frames} {self.window_stride} {self.frame_stride}",
            self._index.id[events].tolist(),
            self._index.time[events],
            windows,
            lambda number: self._index.sha256[events[number]].tobytes(),
        )


def _lost(
    index: Index,
    manifest: Manifest,
    split: Split,
    max_percent_missing: float | None,
    file_names: Collection[str] | None,
) -> list[tuple[int, str]]:
    """Return number and reason of the events that :func:`_choose` rejects."""
    in_files = np.ones(len(index), bool)
    if file_names is not None:
        in_files = np.isin(index.file, [number for number, name in enumerate(manifest.files) if name in file_names])
    names = np.array(SPLITS)[index.split]
    in_split = in_files & ((names == split) | (split == "all"))
    others = in_files & ~in_split
    few = in_split.copy()
    if max_percent_missing is not None and max_percent_missing < 100:
        few &= index.percent_missing <= max_percent_missing
    return [
        (int((~in_files).sum()), f"are in other files than {list(file_names or ())} (data.file_names)"),
        (int(others.sum()), in_other_splits(names[others].tolist(), index.time[others].tolist(), wanted=split)),
        *too_many_missing(index.percent_missing[in_split], max_percent_missing),
        (int(few.sum()), "have an id that occurs more than once, or were skipped by the preparation"),
    ]


def _choose(
    index: Index,
    manifest: Manifest,
    split: Split,
    max_percent_missing: float | None,
    file_names: Collection[str] | None,
) -> np.ndarray:
    """Return the rows of the events of a split, sorted by id (as ``archive_catalog.choose_events``)."""
    chosen = np.ones(len(index), bool) if split == "all" else index.split == SPLITS.index(split)
    if max_percent_missing is not None and max_percent_missing < 100:  # a limit of 100 keeps NaN (unknown) too
        chosen &= index.percent_missing <= max_percent_missing
    if file_names is not None:
        chosen &= np.isin(index.file, [number for number, name in enumerate(manifest.files) if name in file_names])
    rows = np.flatnonzero(chosen)
    _, first, counts = np.unique(index.id[rows], return_index=True, return_counts=True)
    unique = rows[first[counts == 1]]
    return unique[index.shard[unique] >= 0]
