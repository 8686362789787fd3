"""CPU time of ``simcast data prepare`` compared with a minimal loop, and of one rank compared with two."""

import hashlib
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from benchmarks.data_archives import FILE
from benchmarks.measurements import time_call
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.prepare import Recipe, open_raw, prepare
from simcast_hpc.data.shards.shard_format import compression
from simcast_hpc.distributed.ranks import SingleRank


def minimal_preparation(archive: Path, out: Path, codec: str) -> None:
    """Read, transpose, checksum, compress and write every event in one process."""
    with h5py.File(archive / "data" / FILE) as raw, h5py.File(out, "w") as file:
        stored = raw["vil"]
        assert isinstance(stored, h5py.Dataset)
        events, height, width, frames = stored.shape
        codes = file.create_dataset(
            "codes", (events, frames, height, width), np.uint8, chunks=(1, 1, height, width), **compression(codec)
        )
        for number in range(events):
            event = np.ascontiguousarray(np.moveaxis(stored[number], -1, 0))
            hashlib.sha256(event.data).digest()
            codes[number] = event


def compare_with_minimum(roots: dict[str, Path], scratch: Path, *, repetitions: int) -> list[dict[str, object]]:
    """Return a row per layout and codec: medians of CPU milliseconds per event; both ways alternate."""
    rows = []
    spec = read_spec("sevir")
    for layout in ("contiguous", "gzip"):
        with h5py.File(roots[layout] / "data" / FILE) as file:
            events = len(file["id"])  # pyright: ignore[reportArgumentType]
        for codec in ("lz4", "zstd"):
            bare, ours, size = [], [], 0.0
            for _ in range(repetitions):
                out = scratch / "prepared"
                bare.append(time_call(partial(minimal_preparation, roots[layout], scratch / "bare.h5", codec)).cpu)
                source = partial(open_raw, spec, roots[layout])
                ours.append(time_call(partial(prepare, source, out, Recipe(codec), SingleRank())).cpu)
                size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
                shutil.rmtree(out)
            rows.append(
                {
                    "way": "in process",
                    "layout": layout,
                    "codec": codec,
                    "ranks": 1,
                    "bare_ms": round(1e3 * float(np.median(bare)) / events, 2),
                    "ours_ms": round(1e3 * float(np.median(ours)) / events, 2),
                    "megabytes": round(size, 1),
                }
            )
    return rows


def time_ranks(
    archive: Path, few: Path, scratch: Path, *, events: int, fewer: int, repetitions: int
) -> dict[int, float]:
    """Return CPU milliseconds per event by number of ranks, without start-up.

    The start-up time is eliminated by subtracting the time for ``fewer`` events, in the archive ``few``.
    """
    result = {}
    for ranks in (1, 2):
        values = []
        for _ in range(repetitions):
            total, startup = (_child_cpu_seconds(root, scratch / "ranks", ranks) for root in (archive, few))
            values.append(1e3 * (total - startup) / (events - fewer))
        result[ranks] = float(np.median(values))
    return result


def _child_cpu_seconds(root: Path, out: Path, ranks: int) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    simcast = [sys.executable, "-m", "simcast_hpc", "data", "prepare", str(root), str(out), "--events-per-shard", "2"]
    mpiexec = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)] if ranks > 1 else []
    subprocess.run([*mpiexec, *simcast], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(out)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
