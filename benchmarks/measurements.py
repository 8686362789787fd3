"""Measure calls in this process, and write the rows: wall and CPU time, peak memory, provenance, CSV files, tables."""

import contextlib
import csv
import ctypes
import gc
import io
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.tabulate import read, table
from benchmarks.timing import quantile, wait
from simcast_hpc.storage.atomic_files import write_text

ROOT = Path(__file__).resolve().parents[1]
# Default folder of the CSV files that benchmarks/tabulate.py reads.
RESULTS = Path(os.environ.get("RESULTS") or ROOT / "benchmarks" / "results")


class Seconds(NamedTuple):
    """Wall time, and CPU time of this process over all threads."""

    wall: float
    cpu: float


def now(device: str = "cpu") -> Seconds:
    """Return the current times after the device has finished its work."""
    wait(device)
    return Seconds(time.perf_counter(), time.process_time())


def elapsed(since: Seconds, device: str = "cpu") -> Seconds:
    """Return the times since ``since`` after the device has finished its work."""
    end = now(device)
    return Seconds(end.wall - since.wall, end.cpu - since.cpu)


def time_call(call: Callable[[], object], device: str = "cpu") -> Seconds:
    """Run ``call`` once and return its times."""
    start = now(device)
    call()
    return elapsed(start, device)


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[list[float]]:
    """Yield a list whose single element is, after the block, the peak memory of the block in gigabytes.

    On CUDA this is the peak of the allocator; on a CPU the largest resident size, sampled every 5 ms.
    """
    gc.collect()
    peak = [0.0]
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak[0] = torch.cuda.max_memory_allocated() / 1e9
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # return memory that the previous step freed
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], memory_bytes("VmRSS") / 1e9)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], memory_bytes("VmRSS") / 1e9)


def memory_bytes(field: str) -> int:
    """Return a field of ``/proc/self/status`` in bytes: ``VmRSS`` is the resident size, ``VmHWM`` its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the columns ``p20_s``, ``p50_s`` and ``p80_s``."""
    return {f"p{q}_s": round(quantile(seconds, q / 100), 5) for q in (20, 50, 80)}


def machine(device: str, *, threads: int | None = None) -> dict[str, str]:
    """Return the provenance of a measurement: device, versions and commit.

    ``threads`` is the number per timed process, by default that of this process.
    """
    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = ""
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()} CPU, {threads or torch.get_num_threads()} threads"
    )
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": commit_of(Path(__file__).parent, dirty=True),
        "python": platform.python_version(),
    }


def provenance(device: str, *, threads: int | None = None) -> dict[str, Any]:
    """Return :func:`machine` and ``load``, the load average over one minute."""
    return {"load": round(os.getloadavg()[0], 1), **machine(device, threads=threads)}


def commit_of(folder: Path, *, dirty: bool = False) -> str:
    """Return the short hash of a checkout, or ``unknown``; with ``dirty``, ``+changes`` marks a modified work tree."""
    try:
        git = ["git", "-C", str(folder)]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty and changes.stdout.strip() else "")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV, all values as text."""
    return read(path.read_text(encoding="utf-8"))


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as CSV and create the parent folders; columns are those of all rows, missing values are empty.

    The file is replaced atomically: a process that is stopped while it writes leaves the rows written before.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def report(rows: Sequence[Mapping[str, Any]], path: Path, **options: str) -> None:
    """Write rows as CSV, and print them as a table and the path; ``options`` are those of ``tabulate.table``."""
    write_rows(rows, path)
    if rows:
        print(table(read_rows(path), **options))
    print(path)


def print_table(lines: Sequence[Sequence[str]]) -> None:
    """Print lines of cells in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
