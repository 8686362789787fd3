"""Progress of a long step as log lines, which stay readable in the log of a batch job."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_FIRST_SECONDS = 5.0
_EVERY_SECONDS = 30.0


class Progress:
    """Log how much of a step is done, its rate and the estimated remaining time.

    The first line appears after 5 s, the next ones 30 s apart: a step that is shorter logs nothing.

    Args:
        logger: of the module that runs the step.
        step: name of the step, for example ``verification``.
        total: number of items.
        unit: of the items, for example ``windows``; ``B`` is printed in GB.
        done: items that existed before; they do not count for the rate.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        step: str,
        total: int,
        *,
        unit: str,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._logger, self._step, self._total, self._unit, self._clock = logger, step, total, unit, clock
        self._done = self._done_before = done
        self._start = clock()
        self._next = self._start + _FIRST_SECONDS

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as done, and log if a line is due."""
        self._done += count
        now = self._clock()
        if now < self._next or self._done >= self._total:
            return
        self._next = now + _EVERY_SECONDS
        rate = (self._done - self._done_before) / (now - self._start)
        scale, unit = (1e9, "GB") if self._unit == "B" else (1, self._unit)
        digits = 2 if scale > 1 else 0
        self._logger.info(
            "%s: %.*f of %.*f %s (%.0f %%), %.3g %s/s, %s left",
            self._step, digits, self._done / scale, digits, self._total / scale, unit, 100 * self._done / self._total,
            rate / scale, unit, format_duration((self._total - self._done) / rate) if rate > 0 else "unknown time",
        )  # fmt: skip

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items`` and count each as done when the next one is requested."""
        for item in items:
            yield item
            self.advance()


def format_duration(seconds: float) -> str:
    """Return a duration such as ``45 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
