"""Events of the data benchmark in every layout, and dropping files from the page cache."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.prepare import Recipe, open_raw, prepare
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.distributed.ranks import SingleRank

FILE = "vil/2018/events.h5"
_SYNTHETIC_EVENTS = 2


def make_events(folder: Path, *, events: int, size: int, frames: int) -> np.ndarray:
    """Return uint8 ``[N, H, W, T]``: a few synthetic events and their mirror images, ``events`` in total."""
    write_archive(
        folder,
        seed=0,
        size=size,
        frames_per_event=frames,
        events={"train": min(events, _SYNTHETIC_EVENTS), "val": 0, "test": 0},
    )
    parts = []
    for path in sorted((folder / "data").rglob("*.h5")):
        with h5py.File(path) as file:
            parts.append(np.asarray(file["vil"]))
    stored = np.concatenate(parts)
    variants = [stored, stored[:, ::-1], stored[:, :, ::-1], stored[:, ::-1, ::-1], stored.transpose(0, 2, 1, 3)]
    return np.ascontiguousarray(np.concatenate(variants * (events // len(stored) + 1))[:events])


def write_layouts(folder: Path, stored: np.ndarray) -> dict[str, Path]:
    """Write the events like SEVIR (gzip, one chunk per event), contiguous, and as shards; return the roots."""
    roots = {}
    for name, options in {
        "gzip": {"chunks": (1, *stored.shape[1:]), "compression": "gzip"},
        "contiguous": {},
    }.items():
        roots[name] = folder / name
        path = roots[name] / "data" / FILE
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            file["id"] = [_name(number).encode() for number in range(len(stored))]
            file.create_dataset("vil", data=stored, **options)
        with (roots[name] / "CATALOG.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing"))
            for number in range(len(stored)):
                writer.writerow((_name(number), FILE, number, "vil", f"2018-06-{number % 28 + 1:02d} 12:00:00", 0.0))
    spec = read_spec("sevir")
    for codec in ("lz4", "zstd"):
        roots[f"shards {codec}"] = folder / codec
        prepare(lambda: open_raw(spec, roots["contiguous"]), folder / codec, Recipe(codec, 8), SingleRank())
    return roots


def _name(number: int) -> str:
    return f"S{number:06d}"


def files_of(root: Path) -> list[Path]:
    """Return the files below a folder."""
    return [path for path in root.rglob("*") if path.is_file()]


def drop_cache(paths: Iterable[Path]) -> None:
    """Drop files from the page cache, so that they are read from the disk again."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
