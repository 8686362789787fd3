"""First pass of an import: read each file once and record its frames and their rain statistics.

Results are cached in the target, so that an interrupted import does not read a file again.
"""

import hashlib
import logging
import time as clock
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.distributed.ranks import Ranks
from simcast_hpc.monitoring.progress import Progress
from simcast_hpc.radar import RadarFrame, frame_times, read_frames
from simcast_hpc.radar.radar_frame import RadarGrid, Unit
from simcast_hpc.storage.atomic_files import remove, sweep

from .scan_table import NO_INTERVAL, FrameKind, ScanTable, read_table, write_table
from .source_files import SourceFile
from .wet_rule import WetRule, row_blocks, tile_statistics

logger = logging.getLogger(__name__)
PARTS = "scan"
_PART_SECONDS, _PART_FRAMES = 20.0, 5000
_STORE_FRAMES = 32  # frames of a Zarr store that are read at once
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class FrameOptions:
    """How frames are read: preferred unit, number of the ODIM dataset, and what the statistics depend on."""

    unit: Unit
    rule: WetRule
    z_r: ZRRelation
    tile: int | None = None
    dataset: int | None = None
    importer: Any = None

    def read(self, path: str, times: Sequence[datetime] | None = None) -> list[RadarFrame]:
        """Return the frames of a file, or only those of ``times``.

        Raises:
            DataError: the file cannot be read.
        """
        choice: dict[str, Any] = self._choice()
        if times is not None:
            choice["times"] = times
        return read_frames(Path(path), **choice)

    def times(self, path: str) -> list[datetime]:
        """Return the times of the frames of a file.

        Raises:
            DataError: the file cannot be read.
        """
        return frame_times(Path(path), **self._choice())

    def _choice(self) -> dict[str, Any]:
        choice: dict[str, Any] = {"prefer": self.unit, "dataset": self.dataset}
        return choice if self.importer is None else choice | {"importer": self.importer}

    @property
    def text(self) -> str:
        """All options as text, for the cache."""
        return repr((self.unit, str(self.rule), self.z_r.a, self.z_r.b, self.tile, self.dataset, str(self.importer)))


@dataclass(frozen=True)
class Task:
    """A file to read, or some frames of a store.

    Attributes:
        file: file or store.
        times: frames of a store.
        known: times of the frames of a file that an earlier scan with other limits recorded, in microseconds.
    """

    file: SourceFile
    times: tuple[datetime, ...] | None = None
    known: frozenset[int] = frozenset()


