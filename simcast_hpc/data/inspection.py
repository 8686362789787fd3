"""Inspection of a dataset: checksums, shapes, times, gaps, missing pixels, overlapping splits, statistics, images.

Prepared shards are read completely; raw data is read with the readers of the preparation.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.distributed.ranks import SingleRank
from simcast_hpc.monitoring.progress import Progress
from simcast_hpc.storage.run_directory import file_hash

from .archive_catalog import repeated_ids_of
from .data_errors import DataProblem
from .dataset_spec import DatasetSpec
from .encoding import MISSING_CODE
from .hdf5_files import OpenFiles
from .hdf5_guard import HDF5_ERRORS
from .prepare import EventSource, RawEvent, open_raw
from .shards.shard_format import (
    SPLITS,
    Index,
    Manifest,
    check_present,
    is_prepared,
    read_index,
    read_manifest,
    require_description,
)
from .window_source import event_checksum

logger = logging.getLogger(__name__)
Visit = Callable[[RawEvent, np.ndarray, tuple[int, int]], None]
_MAX_SAMPLES = 4


@dataclass(frozen=True)
class SampleEvent:
    """Frames of one event to plot: ``codes`` uint8 ``[T, H, W]``."""

    event: str
    codes: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """Result of an inspection: problems, facts by name, and a few events to plot."""

    problems: list[DataProblem]
    facts: dict[str, Any]
    samples: list[SampleEvent]


def inspect(spec: DatasetSpec, root: Path, *, visit: Visit | None = None) -> Inspection:
    """Inspect prepared shards or raw data.

    Args:
        spec: the dataset description.
        root: folder of prepared shards or of raw data.
        visit: called with every event that can be read, its frames, and the row and column of its upper left pixel in
            the domain, so that statistics need no second pass.

    Raises:
        DataError: there is no usable data, or shards were prepared with another description.
    """
    visit = visit or (lambda _event, _codes, _corner: None)
    return _inspect_shards(spec, root, visit) if is_prepared(root) else _inspect_raw(spec, root, visit)


def _inspect_raw(spec: DatasetSpec, root: Path, visit: Visit) -> Inspection:
    source = open_raw(spec, root)
    source.complete(SingleRank())
    problems = [*source.problems, *source.notes]
    samples: list[SampleEvent] = []
    plotted = set(np.linspace(0, len(source.events) - 1, _MAX_SAMPLES).astype(int).tolist())
    progress = Progress(logger, "inspect", len(source.events), unit="events")
    for number, event in enumerate(progress.track(source.events)):
        try:
            codes = source.read(number)
        except DataError as error:
            problems.append(DataProblem("truncated", event.file, event.id, str(error)))
            continue
        problems += _code_problems(spec, event.file, event.id, codes, event.percent_missing)
        visit(event, codes, (0, 0))
        if number in plotted:
            samples.append(SampleEvent(event.id, codes))
    problems += split_overlaps(spec, source.events, source.frames)
    return Inspection(problems, _facts(source), samples)


def _facts(source: EventSource) -> dict[str, Any]:
    splits = Counter(event.split or "no split" for event in source.events)
    return {"events": len(source.events), "frames": source.frames, "grid": list(source.grid), "splits": dict(splits)}


def _inspect_shards(spec: DatasetSpec, root: Path, visit: Visit) -> Inspection:
    manifest = read_manifest(root)
    require_description(spec, root, manifest)
    index = read_index(root, manifest)
    problems = list(_file_problems(root, manifest))
    damaged = {problem.file for problem in problems}
    stored = np.flatnonzero(index.shard >= 0)
    samples: list[SampleEvent] = []
    plotted = set(stored[np.linspace(0, len(stored) - 1, _MAX_SAMPLES).astype(int)].tolist())
    files = OpenFiles()
    events = list(_events(index, manifest))
    corners = _corners(index)
    for row in stored.tolist():
        name = manifest.shards[index.shard[row]].name
        event = bytes(index.id[row]).decode()
        try:
            codes = _codes(files, root / name, int(index.row[row]))
        except (DataError, *HDF5_ERRORS, AssertionError) as error:
            if name not in damaged:
                problems.append(DataProblem("truncated", name, event, f"cannot be read: {error}"))
            continue
        if event_checksum(codes) != index.sha256[row].tobytes():
            problems.append(DataProblem("checksum", name, event, "the frames differ from those that were prepared"))
        problems += _code_problems(spec, name, event, codes, None)
        visit(events[row], codes, corners[row])
        if row in plotted:
            samples.append(SampleEvent(event, codes))
    problems += repeated_ids_of([event.id for event in events])
    problems += split_overlaps(spec, [events[row] for row in stored.tolist()], manifest.frames_per_event)
    problems, recorded = (problems, []) if " import " not in manifest.made_of else _recorded(spec, problems)
    facts = {
        "manifest": manifest.hash, "dataset": manifest.dataset, "codec": manifest.codec, "events": len(stored),
        "frames": manifest.frames_per_event, "grid": list(manifest.grid), "statistics": manifest.statistics,
        "skipped": list(manifest.left_out), "notes": [*manifest.notes, *recorded],
    }  # fmt: skip
    return Inspection(problems, facts, samples)


def _recorded(spec: DatasetSpec, problems: list[DataProblem]) -> tuple[list[DataProblem], list[str]]:
    """Return the problems of an import of radar files, and notes on what the import itself recorded.

    These are frames that do not exist, and dates that an end of a split divides.
    """
    splits = spec.splits
    ends = {splits.train_until, splits.val_until} if splits.kind == "dates" else set()
    divided = {end.date().isoformat() for end in ends}
    rest: list[DataProblem] = []
    missing, notes = 0, []
    for problem in problems:
        if problem.kind == "missing-frame":
            missing += 1
        elif problem.kind == "date-in-two-splits" and problem.file in divided:
            notes.append(f"{problem}: the description divides this date")
        else:
            rest.append(problem)
    if missing:
        notes.append(
            f"[missing-frame] {missing} of the events have frames without a valid pixel, or gaps; see import.json"
        )
    return rest, notes


def _corners(index: Index) -> list[tuple[int, int]]:
    """Return the row and column of the upper left pixel of each event in the domain; (0, 0) for data without tiles."""
    # An import of radar files has the upper left pixel of each tile.
    rows, columns = (getattr(index, name, None) for name in ("tile_y", "tile_x"))
    if rows is None or columns is None:
        return [(0, 0)] * len(index)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


def _file_problems(root: Path, manifest: Manifest) -> Iterator[DataProblem]:
    progress = Progress(logger, "checksums", len(manifest.shards), unit="shards")
    for number, shard in enumerate(progress.track(manifest.shards)):
        try:
            check_present(root, manifest, [number])
        except DataError as error:
            kind = "truncated" if (root / shard.name).is_file() else "absent-file"
            yield DataProblem(kind, shard.name, "", str(error))
            continue
        if file_hash(root / shard.name) != shard.sha256:
            yield DataProblem("checksum", shard.name, "", "the SHA-256 differs from that in the manifest")


def _codes(files: OpenFiles, path: Path, row: int) -> np.ndarray:
    stored = files.get(path)["codes"]
    assert isinstance(stored, h5py.Dataset)
    if stored.dtype != np.uint8 or stored.ndim != 4:
        raise ValueError(f"'codes' is {stored.dtype} {list(stored.shape)}; it must be uint8 [events, T, H, W]")
    files.check_row(path, stored, row)
    return stored[row]


def _events(index: Index, manifest: Manifest) -> Iterator[RawEvent]:
    for row in range(len(index)):
        yield RawEvent(
            bytes(index.id[row]).decode(),
            int(index.time[row]),
            int(index.begin[row]),
            SPLITS[index.split[row]],
            float(index.percent_missing[row]),
            manifest.files[index.file[row]],
            int(index.file_index[row]),
        )


def _code_problems(
    spec: DatasetSpec, file: str, event: str, codes: np.ndarray, percent_missing: float | None
) -> Iterator[DataProblem]:
    """Yield the problems of an event's frames: no valid pixel, or a percentage of missing pixels unlike the catalog."""
    missing = (codes == MISSING_CODE).mean(axis=(1, 2))
    empty = np.flatnonzero(missing == 1)
    if len(empty) and spec.layout.kind == "archive":
        yield DataProblem("missing-frame", file, event, f"frames {empty.tolist()} contain no valid pixel")
    counted = 100 * float(missing.mean())
    if percent_missing is not None and np.isnan(percent_missing):
        message = f"pct_missing is empty in the catalog; {counted:.2f} % of the pixels are missing"
        yield DataProblem("missing-share", file, event, message)
    if percent_missing is not None and abs(counted - percent_missing) > 0.5:
        message = f"{counted:.2f} % of the pixels are missing, {percent_missing:g} % according to the catalog"
        yield DataProblem("missing-share", file, event, message)


