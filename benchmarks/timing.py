"""Time calls, and measure the roofline of a device: copy bandwidth and matmul rate in the same run."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

CPU_CACHE_BYTES = 2**25  # if the operating system does not report a size
MAX_CPU_CACHE_BYTES = 2**27  # a virtual machine reports the cache of the whole socket


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The two ceilings of a device (Williams, Waterman and Patterson 2009), measured.

    Attributes:
        copy: bandwidth of a large copy in bytes per second, reads plus writes.
        matmuls: rate of a large matmul in FLOP/s by dtype, a multiply-add as two.
    """

    copy: float
    matmuls: dict[torch.dtype, float] = field(default_factory=dict)

    def floor(self, size: int, operations: int, dtype: torch.dtype) -> tuple[float, Literal["memory", "matmul"]]:
        """Return the minimum time in seconds, and the ceiling that determines it.

        Args:
            size: minimum number of bytes moved.
            operations: FLOPs of the matmuls; other arithmetic is not counted.
            dtype: dtype of the matmuls.
        """
        memory = size / self.copy
        matmul = operations / self.matmuls[dtype] if operations else 0.0
        return (matmul, "matmul") if matmul > memory else (memory, "memory")


def measured_roofline(device: str, dtypes: Sequence[torch.dtype]) -> Roofline:
    """Measure both ceilings of a device."""
    return Roofline(copy=copy_bandwidth(device), matmuls={dtype: matmul_rate(device, dtype) for dtype in dtypes})


def stored_roofline(device: str, dtypes: Sequence[torch.dtype], path: Path | None) -> Roofline:
    """Return the ceilings that another process stored in ``path`` (JSON), and measure and store those that it lacks."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    missing = [dtype for dtype in dtypes if str(dtype) not in stored]
    if "copy" not in stored or missing:
        measured = measured_roofline(device, missing)
        stored = {"copy": measured.copy} | stored | {str(dtype): rate for dtype, rate in measured.matmuls.items()}
        if path is not None:
            path.write_text(json.dumps(stored), encoding="utf-8")
    return Roofline(copy=stored["copy"], matmuls={dtype: stored[str(dtype)] for dtype in dtypes})


def copy_bandwidth(device: str) -> float:
    """Return the bandwidth of a large copy in bytes per second, reads plus writes."""
    size = 2**30 if device == "cuda" else max(2**26, 2 * cache_bytes(device))
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = time_calls(lambda _: target.copy_(source), 1, device=device)
    return 2 * size / (quantile(times, 0.5) * 1e-6)


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Return the rate of a large square PyTorch matmul of random numbers in FLOP/s."""
    size = 8192 if device == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    times = time_calls(lambda _: torch.mm(left, right, out=out), 1, device=device, seconds=0.6)
    return 2 * size**3 / (quantile(times, 0.5) * 1e-6)


def cache_bytes(device: str) -> int:
    """Return the size of the cache that repeated work on one buffer could hit."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = [CPU_CACHE_BYTES]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * 2**10 if text.endswith("K") else int(text.rstrip("M")) * 2**20)
    return min(max(sizes), MAX_CPU_CACHE_BYTES)


def set_count(size: int, device: str) -> int:
    """Return the number of input sets of ``size`` bytes to rotate through, so that no set is still in the cache."""
    count = math.ceil(4 * cache_bytes(device) / size) + 1
    if device != "cuda":
        return max(2, min(count, 16, int(2**30 / size)))
    free, _ = torch.cuda.mem_get_info()
    # A set can hold its inputs, an autograd graph and the intermediates of eager PyTorch.
    return max(1, min(count, 256, int(free / 16 / size)))


def time_calls(call: Callable[[int], Any], count: int, *, device: str, seconds: float = 0.3) -> list[float]:
    """Return the time in microseconds of each of at least 10 calls, after a warm-up, within about ``seconds``."""
    call(0)
    began = time.perf_counter()
    call(count - 1)
    wait(device)
    repeats = max(10, min(500, int(seconds / max(time.perf_counter() - began, 1e-6))))
    if device != "cuda":
        times = []
        for i in range(repeats):
            began = time.perf_counter()
            call(i % count)
            times.append(1e6 * (time.perf_counter() - began))
        return times
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for i, (start, end) in enumerate(events):
        start.record()
        call(i % count)
        end.record()
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in events]


def time_graph(call: Callable[[int], Any], count: int, stream: torch.cuda.Stream) -> list[float]:
    """Return the time in microseconds of a call in a CUDA graph over all input sets, for each replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(count):
            call(i)
    times = time_calls(lambda _: graph.replay(), 1, device="cuda", seconds=0.1)
    return [t / count for t in times]


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def quantile(times: Sequence[float], q: float) -> float:
    """Return the time of rank ``q``, 0 the shortest and 1 the longest."""
    ordered = sorted(times)
    return ordered[round(q * (len(ordered) - 1))]
