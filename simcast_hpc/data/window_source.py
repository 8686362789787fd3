"""The one shape that all data takes: windows of radar code, readable by index. Nobody past here knows an archive."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class WindowKey(NamedTuple):
    """Where a window comes from: the event, and its first frame counted in frames that are kept."""

    event: str
    start: int

    def __str__(self) -> str:
        return f"{self.event}@{self.start}"


@runtime_checkable
class WindowSource(Protocol):
    """Windows of one split of one data set. Archives, prepared shards and a user's own data implement it alike.

    Reading is safe in worker processes: files are opened where they are read, not where the source was made.
    """

    @property
    def frames(self) -> int:
        """Frames in a window, T."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Pixels of a frame, (H, W)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Short hex hash of the content: equal data gives an equal one wherever it stands."""
        ...

    @property
    def dates(self) -> tuple[str, ...]:
        """UTC dates of the events, each once: independent weather is at most that many."""
        ...

    def __len__(self) -> int:
        """Return the number of windows."""
        ...

    def read(self, index: int) -> np.ndarray:
        """Return window ``index`` as radar code, uint8 ``[T, H, W]``, 255 where missing."""
        ...

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        ...
