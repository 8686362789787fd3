"""Opening prepared data of SEVIR's full size, and of ten times that: sparse shards under a real index.

python -m benchmarks.data_index FOLDER EVENTS      makes it
python -m benchmarks.data_index --open FOLDER      opens it and reads a window; prints seconds and MiB as JSON
"""

import json
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from simcast_hpc.config import DataConfig
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.shards.shard_format import (
    INDEX,
    MANIFEST,
    Index,
    Manifest,
    ShardFile,
    chunk_frames,
    compression,
    shard_name,
    stored_description_hash,
    write_index,
)
from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.storage.run_directory import file_hash

SEVIR_EVENTS = 18_979
_EACH = 64
_SPARSE_BYTES = 120_000_000


def make(root: Path, events: int, *, real: int = 1) -> None:
    """Write index and manifest of so many events of SEVIR's size; ``real`` shards at the end hold frames.

    The others are holes of a shard's length.
    """
    spec = read_spec("sevir")
    frames, grid = 49, (384, 384)
    root.mkdir(parents=True)
    count = -(-events // _EACH)
    shards = []
    for number in range(count):
        path = root / shard_name(number)
        held = min(_EACH, events - number * _EACH)
        if number >= count - real:
            with h5py.File(path, "w") as file:
                each = chunk_frames(frames, grid)
                codes = file.create_dataset(
                    "codes", (held, frames, *grid), np.uint8, chunks=(1, each, *grid), **compression("lz4")
                )
                for row in range(held):
                    codes[row] = np.full((frames, *grid), row, np.uint8)  # h5py writes a scalar row by row
        else:
            with path.open("wb") as file:
                file.truncate(_SPARSE_BYTES)
        shards.append(ShardFile(name=path.name, bytes=path.stat().st_size, sha256="0" * 64, events=held))
    numbers = np.arange(events)
    seconds = 1_514_764_800 + numbers * 1000
    index = Index(
        id=np.array([f"S{number:09d}".encode() for number in numbers]),
        time=seconds,
        begin=seconds - 7200,
        split=np.ones(events, np.uint8),
        percent_missing=np.zeros(events),
        shard=(numbers // _EACH).astype(np.int32),
        row=(numbers % _EACH).astype(np.int32),
        file=np.zeros(events, np.int32),
        file_index=numbers.astype(np.int32),
        sha256=np.random.default_rng(0).integers(0, 255, (events, 32), dtype=np.uint8),
        gaps=None,
    )
    write_index(root / INDEX, index)
    about = root / INDEX
    manifest = Manifest(
        format=1,
        dataset="sevir",
        description=stored_description_hash(spec),
        made_of="sparse files of a benchmark",
        codec="lz4",
        grid=grid,
        frames_per_event=frames,
        chunk_frames=chunk_frames(frames, grid),
        whole_frames=False,
        shards=tuple(shards),
        index=ShardFile(name=INDEX, bytes=about.stat().st_size, sha256=file_hash(about), events=events),
        files=("vil/2018/all.h5",),
        left_out=(),
        notes=(),
        statistics={},
    )
    write_text(root / MANIFEST, manifest.text)


def open_and_sample(root: Path) -> dict[str, float]:
    """Return seconds to open, fingerprint and read the last window and one in a thousand, and MiB that were added."""
    before = _memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark so far is that of the imports
    began = time.perf_counter()
    source = open_windows(DataConfig(dataset="sevir", root=root), split="train", frames=25)
    window = source.read(len(source) - 1)
    keys = [source.key(index) for index in range(0, len(source), 1000)]
    print_of = source.fingerprint
    seconds = time.perf_counter() - began
    added = (_memory_kib("VmHWM") - before) / 1024
    assert window.shape == (25, 384, 384) and len(print_of) == 16 and keys
    return {"windows": float(len(source)), "seconds": round(seconds, 3), "mib": round(added, 1)}


def _memory_kib(field: str) -> int:
    """Return what the system says of this process: ``VmRSS`` is its memory, ``VmHWM`` the highest mark of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    if sys.argv[1] == "--open":
        print(json.dumps(open_and_sample(Path(sys.argv[2]))))
    else:
        make(Path(sys.argv[1]), int(sys.argv[2]))
