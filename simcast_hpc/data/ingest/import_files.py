"""Files of a complete import: shards in place, coverage, open slot, index, statistics, description and manifest."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config.yaml_files import to_yaml
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.prepare.dataset_statistics import counts_summary
from simcast_hpc.data.sampling_statistics import COLUMNS, EventStatistics, write_statistics
from simcast_hpc.data.shards.shard_format import (
    FORMAT,
    INDEX,
    MANIFEST,
    SPLITS,
    Index,
    Manifest,
    ShardFile,
    chunk_frames,
    column,
    day_shard_name,
    stored_description_hash,
    write_index,
)
from simcast_hpc.storage.atomic_files import publish, remove, write_text
from simcast_hpc.storage.hdf5_target import atomic_hdf5
from simcast_hpc.storage.run_directory import file_hash

from .choose_events import EventChoice
from .day_shards import frame_images, model_encoding, padded
from .frame_selection import MEANING, Selection
from .import_recipe import COVERAGE, Recipe
from .inventory import COVERED_PERCENT, FILE_MEANING, rejected_counts, same_grids, valid_counts
from .scan_frames import FrameOptions
from .scan_table import ScanTable, write_table

IMPORT, DESCRIPTION, STAGED, OPEN = "import.json", "dataset.yaml", "staged", "open.h5"
_COLUMNS = ("id", "begin", "split", "is_wet", "probability", "tile_y", "tile_x", "sha256", "gaps", *COLUMNS)


@dataclass(frozen=True)
class Finished:
    """What the files of an import are made of."""

    content: dict[str, Any]
    table: ScanTable
    selection: Selection
    choice: EventChoice
    recipe: Recipe
    spec: DatasetSpec
    reading: FrameOptions


def staged_name(day: str, slots: dict[str, str]) -> str:
    """Return the name of a shard before it is moved to its place; it identifies the content."""
    return f"{day}-{hashlib.sha256(json.dumps(slots).encode()).hexdigest()[:16]}.h5"


def finish(target: Path, parts: Finished) -> Manifest:
    """Write the files of an import; the manifest is removed first and written last.

    A program that reads the folder meanwhile, or after a kill, reports an unfinished preparation.
    """
    slots: dict[str, dict[str, str]] = parts.content["slots"]
    has_open = _stage_open(target, parts)
    # 1. Shards; checksums of those that did not change are taken from the manifest
    known = _known_shards(target)
    remove(target / MANIFEST)
    for day in slots:
        staged = target / STAGED / staged_name(day, slots[day])
        if staged.is_file():
            publish(staged, target / day_shard_name(day))
            known.pop(day_shard_name(day), None)
    names = {day_shard_name(day) for day in slots}
    for path in target.glob("shard-*.h5"):
        if path.name not in names:
            remove(path)
    # 2. Records
    _write_coverage(target / COVERAGE, parts)
    _write_open(target, has_open=has_open)
    write_table(target / "scan.h5", parts.table, options=parts.reading.text)
    _write_description(target, parts)
    # 3. Index, statistics and manifest
    shards, index, statistics, counts = _index(target, list(slots), known)
    write_index(target / INDEX, index)
    index_file = _file(target / INDEX, len(index))
    write_statistics(target, statistics, index_sha256=index_file.sha256)
    write_text(target / IMPORT, json.dumps(parts.content, indent=1) + "\n")
    recipe, spec = parts.recipe, parts.spec
    digest = hashlib.sha256(json.dumps(slots).encode()).hexdigest()[:16]
    manifest = Manifest(
        format=FORMAT,
        dataset=spec.name,
        description=stored_description_hash(spec),
        made_of=f"{FORMAT} {stored_description_hash(spec)} import {digest}",
        codec=recipe.codec,
        grid=recipe.tile_shape,
        frames_per_event=recipe.frames,
        chunk_frames=chunk_frames(recipe.frames, recipe.tile_shape),
        whole_frames=True,
        shards=tuple(shards),
        index=index_file,
        files=tuple(slots),
        left_out=tuple(_left_out(parts)),
        notes=(*_choice_notes(parts), *parts.content["notes"]),
        statistics=_summary(spec, index, counts),
        license=recipe.license,
        attribution=recipe.attribution,
    )
    write_text(target / MANIFEST, manifest.file_text)
    return manifest


def _known_shards(target: Path) -> dict[str, ShardFile]:
    """Return size and checksum of shards by the manifest of the earlier import."""
    try:
        manifest = Manifest.model_validate_json((target / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {shard.name: shard for shard in manifest.shards}


def _left_out(parts: Finished) -> list[str]:
    found = []
    for name, count in rejected_counts(parts.table, parts.selection).items():
        meaning = f"files: {FILE_MEANING[name]}" if name in FILE_MEANING else f"frames: {MEANING[name]}"
        found.append(f"[{name}] {count} {meaning}; see {IMPORT}")
    return found


def _choice_notes(parts: Finished) -> list[str]:
    recipe, counts = parts.recipe, parts.content["events"]
    importance = "none"
    if recipe.importance is not None:
        importance = f"{recipe.importance[0]:g} + {recipe.importance[1]:g} x mean rate"
    return [
        f"choice of events: wet {recipe.wet or 'not asked'}, keep dry {100 * recipe.keep_dry:g} %, importance "
        f"{importance}, max. missing {100 * recipe.max_missing:g} %, seed {recipe.seed}: kept {counts['kept']} of "
        f"{counts['candidates']} events, {counts['kept_dry']} of them dry; {counts['wet']} are wet"
    ]


def _index(
    target: Path, days: list[str], known: dict[str, ShardFile]
) -> tuple[list[ShardFile], Index, EventStatistics, dict[str, np.ndarray]]:
    """Return the shards, index, statistics and the counts of codes by split from the shards."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
    places: list[np.ndarray] = []
    shards: list[ShardFile] = []
    counts = {split: np.zeros(MISSING_CODE + 1, np.int64) for split in SPLITS}
    missing: list[np.ndarray] = []
    # 1. Columns of the shards
    for number, day in enumerate(days):
        path = target / day_shard_name(day)
        with h5py.File(path, "r") as file:
            for name, parts in columns.items():
                parts.append(column(file, name))
            histogram = column(file, "histogram").astype(np.int64)
        events = len(histogram)
        for split in np.unique(columns["split"][-1]):
            counts[SPLITS[split]] += histogram[columns["split"][-1] == split].sum(axis=0)
        places.append(np.stack([np.full(events, number), np.arange(events)], axis=1))
        # Frames that do not exist are in no window.
        pixels = histogram.sum(axis=1) // columns["gaps"][-1].shape[1]
        absent = columns["gaps"][-1].sum(axis=1, dtype=np.int64) * pixels
        rest = np.maximum(histogram.sum(axis=1) - absent, 1)
        missing.append(100 * (histogram[:, MISSING_CODE] - absent) / rest)
        kept = known.get(path.name)
        is_same = kept is not None and kept.bytes == path.stat().st_size and kept.events == events
        shards.append(kept if kept is not None and is_same else _file(path, events))
    # 2. Index
    all_ = {name: np.concatenate(parts) for name, parts in columns.items()}
    place = np.concatenate(places).astype(np.int32)
    gaps = all_["gaps"].astype(bool)
    index = Index(
        id=all_["id"].astype(f"S{max(part.dtype.itemsize for part in columns['id'])}"),
        time=all_["begin"].astype(np.int64), begin=all_["begin"].astype(np.int64), split=all_["split"],
        percent_missing=np.concatenate(missing), shard=place[:, 0].copy(), row=place[:, 1].copy(),
        file=place[:, 0].copy(), file_index=place[:, 1].copy(), sha256=all_["sha256"],
        gaps=gaps if gaps.any() else None, tile_y=all_["tile_y"], tile_x=all_["tile_x"], is_wet=all_["is_wet"],
        probability=all_["probability"],
    )  # fmt: skip
    statistics = EventStatistics(*(all_[name] for name in COLUMNS))
    return shards, index, statistics, counts


