"""Archive of synthetic storms in SEVIR's layout: ``CATALOG.csv`` and HDF5 files of events, time last.

Readers of SEVIR can read it. The dates of each split are within SEVIR's dates for that split, the splits use disjoint
generator indices, and equal recipes give equal bytes.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.storage.atomic_files import atomic_directory
from simcast_hpc.storage.hdf5_target import hdf5_target

from .storms import GENERATOR, storm_event

__all__ = ["FIRST_INDEX", "RECIPE", "storm_event", "write_archive"]

RECIPE = "recipe.json"
CATALOG = "CATALOG.csv"
FIRST_INDEX = {"train": 0, "val": 1_000_000, "test": 2_000_000}
"""First generator index of each split."""

_MAX_EVENTS = 1_000_000
_COLUMNS: list[str] = [
    "id",
    "file_name",
    "file_index",
    "img_type",
    "time_utc",
    "minute_offsets",
    "episode_id",
    "event_id",
    "event_type",
    "llcrnrlat",
    "llcrnrlon",
    "urcrnrlat",
    "urcrnrlon",
    "proj",
    "size_x",
    "size_y",
    "height_m",
    "width_m",
    "data_min",
    "data_max",
    "pct_missing",
]
_PERIODS = {
    "train": (("STORM", "2017", "0101", "0630"), ("RANDOM", "2017", "0701", "1231"), ("STORM", "2018", "0101", "1130")),
    "val": (("RANDOM", "2019", "0105", "0430"),),
    "test": (("STORM", "2019", "0701", "1130"),),
}
# The storms have no location: all events get the same box of 384 km around the origin of SEVIR's projection.
_LOCATION = {
    "llcrnrlat": "36.2536",
    "llcrnrlon": "-100.1412",
    "urcrnrlat": "39.7057",
    "urcrnrlon": "-95.7555",
    "proj": "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere",
    "height_m": "384000.0",
    "width_m": "384000.0",
}


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """Everything that the bytes of an archive depend on."""

    generator: int
    seed: int
    events: dict[str, int]
    size: int
    frames_per_event: int
    step_minutes: int

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _File:
    """One HDF5 file of the archive and its events."""

    name: str
    first_index: int
    times: list[datetime]


def write_archive(
    root: Path,
    *,
    seed: int,
    events: Mapping[str, int],
    size: int = 48,
    frames_per_event: int = 25,
    step_minutes: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Write an archive of synthetic storms, or keep an existing one with the same recipe.

    The archive is written atomically. An interrupted run may leave a hidden ``.partial`` directory next to ``root``,
    which nothing reads.

    Args:
        root: folder of ``CATALOG.csv``; its parents are created.
        seed: seed of all events.
        events: number of events per split ``train``, ``val``, ``test``; 0 if not given.
        size: pixels along each side of the 384 km box.
        frames_per_event: frames per event; SEVIR has 49.
        step_minutes: cadence in ``minute_offsets``; the motion per frame does not depend on it.
        progress: called with (events done, events in total) after each event.

    Returns:
        True if the archive was written, False if an equal one existed.

    Raises:
        ValueError: an unknown split, a number of events out of range, or no event.
        DataError: ``root`` contains something else, an archive of another recipe, or an incomplete one.
    """
    # 1. Recipe
    root = Path(root)
    recipe = _validate(
        _Recipe(
            generator=GENERATOR,
            seed=seed,
            events={split: events.get(split, 0) for split in FIRST_INDEX},
            size=size,
            frames_per_event=frames_per_event,
            step_minutes=step_minutes,
        ),
        events,
    )
    if _is_complete(root, recipe):
        return False
    # 2. Archive
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_directory(root) as temporary:
            _write(temporary, recipe, progress)
    except OSError:
        if _is_complete(root, recipe):  # another process was faster with the same recipe
            return False
        raise
    return True


def _validate(recipe: _Recipe, events: Mapping[str, int]) -> _Recipe:
    unknown = sorted(set(events) - set(FIRST_INDEX))
    if unknown:
        raise ValueError(f"events has an unknown split {unknown[0]!r}; choose {', '.join(FIRST_INDEX)}")
    for split, count in recipe.events.items():
        if not 0 <= count <= _MAX_EVENTS:
            raise ValueError(f"events[{split!r}]={count}; it must be between 0 and {_MAX_EVENTS}")
    if not any(recipe.events.values()):
        raise ValueError("events contains no event; give at least one, for example {'train': 150, 'test': 48}")
    if recipe.size < 16 or recipe.frames_per_event < 1 or recipe.step_minutes < 1 or recipe.seed < 0:
        raise ValueError(
            f"size >= 16, frames_per_event >= 1, step_minutes >= 1 and seed >= 0 are required, got {recipe.size}, "
            f"{recipe.frames_per_event}, {recipe.step_minutes} and {recipe.seed}"
        )
    return recipe


