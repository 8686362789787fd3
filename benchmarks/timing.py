"""Timing a call, and what a device can do at most: a roofline from a copy and matrix products of the same run."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

CPU_CACHE_BYTES = 2**25  # where the kernel does not tell
MOST_CPU_CACHE_BYTES = 2**27  # a virtual machine is told of its whole socket's, of which it has a share


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The two ceilings of a device (Williams, Waterman and Patterson 2009), measured.

    Attributes:
        copy: bytes a second of a large copy, bytes read and bytes written both counted.
        products: operations a second of a large matrix product by dtype, a multiplication and its addition as two.
    """

    copy: float
    products: dict[torch.dtype, float] = field(default_factory=dict)

    def floor(self, size: int, operations: int, dtype: torch.dtype) -> tuple[float, Literal["memory", "product"]]:
        """Return the fewest seconds that work can take, and which of the two ceilings says so.

        Args:
            size: bytes moved at least.
            operations: of matrix products; other arithmetic has another ceiling and is not counted.
            dtype: of the products.
        """
        memory = size / self.copy
        product = operations / self.products[dtype] if operations else 0.0
        return (product, "product") if product > memory else (memory, "memory")


def measured_roofline(device: str, dtypes: Sequence[torch.dtype]) -> Roofline:
    """Measure both ceilings of a device now."""
    return Roofline(copy=copy_bandwidth(device), products={dtype: product_rate(device, dtype) for dtype in dtypes})


def copy_bandwidth(device: str) -> float:
    """Return the bandwidth of a large copy in bytes a second, bytes read and bytes written both counted."""
    size = 2**30 if device == "cuda" else max(2**26, 2 * cache_bytes(device))
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = time_calls(lambda _: target.copy_(source), 1, device=device)
    return 2 * size / (quantile(times, 0.5) * 1e-6)


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Return the operations a second of a large square matrix product of random numbers, by PyTorch's own."""
    size = 8192 if device == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    times = time_calls(lambda _: torch.mm(left, right, out=out), 1, device=device, seconds=0.6)
    return 2 * size**3 / (quantile(times, 0.5) * 1e-6)


def cache_bytes(device: str) -> int:
    """Return the size of the cache that repeated work on one buffer would be timed in."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = [CPU_CACHE_BYTES]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * 2**10 if text.endswith("K") else int(text.rstrip("M")) * 2**20)
    return min(max(sizes), MOST_CPU_CACHE_BYTES)


def set_count(size: int, device: str) -> int:
    """Return how many sets of inputs of ``size`` bytes to rotate through, so that no set is still in the cache."""
    wanted = math.ceil(4 * cache_bytes(device) / size) + 1
    if device != "cuda":
        return max(2, min(wanted, 16, int(2**30 / size)))
    free, _ = torch.cuda.mem_get_info()
    # A set may come to hold its inputs, a graph of autograd and the intermediates of an eager twin.
    return max(1, min(wanted, 256, int(free / 16 / size)))


def time_calls(call: Callable[[int], Any], count: int, *, device: str, seconds: float = 0.3) -> list[float]:
    """Return the microseconds of each of at least 10 calls, after a warm-up, in about ``seconds`` in all."""
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
    """Return the microseconds of a call, averaged over a graph that calls every set, for each of 20 replays."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(count):
            call(i)
    times = time_calls(lambda _: graph.replay(), 1, device="cuda", seconds=0.1)
    return [t / count for t in times]


def wait(device: str) -> None:
    """Wait for what the device was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def quantile(times: Sequence[float], q: float) -> float:
    """Return the time of rank ``q``, 0 the shortest and 1 the longest."""
    ordered = sorted(times)
    return ordered[round(q * (len(ordered) - 1))]