def _summary(spec: DatasetSpec, index: Index, counts: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        split: counts_summary(spec, of_split) | {"events": int((index.split == SPLITS.index(split)).sum())}
        for split, of_split in counts.items()
        if of_split.any()
    }


def _file(path: Path, events: int) -> ShardFile:
    return ShardFile(name=path.name, bytes=path.stat().st_size, sha256=file_hash(path), events=events)


def _write_coverage(path: Path, parts: Finished) -> None:
    """Write in how many frames each pixel of the domain is valid, and where it is covered; padded as the events."""
    counts = valid_counts(parts.table, parts.recipe.series)
    if parts.recipe.tile is None:
        counts = padded(counts, parts.recipe.tile_shape, 0)
    frames = int(np.isin(parts.table.grid, same_grids(parts.table, parts.recipe.series)).sum())
    with atomic_hdf5(path, libver="v110") as file:
        file.attrs["frames"] = frames
        file.attrs["min_percent"] = COVERED_PERCENT
        file.attrs["grid"] = json.dumps(dataclasses.asdict(parts.recipe.series.grid), sort_keys=True)
        for name, values in (
            ("valid_frames", counts.astype(np.uint32, copy=False)),
            ("covered", (counts > COVERED_PERCENT / 100 * frames).astype(np.uint8)),
        ):
            file.create_dataset(name, data=values, compression="gzip", shuffle=True)