def split_overlaps(spec: DatasetSpec, events: Sequence[RawEvent], frames: int) -> list[DataProblem]:
    """Return a problem for each date with events of two splits, and for each pair of splits with simultaneous frames.

    The latter gives the number of affected events of the later split.
    """
    problems: list[DataProblem] = []
    dates: dict[str, set[str]] = {}
    for event in events:
        if event.split:
            day = datetime.fromtimestamp(event.time, UTC).date().isoformat()
            dates.setdefault(day, set()).add(event.split)
    for day, splits in sorted(dates.items()):
        if len(splits) > 1:
            names = " and ".join(split for split in SPLITS if split in splits)
            problems.append(DataProblem("date-in-two-splits", day, "", f"has events of {names}"))
    length = round((frames - 1) * spec.step_minutes * 60)
    starts = {split: np.sort([e.begin for e in events if e.split == split]) for split in SPLITS[1:]}
    for number, split in enumerate(SPLITS[1:]):
        for other in SPLITS[2 + number :]:
            begins, others = starts[split], starts[other]
            near = np.searchsorted(begins, others + length, "right") - np.searchsorted(begins, others - length, "left")
            count = int((near > 0).sum()) if len(begins) else 0
            if count:
                message = f"{count} of {len(others)} events of {other} overlap in time with events of {split}"
                problems.append(DataProblem("overlapping-splits", f"{split}, {other}", "", message))
    return problems
