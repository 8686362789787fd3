"""Write and open prepared data of SEVIR's size with sparse shards and a real index.

python -m benchmarks.data_index FOLDER EVENTS      # writes it
python -m benchmarks.data_index --open FOLDER      # opens it, reads a window, prints seconds and MiB as JSON
"""

import json
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from benchmarks.measurements import memory_bytes
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
_EVENTS_PER_SHARD = 64
_SPARSE_BYTES = 120_000_000


def make(root: Path, events: int, *, real: int = 1) -> None:
    """Write index and manifest of ``events`` events of SEVIR's size.

    The last ``real`` shards contain frames; the others are sparse files of a shard's length.
    """
    spec = read_spec("sevir")
    frames, grid = 49, (384, 384)
    root.mkdir(parents=True)
    count = -(-events // _EVENTS_PER_SHARD)
    shards = []
    for number in range(count):
        path = root / shard_name(number)
        rows = min(_EVENTS_PER_SHARD, events - number * _EVENTS_PER_SHARD)
        if number >= count - real:
            with h5py.File(path, "w") as file:
                each = chunk_frames(frames, grid)
                codes = file.create_dataset(
                    "codes", (rows, frames, *grid), np.uint8, chunks=(1, each, *grid), **compression("lz4")
                )
                for row in range(rows):
                    codes[row] = np.full((frames, *grid), row, np.uint8)  # h5py writes a scalar row by row
        else:
            with path.open("wb") as file:
                file.truncate(_SPARSE_BYTES)
        shards.append(ShardFile(name=path.name, bytes=path.stat().st_size, sha256="0" * 64, events=rows))
    numbers = np.arange(events)
    seconds = 1_514_764_800 + numbers * 1000
    index = Index(
        id=np.array([f"S{number:09d}".encode() for number in numbers]),
        time=seconds,
        begin=seconds - 7200,
        split=np.ones(events, np.uint8),
        percent_missing=np.zeros(events),
        shard=(numbers // _EVENTS_PER_SHARD).astype(np.int32),
        row=(numbers % _EVENTS_PER_SHARD).astype(np.int32),
        file=np.zeros(events, np.int32),
        file_index=numbers.astype(np.int32),
        sha256=np.random.default_rng(0).integers(0, 255, (events, 32), dtype=np.uint8),
        gaps=None,
    )
    write_index(root / INDEX, index)
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
        index=ShardFile(name=INDEX, bytes=(root / INDEX).stat().st_size, sha256=file_hash(root / INDEX), events=events),
        files=("vil/2018/all.h5",),
        left_out=(),
        notes=(),
        statistics={},
    )
    write_text(root / MANIFEST, manifest.text)


def open_and_sample(root: Path) -> dict[str, float]:
    """Open the data, read the last window and the fingerprint; return seconds and the increase of memory in MiB."""
    before = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak of the imports
    began = time.perf_counter()
    source = open_windows(DataConfig(dataset="sevir", root=root), split="train", frames=25)
    window = source.read(len(source) - 1)
    keys = [source.key(index) for index in range(0, len(source), 1000)]
    fingerprint = source.fingerprint
    seconds = time.perf_counter() - began
    added = (memory_bytes("VmHWM") - before) / 2**20
    assert window.shape == (25, 384, 384) and len(fingerprint) == 16 and keys
    return {"windows": len(source), "seconds": round(seconds, 3), "mib": round(added, 1)}


if __name__ == "__main__":
    if sys.argv[1] == "--open":
        print(json.dumps(open_and_sample(Path(sys.argv[2]))))
    else:
        make(Path(sys.argv[1]), int(sys.argv[2]))
