"""Time that a rank spends on reading samples and on forward passes, before it waits for other ranks.

Steps take equally long on all ranks because they synchronize; a slow rank shows only in the time before
it synchronizes. Under ZeRO 3 the forward pass gathers weights from other ranks, so only the reading time is conclusive.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepTimer:
    """Accumulates seconds of reading (host time) and of forward passes (device time on a GPU)."""

    def __init__(self, device: torch.device):
        self._device = device
        self._reading = self._forward = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Time the creation of a sample."""
        since = time.perf_counter()
        yield
        self._reading += time.perf_counter() - since

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Time a forward pass, without synchronization on a GPU."""
        if self._device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
            return
        since = time.perf_counter()
        yield
        self._forward += time.perf_counter() - since

    def take(self) -> tuple[float, float]:
        """Return the seconds of reading and of forward passes since the last call. Synchronizes with the device."""
        if self._events:
            torch.cuda.synchronize(self._device)
            self._forward += sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
            self._events.clear()
        taken = self._reading, self._forward
        self._reading = self._forward = 0.0
        return taken
