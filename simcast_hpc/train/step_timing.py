"""What a rank spends on its own in a step, before it has to wait for others: reading samples, and forward passes.

Steps take equally long on every rank, since the ranks wait for one another; what tells a slow rank is what it does
alone. Under ZeRO 3 a forward pass waits for parts of other ranks, so there the reading alone tells.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepTimer:
    """Adds up seconds of reading (host) and of forward passes (on the device where it is a GPU)."""

    def __init__(self, device: torch.device):
        self._device = device
        self._reading = self._forward = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Time the making of a sample."""
        since = time.perf_counter()
        yield
        self._reading += time.perf_counter() - since

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Time a forward pass, without waiting for it on a GPU."""
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
        """Return the seconds of reading and of forward passes since the last call. Waits for the device."""
        if self._events:
            torch.cuda.synchronize(self._device)
            self._forward += sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
            self._events.clear()
        taken = self._reading, self._forward
        self._reading = self._forward = 0.0
        return taken
