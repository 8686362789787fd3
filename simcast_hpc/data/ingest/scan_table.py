"""Table of all frames of a source: time, interval, kind, grid and rain statistics; stored as HDF5."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.data.hdf5_guard import HDF5_ERRORS
from simcast_hpc.data.shards.shard_format import column
from simcast_hpc.radar.radar_frame import RadarGrid
from simcast_hpc.storage.hdf5_target import atomic_hdf5

from .source_files import SourceFile

NO_INTERVAL = np.iinfo(np.int64).min
_COLUMNS = {"file": np.int32, "time": np.int64, "start": np.int64, "kind": np.int32, "grid": np.int32}
_ADDED = {"implausible": np.int32, "largest": np.float32}  # newer than the format; 0 in older files


@dataclass(frozen=True)
class FrameKind:
    """What a field is: format, quantity and unit, and how its file packs it (None if the reader does not say)."""

    format: str
    quantity: str
    unit: str
    gain: float | None = None
    offset: float | None = None
    stored_type: str | None = None

    @property
    def field(self) -> tuple[str, str]:
        """Quantity and unit, in which the frames of one data set agree."""
        return self.quantity, self.unit


@dataclass(frozen=True)
class StoredCounts:
    """Counts of valid pixels that stay in a file until they are added: each of many parts has a whole grid of them."""

    path: Path
    name: str

    def read(self) -> np.ndarray:
        """Return the counts, uint32 ``[H, W]``.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with h5py.File(self.path, "r") as file:
                return column(file, self.name)
        except (*HDF5_ERRORS, ValueError, TypeError, KeyError) as error:
            raise _damage(self.path, error) from error


Counts = np.ndarray | StoredCounts | None


@dataclass(eq=False)
class ScanTable:
    """All frames, sorted by file and time.

    Attributes:
        files: all files that were read, sorted by path.
        errors: reason why a file cannot be read, empty if it can, one per file.
        kinds: distinct kinds of the frames.
        grids: distinct grids of the frames.
        file: number of the file of each frame, int32 ``[N]``.
        time: microseconds since 1970 UTC, int64 ``[N]``.
        start: start of the accumulation interval, or ``NO_INTERVAL``.
        kind: number in ``kinds``.
        grid: number in ``grids``.
        first: first row of the statistics of each frame, int64 ``[N + 1]``.
        statistics: mean rate, wet share, missing share of each frame and tile, float32 ``[M, 3]``.
        valid: number of frames in which a pixel is valid, uint32 ``[H, W]``, one array per grid.
        totals: number of frames that each file contains, also those that are not in the table because of the limits
            of time of a scan; 0 for a store or a file that cannot be read.
        implausible: pixels of each frame that are missing because their values are out of range, int32 ``[N]``.
        largest: largest value of each frame, float32 ``[N]``.
    """

    files: list[SourceFile] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    kinds: list[FrameKind] = field(default_factory=list)
    grids: list[RadarGrid] = field(default_factory=list)
    file: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    time: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    start: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    kind: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    grid: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    first: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    statistics: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    valid: list[Counts] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    implausible: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    largest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        """Set the totals and columns of a table that was made without them."""
        self.totals = self.totals or [0] * len(self.files)
        for name, kind in _ADDED.items():
            if len(getattr(self, name)) != len(self.time):
                setattr(self, name, np.zeros(len(self.time), kind))

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: np.ndarray) -> "ScanTable":
        """Return the frames ``rows``, with all files, kinds, grids and counts."""
        counts = np.diff(self.first)[rows]
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        inside = np.arange(first[-1]) - np.repeat(first[:-1], counts)
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[rows] for name in (*_COLUMNS, *_ADDED)},
            first=first,
            statistics=self.statistics[np.repeat(self.first[:-1][rows], counts) + inside],
        )

    def of_files(self, files: set[SourceFile]) -> "ScanTable":
        """Return the table of some of its files."""
        kept = [number for number, file in enumerate(self.files) if file in files]
        numbers = np.full(len(self.files) + 1, -1, np.int32)
        numbers[kept] = np.arange(len(kept))
        table = self.take(np.flatnonzero(numbers[self.file] >= 0))
        table.file = numbers[table.file]
        table.files = [self.files[number] for number in kept]
        table.errors = [self.errors[number] for number in kept]
        table.totals = [self.totals[number] for number in kept]
        return table

    def incomplete_files(self) -> set[SourceFile]:
        """Return the files of which the table lacks frames."""
        counts = np.bincount(self.file, minlength=len(self.files)).tolist()
        return {file for file, count, total in zip(self.files, counts, self.totals, strict=True) if count < total}

    def frame_keys(self) -> set[tuple[SourceFile, int]]:
        """Return file and time of each frame, and file and -1 of each file that cannot be read."""
        keys = {(self.files[file], int(time)) for file, time in zip(self.file, self.time, strict=True)}
        return keys | {(file, -1) for file, error in zip(self.files, self.errors, strict=True) if error}

    @classmethod
    def merge(cls, tables: Sequence["ScanTable"], *, counts: bool = True) -> Self:
        """Return the frames of several tables, independent of their order; counts of valid pixels are added.

        Of a file with several states only the newest remains. Without ``counts`` there are none, which saves memory.

        Raises:
            DataError: a file with counts is damaged.
        """
        newest: dict[str, SourceFile] = {}
        # 1. Files in their newest state
        for file in (file for table in tables for file in table.files):
            other = newest.setdefault(file.path, file)
            if (file.mtime_ns, file.size) > (other.mtime_ns, other.size):
                newest[file.path] = file
        files = sorted(newest.values())
        numbers = {file: number for number, file in enumerate(files)}
        errors, totals = [""] * len(files), [0] * len(files)
        for table in tables:
            for file, error, total in zip(table.files, table.errors, table.totals, strict=True):
                if file in numbers and error:
                    errors[numbers[file]] = error
                if file in numbers:
                    totals[numbers[file]] = max(totals[numbers[file]], total)
        # 2. Kinds and grids, in the order of their text
        kinds = sorted({kind for table in tables for kind in table.kinds}, key=repr)
        grids = sorted({grid for table in tables for grid in table.grids}, key=repr)
        valid: list[Counts] = [_sum(tables, grid) if counts else None for grid in grids]
        parts = []
        for table in tables:
            file_numbers = np.array([numbers.get(file, -1) for file in table.files] or [-1], np.int32)
            part = dataclasses.replace(
                table,
                file=file_numbers[table.file],
                kind=np.array([kinds.index(kind) for kind in table.kinds] or [0], np.int32)[table.kind],
                grid=np.array([grids.index(grid) for grid in table.grids] or [0], np.int32)[table.grid],
            )
            parts.append(part.take(np.flatnonzero(part.file >= 0)))
        # 3. Frames in order, each once
        sizes = [part.first[-1] for part in parts]
        offsets = np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.int64) if parts else []
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts]).astype(kind) if parts else np.zeros(0, kind)
            for name, kind in (_COLUMNS | _ADDED).items()
        }
        firsts = [part.first[:-1] + offset for part, offset in zip(parts, offsets, strict=True)]
        first = np.concatenate([*firsts, [sum(sizes)]]).astype(np.int64)
        statistics = np.concatenate([part.statistics for part in parts]) if parts else np.zeros((0, 3), np.float32)
        merged = cls(
            files, errors, kinds, grids, first=first, statistics=statistics, valid=valid, totals=totals, **columns
        )
        order = np.lexsort((merged.time, merged.file))
        same = np.zeros(len(order), bool)
        same[1:] = (np.diff(merged.file[order]) == 0) & (np.diff(merged.time[order]) == 0)
        result = merged.take(order[~same])
        assert isinstance(result, cls)
        return result


