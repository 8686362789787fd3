"""Where the time of an optimizer step goes on a rank, without additional synchronization with the device.

Steps take equally long on all ranks because they synchronize; a slow rank shows only in the time before it
synchronizes: in reading and in the forward pass. Under ZeRO 3 the forward pass gathers weights from other ranks, so
only the reading time is conclusive.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

DEVICE_PARTS = ("forward", "backward", "waiting", "optimizer")
"""Parts that run on the device: forward passes; backward passes, which contain the reduction of gradients; the wait for
the slowest rank in the reduction of the step status; the optimizer step, which contains the all-gather of weights."""
HOST_PARTS = ("reading", "checkpoint", "validation")
"""Parts that occupy the host: the wait for samples, checkpoints, validation."""
PARTS = (*HOST_PARTS[:1], *DEVICE_PARTS, *HOST_PARTS[1:])


class StepTimer:
    """Accumulates the seconds of each part of a step: device time on a GPU, host time of the parts in ``HOST_PARTS``.

    Each part is also a range of the profiler, and with ``nvtx`` an NVTX range.
    """

    def __init__(self, device: torch.device, *, nvtx: bool = False):
        self._on_device, self._device, self._nvtx = device.type == "cuda", device, nvtx and device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time one of ``PARTS``, without synchronization on a GPU."""
        with torch.profiler.record_function(name), self._nvtx_range(name):
            if self._on_device and name in DEVICE_PARTS:
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                yield
                end.record()
                self._events.append((name, begin, end))
                return
            since = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - since

    @contextmanager
    def _nvtx_range(self, name: str) -> Iterator[None]:
        if not self._nvtx:
            yield
            return
        with torch.cuda.nvtx.range(name):
            yield

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, or 0. Synchronizes with the device."""
        if self._events:
            self._events[-1][2].synchronize()
            for name, begin, end in self._events:
                self._seconds[name] += begin.elapsed_time(end) / 1e3
            self._events.clear()
        taken = {name: self._seconds[name] for name in PARTS}
        self._seconds.clear()
        return taken
