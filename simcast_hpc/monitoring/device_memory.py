"""Memory of this process: metrics, and a snapshot of the device memory when it runs out."""

import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from simcast_hpc.storage.atomic_files import atomic_file

logger = logging.getLogger(__name__)
_HISTORY_ENTRIES = 100_000
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux


def memory_metrics() -> dict[str, float]:
    """Return the memory of this process: peak of the host, and with CUDA the state of torch's allocator."""
    metrics = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 2**30}
    if torch.cuda.is_available():
        statistics = torch.cuda.memory_stats()
        metrics |= {
            "memory/peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "memory/allocated_gib": torch.cuda.memory_allocated() / 2**30,
            "memory/reserved_gib": torch.cuda.memory_reserved() / 2**30,
            "memory/allocation_retries": float(statistics.get("num_alloc_retries", 0)),
        }
    return metrics


@contextmanager
def snapshot_on_out_of_memory(folder: Path, *, rank: int, history: bool = False) -> Iterator[None]:
    """Write a snapshot of torch's allocator to ``folder`` if the block runs out of device memory.

    The file opens in https://pytorch.org/memory_viz. The error is raised again, with the path in its message.

    Args:
        folder: created when a snapshot is written.
        rank: of this process; part of the file name.
        history: also record the stack of each allocation, which costs a few microseconds each.
    """
    records = history and torch.cuda.is_available()
    if records:
        torch.cuda.memory._record_memory_history(max_entries=_HISTORY_ENTRIES)
    try:
        yield
    except torch.OutOfMemoryError as error:
        path = folder / f"rank-{rank}-out-of-memory.pickle"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                torch.cuda.memory._dump_snapshot(str(temporary))
            error.add_note(f"snapshot of the device memory: {path} (open it in https://pytorch.org/memory_viz)")
        except Exception as failure:  # the error above is the cause; this one must not hide it
            logger.warning("the snapshot of the device memory cannot be written to %s: %s", path, failure)
        raise
    finally:
        if records:
            torch.cuda.memory._record_memory_history(enabled=None)