def _sum(tables: Sequence[ScanTable], grid: RadarGrid) -> np.ndarray:
    """Return the sum of the counts of a grid, of which one at a time is in memory."""
    total = np.zeros(grid.shape, np.uint32)
    for table in tables:
        for own, counts in zip(table.grids, table.valid, strict=True):
            if own == grid and counts is not None:
                total += counts.read() if isinstance(counts, StoredCounts) else counts
    return total


def _damage(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged: {error}; remove it, and the frames are read again")


def write_table(path: Path, table: ScanTable, *, options: str) -> None:
    """Write a table atomically; ``options`` is text on which its statistics depend."""
    content = {
        "files": [[*dataclasses.astuple(file), error] for file, error in zip(table.files, table.errors, strict=True)],
        "kinds": [dataclasses.astuple(kind) for kind in table.kinds],
        "grids": [dataclasses.asdict(grid) for grid in table.grids],
        "totals": table.totals,
    }
    with atomic_hdf5(path, libver="v110") as file:
        file.attrs["options"] = options
        text = np.frombuffer(json.dumps(content).encode("ascii"), np.uint8)
        file.create_dataset("content", data=text, compression="gzip", shuffle=False)
        for name in (*_COLUMNS, *_ADDED, "first", "statistics"):
            values = getattr(table, name)
            file.create_dataset(name, data=values, **({"compression": "gzip", "shuffle": True} if len(values) else {}))
        for number, counts in enumerate(table.valid):
            assert isinstance(counts, np.ndarray)
            file.create_dataset(f"valid/{number}", data=counts, compression="gzip", compression_opts=1, shuffle=True)


def read_table(path: Path, *, options: str) -> ScanTable | None:
    """Return a table whose counts stay in the file; None if its statistics depend on other options.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("options") != options:
                return None
            names = (*_COLUMNS, "first", "statistics", *(name for name in _ADDED if name in file))
            columns: dict[str, Any] = {name: column(file, name) for name in names}
            content = json.loads(bytes(column(file, "content").tobytes()).decode("ascii"))
        valid: list[Counts] = [StoredCounts(path, f"valid/{number}") for number in range(len(content["grids"]))]
        table = ScanTable(
            [SourceFile(*row[:-1]) for row in content["files"]],
            [row[-1] for row in content["files"]],
            [FrameKind(*row) for row in content["kinds"]],
            [RadarGrid(**grid) for grid in content["grids"]],
            **columns,
            valid=valid,
            totals=content.get("totals", []),
        )
    except (*HDF5_ERRORS, ValueError, TypeError, KeyError) as error:
        raise _damage(path, error) from error
    return table