def _is_complete(root: Path, recipe: _Recipe) -> bool:
    """Return whether ``root`` contains a complete archive of ``recipe``; False if it is absent or empty."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        record = read_json_file(root / RECIPE, error=DataError, what="the recipe")
        files, settings = record["files"], record["recipe"]
        is_equal = record["sha256"] == recipe.digest()
        if not isinstance(files, dict) or not isinstance(settings, dict):
            raise TypeError("files and recipe must be mappings")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{root} is not empty and contains no valid {RECIPE} of a synthetic archive ({error}); "
            "choose another folder, or remove it"
        ) from error
    if not is_equal:
        requested = asdict(recipe)
        differences = [
            f"{key} is {settings.get(key)}, requested {value}"
            for key, value in requested.items()
            if settings.get(key) != value
        ]
        raise DataError(
            f"{root} contains a synthetic archive of another recipe ({'; '.join(differences) or 'hash differs'}); "
            "choose another folder, or remove it"
        )
    for name, size in files.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"{path} is missing or does not have {size} bytes; remove {root} and write it again")
    return True


def _write(root: Path, recipe: _Recipe, progress: Callable[[int, int], None] | None) -> None:
    total, done = sum(recipe.events.values()), 0
    written = [CATALOG]
    with (root / CATALOG).open("w", newline="", encoding="utf-8") as stream:
        catalog: csv.DictWriter[str] = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
        catalog.writeheader()
        for file in _files(recipe):
            written.append(f"data/{file.name}")
            for row in _write_file(root / "data" / file.name, file, recipe):
                catalog.writerow(row)
                done += 1
                if progress is not None:
                    progress(done, total)
    record = {
        "recipe": asdict(recipe),
        "sha256": recipe.digest(),
        "files": {name: (root / name).stat().st_size for name in written},
    }
    (root / RECIPE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _files(recipe: _Recipe) -> Iterator[_File]:
    """Distribute the events of each split over its files, in the order of the generator indices."""
    for split, count in recipe.events.items():
        periods = _PERIODS[split]
        borders = [count * number // len(periods) for number in range(len(periods) + 1)]
        for (kind, year, start, end), first, last in zip(periods, borders, borders[1:], strict=False):
            if first == last:
                continue
            opens = datetime.strptime(year + start, "%Y%m%d")
            minutes = (datetime.strptime(year + end, "%Y%m%d") - opens) / timedelta(minutes=1)
            steps = [int(minutes * (number + 0.5) / (last - first)) // 5 * 5 for number in range(last - first)]
            yield _File(
                name=f"vil/{year}/SEVIR_VIL_{kind}EVENTS_{year}_{start}_{end}.h5",
                first_index=FIRST_INDEX[split] + first,
                times=[opens + timedelta(minutes=step) for step in steps],
            )


def _write_file(path: Path, file: _File, recipe: _Recipe) -> Iterator[dict[str, Any]]:
    """Write one HDF5 file event by event, and yield the catalog row of each event."""
    size, frames, count = recipe.size, recipe.frames_per_event, len(file.times)
    offsets = ":".join(str((frame - frames // 2) * recipe.step_minutes) for frame in range(frames))
    ids = [f"{Path(file.name).name[len('SEVIR_VIL_')]}{file.first_index + number:07d}" for number in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with hdf5_target(path) as target, h5py.File(target, "w") as store:
        store.create_dataset("id", data=np.array(ids, dtype="S16"))
        vil = store.create_dataset(
            "vil",
            shape=(count, size, size, frames),
            dtype=np.uint8,
            chunks=(1, size, size, frames),
            compression="gzip",
            compression_opts=1,
        )
        for number, time in enumerate(file.times):
            event = storm_event(seed=recipe.seed, index=file.first_index + number, size=size, frames=frames)
            vil[number] = np.moveaxis(event, 0, -1)
            yield _LOCATION | {
                "id": ids[number],
                "file_name": file.name,
                "file_index": number,
                "img_type": "vil",
                "time_utc": time.isoformat(sep=" "),
                "minute_offsets": offsets,
                "episode_id": "",
                "event_id": "",
                "event_type": "",
                "size_x": size,
                "size_y": size,
                "data_min": int(event.min()),
                "data_max": int(event.max()),
                "pct_missing": 0.0,
            }
