"""Preparation of shards: ranks write shards in turn, rank 0 writes index and manifest; resumes an interrupted run."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from simcast_hpc.config import DataError, to_yaml
from simcast_hpc.data.data_errors import DataProblem, require_skipped
from simcast_hpc.data.dataset_spec import DATASET_FILE, DatasetSpec, built_in_specs, read_spec
from simcast_hpc.data.sampling_statistics import COLUMNS, EventStatistics, write_statistics
from simcast_hpc.data.shards.shard_format import (
    CLAIM,
    FORMAT,
    INDEX,
    MANIFEST,
    SPLITS,
    Index,
    Manifest,
    ShardFile,
    check_present,
    chunk_frames,
    column,
    compression,
    read_manifest,
    shard_name,
    stored_description_hash,
    write_index,
)
from simcast_hpc.distributed.ranks import Ranks
from simcast_hpc.monitoring.progress import Progress
from simcast_hpc.storage.atomic_files import sweep, write_text
from simcast_hpc.storage.directory_lock import DirectoryLock, hold_directory, is_lock_file
from simcast_hpc.storage.run_directory import file_hash

from .dataset_statistics import summary
from .raw_events import EventSource, RawEvent
from .write_shard import unreadable, write_shard

logger = logging.getLogger(__name__)
DEFAULT_EVENTS_PER_SHARD = 64


@dataclass(frozen=True)
class Recipe:
    """Options of the preparation. ``skip`` contains the kinds of problems whose events are skipped and listed."""

    codec: str = "lz4"
    events_per_shard: int = DEFAULT_EVENTS_PER_SHARD
    skip: tuple[str, ...] = ()


def prepare(open_source: Callable[[], EventSource], into: Path, recipe: Recipe, ranks: Ranks) -> Manifest:
    """Write the events of a source as shards into the folder ``into`` and return their manifest, on each rank.

    Complete shards of an interrupted preparation of the same raw data with the same recipe are kept.

    Raises:
        ConfigError: another process prepares data in the folder, or it cannot be written.
        DataError: the raw data has problems that are not skipped, or the folder contains something else.
        SimcastError: on each rank, if another one failed.
    """
    # 1. Source and its problems
    with ranks.together():
        source = open_source()
    source.complete(ranks)
    with ranks.together():
        made_of = _made_of(source, recipe)
        skipped = require_skipped(source.problems, skip=recipe.skip)
        if not source.events:
            raise DataError(f"{len(source.notes)} files contain no event of {source.spec.name}")
        compression(recipe.codec)
    # 2. Target folder; complete shards are only read
    if ranks.broadcast((into / MANIFEST).is_file()):
        return _check_finished(into, made_of, ranks)
    with hold_directory(into, "data preparation", field="SHARDS", ranks=ranks) as lock:
        with ranks.together():
            if ranks.is_first:
                _claim(into, made_of)
        if ranks.broadcast((into / MANIFEST).is_file()):
            return _check_finished(into, made_of, ranks)
        return _fill(source, into, recipe, ranks, skipped, lock)


def _fill(
    source: EventSource, into: Path, recipe: Recipe, ranks: Ranks, skipped: list[DataProblem], lock: DirectoryLock
) -> Manifest:
    # 1. Shards, distributed over the ranks
    shards = _shards(len(source.events), recipe.events_per_shard)
    own: dict[int, ShardFile] = {}
    with ranks.together():
        numbers = range(ranks.rank, len(shards), ranks.size)
        progress = Progress(logger, "prepare", len(numbers), unit="shards")
        for number in numbers:
            lock.check()
            path = into / shard_name(number)
            if not path.is_file():
                write_shard(
                    path, source, shards[number], codec=recipe.codec, skip_unreadable="truncated" in recipe.skip
                )
            own[number] = _shard_file(path, len(shards[number]))
            progress.advance()
    # 2. Index and manifest
    files = {number: file for part in ranks.gather(own) for number, file in part.items()}
    manifest = None
    with ranks.together():
        if ranks.is_first:
            lock.check()
            manifest = _finish(into, source, recipe, [files[number] for number in sorted(files)], skipped)
    return ranks.gather(manifest)[0]


def _shards(events: int, each: int) -> list[range]:
    return [range(begin, min(begin + each, events)) for begin in range(0, events, each)]


def _shard_file(path: Path, events: int) -> ShardFile:
    return ShardFile(name=path.name, bytes=path.stat().st_size, sha256=file_hash(path), events=events)


def _made_of(source: EventSource, recipe: Recipe) -> str:
    how = (recipe.codec, str(recipe.events_per_shard), ",".join(sorted(recipe.skip)) or "-")
    return " ".join((str(FORMAT), stored_description_hash(source.spec), source.identity, *how))


def _claim(into: Path, made_of: str) -> None:
    """Record what the folder is used for, and reject a folder that is used for something else."""
    if (into / CLAIM).is_file():
        sweep(into)
        _require_claim(into, made_of)
        return
    sweep(into, CLAIM)  # of a process that was killed while it wrote the claim
    if any(not is_lock_file(path) for path in into.iterdir()):
        raise DataError(f"{into} is not empty and contains no shards; choose another folder")
    write_text(into / CLAIM, made_of + "\n")


def _require_claim(into: Path, made_of: str) -> None:
    claim = into / CLAIM
    if not claim.is_file():
        raise DataError(f"{into} is not empty and contains no shards; choose another folder")
    if claim.read_text(encoding="utf-8").strip() != made_of:
        raise DataError(
            f"{into} contains shards of other raw data, another description, codec or number of events per shard; "
            "choose another folder, or remove it"
        )


def _check_finished(into: Path, made_of: str, ranks: Ranks) -> Manifest:
    with ranks.together():
        _require_claim(into, made_of)
        manifest = read_manifest(into)
        if manifest.made_of != made_of:
            raise DataError(f"{into / MANIFEST} does not match {CLAIM}; remove the folder and prepare again")
        check_present(into, manifest, range(len(manifest.shards)))
    return manifest


def _finish(
    into: Path, source: EventSource, recipe: Recipe, shards: list[ShardFile], skipped: list[DataProblem]
) -> Manifest:
    events, rows = [], []
    # 1. Checksums, gaps and statistics of the stored events
    statistics: list[EventStatistics] = []
    columns: dict[str, list[np.ndarray]] = {"sha256": [], "gaps": [], "histogram": []}
    for shard, (numbers, shard_file) in enumerate(
        zip(_shards(len(source.events), recipe.events_per_shard), shards, strict=True)
    ):
        with h5py.File(into / shard_file.name, "r") as file:
            usable = np.flatnonzero(column(file, "usable"))
            for name, parts in columns.items():
                parts.append(column(file, name)[usable])
            statistics.append(_shard_statistics(file, source.spec).take(usable))
        lost = sorted(set(range(len(numbers))) - set(usable.tolist()))
        skipped += [unreadable(source, numbers[row]) for row in lost]
        events += [source.events[numbers[row]] for row in usable]
        rows += [(shard, row) for row in usable]
    checksums, gaps, histograms = (np.concatenate(parts) for parts in columns.values())
    if not events:
        raise DataError(f"no event of {source.spec.name} could be read: {skipped[0]}")
    # 2. Index and manifest
    files = sorted({event.file for event in (*events, *source.absent)})
    index = _index(events, rows, source.absent, files, checksums, gaps, histograms)
    write_index(into / INDEX, index)
    index_file = _shard_file(into / INDEX, len(events))
    statistics.append(EventStatistics.unknown(len(source.absent), source.frames))
    if source.spec != _built_in(source.spec.name):
        write_text(into / DATASET_FILE, to_yaml(source.spec))
    write_statistics(into, EventStatistics.concatenate(statistics), index_sha256=index_file.sha256)
    manifest = Manifest(
        format=FORMAT,
        dataset=source.spec.name,
        description=stored_description_hash(source.spec),
        made_of=_made_of(source, recipe),
        codec=recipe.codec,
        grid=source.grid,
        frames_per_event=source.frames,
        chunk_frames=chunk_frames(source.frames, source.grid),
        whole_frames=source.spec.layout.kind != "archive",
        shards=tuple(shards),
        index=index_file,
        files=tuple(files),
        left_out=tuple(str(problem) for problem in skipped),
        notes=tuple(str(problem) for problem in source.notes),
        statistics=summary(source.spec, index, histograms),
    )
    write_text(into / MANIFEST, manifest.file_text)
    return manifest


def _built_in(name: str) -> DatasetSpec | None:
    """Return the built-in description of this name; data with another one gets a copy of its description."""
    return read_spec(name) if name in built_in_specs() else None


def _shard_statistics(file: h5py.File, spec: DatasetSpec) -> EventStatistics:
    """Return the statistics in a shard, computed from its frames if an earlier version of the program wrote it."""
    if all(name in file for name in COLUMNS):
        return EventStatistics(*(column(file, name) for name in COLUMNS))
    codes = file["codes"]
    assert isinstance(codes, h5py.Dataset)
    return EventStatistics.concatenate([EventStatistics.of_frames(spec, codes[row]) for row in range(len(codes))])


def _index(
    stored: list[RawEvent],
    rows: list[tuple[int, int]],
    absent: Sequence[RawEvent],
    files: list[str],
    checksums: np.ndarray,
    gaps: np.ndarray,
    histograms: np.ndarray,
) -> Index:
    """Return the index: the stored events, then the skipped ones, which are in no shard."""
    events = [*stored, *absent]
    rows = rows + [(-1, -1)] * len(absent)
    checksums, gaps = (np.pad(part, ((0, len(absent)), (0, 0))) for part in (checksums, gaps))
    file_numbers = {name: number for number, name in enumerate(files)}
    counted = 100 * histograms[:, -1] / histograms.sum(axis=1)
    counted = np.pad(counted, (0, len(absent)), constant_values=np.nan)
    missing = [counted[row] if e.percent_missing is None else e.percent_missing for row, e in enumerate(events)]
    return Index(
        id=np.array([event.id.encode() for event in events]),
        time=np.array([event.time for event in events], np.int64),
        begin=np.array([event.begin for event in events], np.int64),
        split=np.array([SPLITS.index(event.split) for event in events], np.uint8),
        percent_missing=np.array(missing, np.float64),
        shard=np.array([shard for shard, _ in rows], np.int32),
        row=np.array([row for _, row in rows], np.int32),
        file=np.array([file_numbers[event.file] for event in events], np.int32),
        file_index=np.array([event.file_index for event in events], np.int32),
        sha256=checksums,
        gaps=gaps.astype(bool) if gaps.any() else None,
    )