def scan(
    files: Sequence[SourceFile],
    options: FrameOptions,
    ranks: Ranks,
    *,
    cache: Path | None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> ScanTable:
    """Return the frames of ``files``, on every rank; a collective.

    Args:
        files: from :func:`~.source_files.list_source`, equal on all ranks.
        options: how frames are read.
        ranks: that share the files.
        cache: folder of the import, or None to write nothing.
        since: earlier frames are not recorded.
        until: later frames are not recorded; a later scan with other limits reads their file again.

    Raises:
        DataError: the cache is damaged.
        SimcastError: another rank failed.
    """
    # 1. Cache and remaining files
    with ranks.together():
        cached = [] if cache is None else read_cache(cache, options)
        known = ScanTable.merge(cached, counts=False)
        tasks = _tasks(files, known, options, since, until)
    # 2. Read the rest, interleaved over the ranks
    parts: list[ScanTable] = []
    counts: dict[RadarGrid, np.ndarray] = {}
    with ranks.together():
        own = tasks[ranks.rank :: ranks.size]
        progress = Progress(logger, "read", len(own), unit="files")
        part = _Part()
        for task, frames in read_ahead(own, options):
            if isinstance(frames, DataError) and task.times is not None:
                part.add_store(task, options)  # one invalid frame must not hide the others
            else:
                part.add(task, frames, options, since, until)
            progress.advance()
            del frames
            if part.is_due():
                _keep(part.table(), cache, options, parts, counts)
                part = _Part()
        _keep(part.table(), cache, options, parts, counts)
    # 3. One table
    if cache is None:
        everything = [part for own in ranks.gather(parts) for part in own]
    else:
        with ranks.together():
            everything = read_cache(cache, options)
    return ScanTable.merge(everything)


def read_cache(cache: Path, options: FrameOptions) -> list[ScanTable]:
    """Return the tables of the last complete import and of parts that it does not contain.

    Raises:
        DataError: a file is damaged.
    """
    tables: list[ScanTable] = []
    known: set[tuple[SourceFile, int]] = set()
    if (complete := cache / "scan.h5").is_file():
        table = read_table(complete, options=options.text)
        if table is None:
            raise DataError(
                f"{complete} was made with other options of --unit, --wet, --z-r, --tile, --dataset or --importer; an "
                "import keeps its options: give the same or choose another TARGET"
            )
        tables.append(table)
        known = table.frame_keys()
    for path in sorted((cache / PARTS).glob("part-*.h5")):
        part = read_table(path, options=options.text)
        if part is not None and not part.frame_keys() <= known:
            tables.append(part)
    return tables


def clear_parts(cache: Path) -> None:
    """Remove the parts after their content was written to ``scan.h5``."""
    remove(cache / PARTS)


def read_ahead(tasks: Sequence[Task], options: FrameOptions) -> Iterator[tuple[Task, list[RadarFrame] | DataError]]:
    """Yield the frames of each task, or why they cannot be read; the next task is read in the meantime."""

    def read(task: Task) -> list[RadarFrame] | DataError:
        try:
            return options.read(task.file.path, task.times)
        except DataError as error:
            return error

    with ThreadPoolExecutor(1, "radar files") as executor:
        following = executor.submit(read, tasks[0]) if tasks else None
        for number, task in enumerate(tasks):
            assert following is not None
            result = task, following.result()
            following = executor.submit(read, tasks[number + 1]) if number + 1 < len(tasks) else None
            yield result
            del result  # while the next one is awaited, only that is in memory


def microseconds(time: datetime) -> int:
    """Return microseconds since 1970 UTC."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def moment(value: int) -> datetime:
    """Return the time of microseconds since 1970 UTC."""
    return _EPOCH + timedelta(microseconds=int(value))


def _tasks(
    files: Sequence[SourceFile],
    known: ScanTable,
    options: FrameOptions,
    since: datetime | None,
    until: datetime | None,
) -> list[Task]:
    """Return what must be read; a file that could not be read is tried again."""
    readable = {file for file, error in zip(known.files, known.errors, strict=True) if not error}
    listed, incomplete = set(known.files), known.incomplete_files()
    tasks: list[Task] = []
    for file in files:
        if not file.is_store:
            if file in incomplete:
                tasks.append(Task(file, known=frozenset(known.time[known.file == known.files.index(file)].tolist())))
            elif file not in readable:
                tasks.append(Task(file))
            continue
        times = [
            time for time in options.times(file.path)
            if (since is None or time >= since) and (until is None or time <= until)
        ]  # fmt: skip
        if file in readable:
            rows = known.file == known.files.index(file)
            done = set(known.time[rows].tolist())
            times = [time for time in times if microseconds(time) not in done]
        times = [time for time in times if _frame_of_store(file, time) not in listed]
        tasks += [Task(file, tuple(times[k : k + _STORE_FRAMES])) for k in range(0, len(times), _STORE_FRAMES)]
    return tasks


def _frame_of_store(store: SourceFile, time: datetime) -> SourceFile:
    """Return the entry of a frame of a store that cannot be read."""
    return SourceFile(f"{store.path}::{time:%Y-%m-%dT%H:%M:%S}")


def _keep(
    table: ScanTable,
    cache: Path | None,
    options: FrameOptions,
    parts: list[ScanTable],
    counts: dict[RadarGrid, np.ndarray],
) -> None:
    """Write a part to the cache, under a name that depends on its content only; without a cache, keep it in ``parts``.

    Parts that are kept share the counts of valid pixels: each has a whole grid of them.
    """
    if cache is None:
        for number, (grid, own) in enumerate(zip(table.grids, table.valid, strict=True)):
            assert isinstance(own, np.ndarray)
            if grid in counts:
                counts[grid] += own
                table.valid[number] = None
            else:
                counts[grid] = own
        parts.append(table)
    elif table.files:
        (cache / PARTS).mkdir(exist_ok=True)
        names = repr([(file.path, file.size, file.mtime_ns) for file in table.files]) + repr(table.time.tolist())
        sweep(cache / PARTS, name := f"part-{hashlib.sha256(names.encode('utf-8', 'replace')).hexdigest()[:16]}.h5")
        write_table(cache / PARTS / name, table, options=options.text)


@dataclass
class _Part:
    """Frames that are not yet written to the cache."""

    files: dict[SourceFile, str] = field(default_factory=dict)
    totals: dict[SourceFile, int] = field(default_factory=dict)
    rows: list[tuple[SourceFile, int, int, FrameKind, RadarGrid]] = field(default_factory=list)
    values: list[tuple[int, float]] = field(default_factory=list)
    statistics: list[np.ndarray] = field(default_factory=list)
    valid: dict[RadarGrid, np.ndarray] = field(default_factory=dict)
    begin: float = field(default_factory=clock.monotonic)

    def add(
        self,
        task: Task,
        frames: list[RadarFrame] | DataError,
        options: FrameOptions,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> None:
        """Add the frames of a task that are within the limits, or why it could not be read."""
        if isinstance(frames, DataError):
            self.files[task.file] = str(frames)
            return
        self.files.setdefault(task.file, "")
        for time in set(task.times or ()) - {frame.time for frame in frames}:
            self.files[_frame_of_store(task.file, time)] = "all pixels are missing"
        if task.times is None:
            self.totals[task.file] = len(frames)
        for frame in frames:
            outside = (since is not None and frame.time < since) or (until is not None and frame.time > until)
            if outside or microseconds(frame.time) in task.known:
                continue
            grid = frame.grid
            interval = NO_INTERVAL if frame.start is None else microseconds(frame.start)
            self.rows.append((task.file, microseconds(frame.time), interval, _kind(frame), grid))
            self.values.append((int(frame.metadata.get("implausible_pixels", 0)), float(np.nanmax(frame.values))))
            self.statistics.append(tile_statistics(frame, options.tile, options.rule, options.z_r))
            if grid not in self.valid:
                self.valid[grid] = np.zeros(grid.shape, np.uint32)
            for block in row_blocks(grid.height):
                self.valid[grid][block] += ~np.isnan(frame.values[block])

    def add_store(self, task: Task, options: FrameOptions) -> None:
        """Add the frames of a store one by one; one that cannot be read is listed with its time."""
        self.files.setdefault(task.file, "")
        for time in task.times or ():
            try:
                self.add(Task(task.file, (time,)), options.read(task.file.path, (time,)), options)
            except DataError as error:
                self.files[_frame_of_store(task.file, time)] = str(error)

    def is_due(self) -> bool:
        """Return whether the part is to be written now."""
        return len(self.rows) >= _PART_FRAMES or clock.monotonic() - self.begin > _PART_SECONDS

    def table(self) -> ScanTable:
        """Return the part as a table."""
        files, grids = list(self.files), list(self.valid)
        kinds = list(dict.fromkeys(row[3] for row in self.rows))
        file_numbers, kind_numbers = ({one: k for k, one in enumerate(all_)} for all_ in (files, kinds))
        grid_numbers = {one: k for k, one in enumerate(grids)}
        counts = [len(part) for part in self.statistics]
        return ScanTable(
            files,
            list(self.files.values()),
            kinds,
            grids,
            np.array([file_numbers[row[0]] for row in self.rows], np.int32),
            np.array([row[1] for row in self.rows], np.int64),
            np.array([row[2] for row in self.rows], np.int64),
            np.array([kind_numbers[row[3]] for row in self.rows], np.int32),
            np.array([grid_numbers[row[4]] for row in self.rows], np.int32),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate(self.statistics) if self.statistics else np.zeros((0, 3), np.float32),
            [*self.valid.values()],
            [self.totals.get(file, 0) for file in files],
            np.array([row[0] for row in self.values], np.int32),
            np.array([row[1] for row in self.values], np.float32),
        )


def _kind(frame: RadarFrame) -> FrameKind:
    def number(name: str) -> float | None:
        value = frame.metadata.get(name)
        return float(value) if isinstance(value, int | float) else None

    return FrameKind(
        str(frame.metadata.get("format", "unknown")),
        str(frame.metadata.get("quantity", "unknown")),
        frame.unit,
        number("gain"),
        number("offset"),
        None if "stored_type" not in frame.metadata else str(frame.metadata["stored_type"]),
    )
