"""Write one shard: read its events, compute checksums and statistics, compress, and write atomically."""

from pathlib import Path

import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.data.data_errors import DataProblem
from simcast_hpc.data.sampling_statistics import COLUMNS, EventStatistics, frame_histograms
from simcast_hpc.data.shards.shard_format import chunk_frames, compression
from simcast_hpc.data.window_source import event_checksum
from simcast_hpc.storage.hdf5_target import atomic_hdf5

from ..encoding import MISSING_CODE
from .raw_events import EventSource


def write_shard(path: Path, source: EventSource, numbers: range, *, codec: str, skip_unreadable: bool) -> None:
    """Write the events ``numbers`` of ``source``.

    Raises:
        DataError: an event cannot be read and ``skip_unreadable`` is false.
        OSError: the disk is full or the folder is not writable; no shard of this name is created.
    """
    height, width = source.grid
    count, frames = len(numbers), source.frames
    with atomic_hdf5(path, libver="v110") as file:
        codes = file.create_dataset(
            "codes",
            shape=(count, frames, height, width),
            dtype=np.uint8,
            chunks=(1, chunk_frames(frames, source.grid), height, width),
            **compression(codec),
        )
        checksums = np.zeros((count, 32), np.uint8)
        usable = np.zeros(count, np.uint8)
        gaps = np.zeros((count, frames), np.uint8)
        histograms = np.zeros((count, MISSING_CODE + 1), np.uint32)
        statistics = EventStatistics.unknown(count, frames)
        for row, number in enumerate(numbers):
            event = _read(source, number, skip_unreadable=skip_unreadable)
            if event is None:
                codes[row] = MISSING_CODE  # so that a chunk that was never written is always damage
                continue
            usable[row] = 1
            codes[row] = event
            checksums[row] = np.frombuffer(event_checksum(event), np.uint8)
            counts = frame_histograms(event)
            histograms[row] = counts.sum(axis=0)
            gaps[row] = counts[:, MISSING_CODE] == height * width
            of_event = EventStatistics.of_histograms(source.spec, counts[None])
            for name in COLUMNS:
                getattr(statistics, name)[row] = getattr(of_event, name)[0]
        file["id"] = np.array([source.events[number].id.encode() for number in numbers])
        file["sha256"], file["usable"], file["gaps"] = checksums, usable, gaps
        file.create_dataset("histogram", data=histograms, compression="gzip")
        for name in COLUMNS:
            file.create_dataset(name, data=getattr(statistics, name))


def _read(source: EventSource, number: int, *, skip_unreadable: bool) -> np.ndarray | None:
    try:
        return source.read(number)
    except DataError:
        if skip_unreadable:
            return None
        raise


def unreadable(source: EventSource, number: int) -> DataProblem:
    """Return the problem of an event that was skipped because it could not be read."""
    event = source.events[number]
    return DataProblem("truncated", event.file, event.id, "cannot be read")