class OpenFrames(Mapping[int, np.ndarray]):
    """Encoded frames of the last slot of an earlier import by time in microseconds; one at a time is read."""

    def __init__(self, path: Path):
        self._path, self._rows = path, dict[int, int]()
        if path.is_file():
            with h5py.File(path, "r") as file:
                self._rows = {int(time): row for row, time in enumerate(column(file, "time"))}

    def __contains__(self, time: object) -> bool:
        return time in self._rows

    def __getitem__(self, time: int) -> np.ndarray:
        row = self._rows[time]
        with h5py.File(self._path, "r") as file:
            codes = file["codes"]
            assert isinstance(codes, h5py.Dataset)
            return codes[row]

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def open_frames(target: Path) -> OpenFrames:
    """Return the encoded frames of the last slot of an earlier import."""
    return OpenFrames(target / OPEN)


def _stage_open(target: Path, parts: Finished) -> bool:
    """Write the encoded frames of the last slot if it is incomplete, and return whether it is.

    An append completes the slot without their files.
    """
    rows = parts.choice.frames[-1]
    if rows[-1] >= 0:
        return False
    rows = rows[rows >= 0]
    times = parts.table.time[rows].astype(np.int64)
    shape = parts.recipe.series.grid.shape
    images = frame_images(
        parts.table, rows, parts.reading, model_encoding(parts.recipe, parts.spec), open_frames(target)
    )
    with atomic_hdf5(target / STAGED / OPEN, libver="v110") as file:
        file["time"] = np.sort(times)
        codes = file.create_dataset(
            "codes", shape=(len(rows), *shape), dtype=np.uint8, compression="gzip", chunks=(1, *shape)
        )
        for place, image in zip(np.argsort(np.argsort(times)).tolist(), images, strict=True):
            codes[place] = image
    return True


def _write_open(target: Path, *, has_open: bool) -> None:
    if has_open:
        publish(target / STAGED / OPEN, target / OPEN)
    else:
        remove(target / OPEN)


def _write_description(target: Path, parts: Finished) -> None:
    """Write ``dataset.yaml``, unless the user changed it since the earlier import wrote it."""
    path, record = target / DESCRIPTION, target / IMPORT
    south, east = parts.recipe.padding
    text = (
        "# Written by `simcast data import`. thresholds, title, license, attribution and citation can be changed: an\n"
        "# append keeps a changed file. encoding, step_minutes and splits belong to the shards.\n"
        + (
            f"# grid includes {south} rows at the south and {east} columns at the east that no frame has.\n"
            if south or east
            else ""
        )
        + to_yaml(parts.spec)
    )
    parts.content["description"] = hashlib.sha256(text.encode()).hexdigest()
    if path.is_file() and record.is_file():
        written = json.loads(record.read_text(encoding="utf-8")).get("description")
        if hashlib.sha256(path.read_bytes()).hexdigest() not in (written, parts.content["description"]):
            return
    write_text(path, text)
