"""Preparation beside a bare read, transpose, checksum and compressed write; processor time from one rank to two."""

import hashlib
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from benchmarks.data_archives import FILE
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.prepare import Recipe, open_raw, prepare
from simcast_hpc.data.shards.shard_format import compression
from simcast_hpc.distributed.ranks import SingleRank


@dataclass(frozen=True)
class Preparation:
    """Milliseconds of processor time an event, medians: of the bare loop, and of ``simcast data prepare``'s own."""

    layout: str
    codec: str
    bare_ms: float
    ours_ms: float
    megabytes: float

    @property
    def ratio(self) -> float:
        """How much of the bare loop's speed preparation has."""
        return self.bare_ms / self.ours_ms

    def row(self) -> dict[str, object]:
        """Return its columns of the CSV."""
        return {
            "way": "in process",
            "layout": self.layout,
            "codec": self.codec,
            "ranks": 1,
            "bare_ms": round(self.bare_ms, 2),
            "ours_ms": round(self.ours_ms, 2),
            "megabytes": round(self.megabytes, 1),
        }


def bare(archive: Path, into: Path, codec: str) -> None:
    """Do the least that anybody could: read, transpose, checksum, compress, in one process."""
    with h5py.File(archive / "data" / FILE) as raw, h5py.File(into, "w") as made:
        stored = raw["vil"]
        assert isinstance(stored, h5py.Dataset)
        events, height, width, frames = stored.shape
        codes = made.create_dataset(
            "codes", (events, frames, height, width), np.uint8, chunks=(1, 1, height, width), **compression(codec)
        )
        for number in range(events):
            event = np.ascontiguousarray(np.moveaxis(stored[number], -1, 0))
            hashlib.sha256(event.data).digest()
            codes[number] = event


def compare_with_bare(roots: dict[str, Path], scratch: Path, *, repetitions: int) -> list[Preparation]:
    """Return a row for each layout and codec; both ways are timed in turn, so that neither has the quieter minute."""
    found = []
    spec = read_spec("sevir")
    for layout in ("contiguous", "gzip"):
        with h5py.File(roots[layout] / "data" / FILE) as file:
            events = len(file["id"])  # pyright: ignore[reportArgumentType]
        for codec in ("lz4", "zstd"):
            times: dict[str, list[float]] = {"bare": [], "ours": []}
            for _ in range(repetitions):
                into = scratch / "prepared"
                times["bare"].append(_cpu(partial(bare, roots[layout], scratch / "bare.h5", codec)))
                source = partial(open_raw, spec, roots[layout])
                times["ours"].append(_cpu(partial(prepare, source, into, Recipe(codec), SingleRank())))
                size = sum(path.stat().st_size for path in into.iterdir()) / 1e6
                shutil.rmtree(into)
            bare_ms, ours_ms = (1e3 * float(np.median(values)) / events for values in times.values())
            found.append(Preparation(layout, codec, bare_ms, ours_ms, size))
    return found


def of_ranks(archive: Path, few: Path, scratch: Path, *, events: int, fewer: int, repetitions: int) -> dict[int, float]:
    """Return milliseconds of processor time an event by number of ranks, start-up taken off.

    Start-up is what the same ranks take for ``fewer`` events of the archive ``few``.
    """
    found = {}
    for ranks in (1, 2):
        each = []
        for _ in range(repetitions):
            spent = [_children(root, scratch / "ranks", ranks) for root in (archive, few)]
            each.append(1e3 * (spent[0] - spent[1]) / (events - fewer))
        found[ranks] = float(np.median(each))
    return found


def _children(root: Path, into: Path, ranks: int) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    simcast = [sys.executable, "-m", "simcast_hpc", "data", "prepare", str(root), str(into), "--events-per-shard", "2"]
    mpiexec = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)] if ranks > 1 else []
    subprocess.run([*mpiexec, *simcast], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(into)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
