"""Looking at data as a whole: checksums, shapes, times, gaps, missing pixels, splits that leak, statistics, pictures.

Prepared shards are read to the last byte; raw data is looked into by the reader that preparation uses.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
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

from .catalog import repeated_ids_of
from .data_errors import DataProblem
from .dataset_spec import DatasetSpec
from .encoding import MISSING_CODE
from .hdf5_files import OpenFiles
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
_MOST_PICTURES = 4


@dataclass(frozen=True)
class Picture:
    """Some frames of one event, uint8 ``[T, H, W]``, to be drawn."""

    event: str
    codes: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """What was found: problems, facts by name, and a few events to look at."""

    problems: list[DataProblem]
    facts: dict[str, Any]
    pictures: list[Picture]


def inspect(spec: DatasetSpec, root: Path) -> Inspection:
    """Look at prepared shards or raw data.

    Raises:
        DataError: there is nothing that can be looked at, or shards were prepared by another description.
    """
    return _of_shards(spec, root) if is_prepared(root) else _of_raw(spec, root)


def _of_raw(spec: DatasetSpec, root: Path) -> Inspection:
    source = open_raw(spec, root)
    source.complete(SingleRank())
    problems = [*source.problems, *source.notes]
    pictures: list[Picture] = []
    spread = set(np.linspace(0, len(source.events) - 1, _MOST_PICTURES).astype(int).tolist())
    progress = Progress(logger, "inspect", len(source.events), unit="events")
    for number, event in enumerate(progress.track(source.events)):
        try:
            codes = source.read(number)
        except DataError as error:
            problems.append(DataProblem("truncated", event.file, event.id, str(error)))
            continue
        problems += _of_codes(spec, event.file, event.id, codes, event.percent_missing)
        if number in spread:
            pictures.append(Picture(event.id, codes))
    problems += leaks(spec, source.events, source.frames)
    return Inspection(problems, _facts(source), pictures)


def _facts(source: EventSource) -> dict[str, Any]:
    splits = Counter(event.split or "no split" for event in source.events)
    return {"events": len(source.events), "frames": source.frames, "grid": list(source.grid), "splits": dict(splits)}


def _of_shards(spec: DatasetSpec, root: Path) -> Inspection:
    manifest = read_manifest(root)
    require_description(spec, root, manifest)
    index = read_index(root, manifest)
    problems = list(_of_files(root, manifest))
    damaged = {problem.file for problem in problems}
    stored = np.flatnonzero(index.shard >= 0)
    pictures: list[Picture] = []
    spread = set(stored[np.linspace(0, len(stored) - 1, _MOST_PICTURES).astype(int)].tolist())
    files = OpenFiles()
    for row in stored.tolist():
        name = manifest.shards[index.shard[row]].name
        event = bytes(index.id[row]).decode()
        try:
            codes = _codes(files, root / name, int(index.row[row]))
        except (OSError, KeyError) as error:
            if name not in damaged:
                problems.append(DataProblem("truncated", name, event, f"cannot be read: {error}"))
            continue
        if event_checksum(codes) != index.sha256[row].tobytes():
            problems.append(DataProblem("checksum", name, event, "its codes are not those that were prepared"))
        problems += _of_codes(spec, name, event, codes, None)
        if row in spread:
            pictures.append(Picture(event, codes))
    events = list(_events(index, manifest))
    problems += repeated_ids_of([event.id for event in events])
    problems += leaks(spec, [events[row] for row in stored.tolist()], manifest.frames_per_event)
    facts = {
        "manifest": manifest.hash, "dataset": manifest.dataset, "codec": manifest.codec, "events": len(stored),
        "frames": manifest.frames_per_event, "grid": list(manifest.grid), "statistics": manifest.statistics,
        "left out": list(manifest.left_out), "notes": list(manifest.notes),
    }  # fmt: skip
    return Inspection(problems, facts, pictures)


def _of_files(root: Path, manifest: Manifest) -> Iterator[DataProblem]:
    progress = Progress(logger, "checksums", len(manifest.shards), unit="shards")
    for number, shard in enumerate(progress.track(manifest.shards)):
        try:
            check_present(root, manifest, [number])
        except DataError as error:
            kind = "truncated" if (root / shard.name).is_file() else "absent-file"
            yield DataProblem(kind, shard.name, "", str(error))
            continue
        if file_hash(root / shard.name) != shard.sha256:
            yield DataProblem("checksum", shard.name, "", "its SHA-256 is not that of the manifest")


def _codes(files: OpenFiles, path: Path, row: int) -> np.ndarray:
    stored = files.get(path)["codes"]
    assert isinstance(stored, h5py.Dataset)
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


def _of_codes(
    spec: DatasetSpec, file: str, event: str, codes: np.ndarray, percent_missing: float | None
) -> Iterator[DataProblem]:
    """Yield what is wrong with an event's codes: frames without a valid pixel, a missing share that is not told."""
    missing = (codes == MISSING_CODE).mean(axis=(1, 2))
    gone = np.flatnonzero(missing == 1)
    if len(gone) and spec.layout.kind == "archive":
        yield DataProblem("missing-frame", file, event, f"frames {gone.tolist()} hold no valid pixel")
    counted = 100 * float(missing.mean())
    if percent_missing is not None and abs(counted - percent_missing) > 0.5:
        says = f"{counted:.2f} % of its pixels are missing, the catalog says {percent_missing:g} %"
        yield DataProblem("missing-share", file, event, says)


def leaks(spec: DatasetSpec, events: Sequence[RawEvent], frames: int) -> list[DataProblem]:
    """Return a problem for every date with events of two splits, and for frames of two splits at one time.

    Two splits at one time are told once a pair of splits, with how many events of the later one it concerns.
    """
    problems: list[DataProblem] = []
    dates: dict[str, set[str]] = {}
    for event in events:
        if event.split:
            day = datetime.fromtimestamp(event.time, UTC).date().isoformat()
            dates.setdefault(day, set()).add(event.split)
    for day, splits in sorted(dates.items()):
        if len(splits) > 1:
            named = " and ".join(split for split in SPLITS if split in splits)
            problems.append(DataProblem("date-in-two-splits", day, "", f"has events of {named}"))
    length = round((frames - 1) * spec.step_minutes * 60)
    spans = {split: np.sort([e.begin for e in events if e.split == split]) for split in SPLITS[1:]}
    for place, one in enumerate(SPLITS[1:]):
        for other in SPLITS[2 + place :]:
            begins, others = spans[one], spans[other]
            near = np.searchsorted(begins, others + length, "right") - np.searchsorted(begins, others - length, "left")
            count = int((near > 0).sum()) if len(begins) else 0
            if count:
                says = f"{count} of {len(others)} events of {other} have frames at the time of events of {one}"
                problems.append(DataProblem("overlapping-splits", f"{one}, {other}", "", says))
    return problems
