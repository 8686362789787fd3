"""Events of an archive in SEVIR's layout, for preparation: all rows of the image type that exist in a file."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import h5py
import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.data.archive_catalog import CATALOG, Event, archive_path, cadence_problem, read_catalog, repeated_ids
from simcast_hpc.data.archive_windows import check_archive_file, events_by_file
from simcast_hpc.data.data_errors import DataProblem
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.hdf5_files import OpenFiles
from simcast_hpc.data.hdf5_guard import HDF5_ERRORS
from simcast_hpc.distributed.ranks import Ranks

from ..hdf5_files import time_major
from .raw_events import RawEvent


class ArchiveEvents:
    """An :class:`~simcast_hpc.data.prepare.raw_events.EventSource` over an archive."""

    def __init__(self, spec: DatasetSpec, root: Path, *, file_names: Collection[str] | None = None):
        """Read the catalog and check each of its files.

        Raises:
            DataError: the catalog cannot be read, or no event is usable.
        """
        self.spec, self.root = spec, Path(root)
        # 1. Problems of files and rows
        rows = read_catalog(spec, self.root, file_names=file_names)
        self.notes = repeated_ids(rows)
        self.problems: list[DataProblem] = []
        shapes: dict[str, tuple[int, int, int]] = {}
        digest = hashlib.sha256()
        for name, file_rows in sorted(events_by_file(rows).items()):
            path = archive_path(self.root, spec, name)
            shape, problems = check_archive_file(path, spec, file_rows)
            self.problems += [DataProblem(p.kind, name, p.event, p.message) for p in problems]
            if shape is not None:
                shapes[name] = shape
            digest.update(f"{name} {path.stat().st_size if path.is_file() else -1}\n".encode())
        self._check_grids(shapes, [row.file_name for row in rows])
        cadence = [problem for row in rows if (problem := cadence_problem(spec, row)) is not None]
        self.problems += cadence
        wrong_cadence = {problem.event for problem in cadence}
        bad = {(problem.file, problem.event) for problem in self.problems}
        bad |= {(row.file_name, row.id) for row in rows if row.id in wrong_cadence}
        self._demote_repeated(rows)
        # 2. Usable events
        choose = spec.splits.chooser(self.root)
        usable = [row.file_name in shapes and not {(row.file_name, row.id), (row.file_name, "")} & bad for row in rows]
        kept = [row for row, good in zip(rows, usable, strict=True) if good]
        if not kept:
            reason = str(self.problems[0]) if self.problems else f"{CATALOG} has no row of type {spec.image_type!r}"
            raise DataError(
                f"{self.root} contains no usable event of {spec.name}: {reason}. If it is another dataset, pass "
                "--dataset; for an archive of `simcast data synth` it is --dataset synthetic"
            )
        self.events = [_raw(row, choose(row.id, row.time)) for row in kept]
        self.absent = [_raw(row, choose(row.id, row.time)) for row, good in zip(rows, usable, strict=True) if not good]
        height, width, self.frames = shapes[kept[0].file_name]
        self.grid = (height, width)
        for row in rows:
            digest.update(f"{row.id} {row.file_name} {row.file_index} {row.time} {row.percent_missing}\n".encode())
        self.identity = digest.hexdigest()[:16]
        self._open = OpenFiles()

    def _demote_repeated(self, rows: list[Event]) -> None:
        """Turn the problems of rows with a repeated id into notes: these rows are never used."""
        repeated = {note.event for note in repeated_ids(rows)}
        self.notes += [problem for problem in self.problems if problem.event in repeated]
        self.problems = [problem for problem in self.problems if problem.event not in repeated]

    def _check_grids(self, shapes: dict[str, tuple[int, int, int]], files: list[str]) -> None:
        """Add a problem for each file whose shape differs from that of most events."""
        all_shapes = [shapes[name] for name in files if name in shapes]
        usual = max(dict.fromkeys(all_shapes), key=all_shapes.count, default=None)
        for name in [name for name, shape in shapes.items() if shape != usual]:
            message = f"has [H, W, frames] {shapes[name]} and other files have {usual}; shards must have one shape"
            self.problems.append(DataProblem("grid", name, "", message))
            del shapes[name]

    def complete(self, ranks: Ranks) -> None:
        """Do nothing: the constructor has found all events."""

    def read(self, number: int) -> np.ndarray:
        """Return event ``number`` as uint8 ``[T, H, W]``.

        Raises:
            DataError: the file is damaged.
        """
        event = self.events[number]
        path = self.root / self.spec.folder / event.file
        try:
            stored = self._open.get(path)[self.spec.image_type]
            assert isinstance(stored, h5py.Dataset)
            self._open.check_row(path, stored, event.file_index)
            return time_major(stored[event.file_index])
        except HDF5_ERRORS as error:
            raise DataError(f"{path}: event {event.id} cannot be read: {error}") from error


def _raw(row: Event, split: str) -> RawEvent:
    begin = row.seconds + round(row.first_minute * 60)
    return RawEvent(row.id, row.seconds, begin, split, row.percent_missing, row.file_name, row.file_index)
