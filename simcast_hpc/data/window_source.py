"""The one shape that all data takes: windows of radar code, readable by index. Nobody past here knows an archive."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

SAMPLED_EVENTS = 16


class WindowKey(NamedTuple):
    """Where a window comes from: the event, and its first frame counted in frames that are kept."""

    event: str
    start: int

    def __str__(self) -> str:
        return f"{self.event}@{self.start}"


class ArraySource(Protocol):
    """One array per window: the window itself, or what was computed from it and stored, such as latents."""

    def __len__(self) -> int:
        """Return the number of windows."""
        ...

    def read(self, index: int) -> np.ndarray:
        """Return the array of window ``index``; all arrays of a source have one shape and dtype."""
        ...

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        ...


@runtime_checkable
class WindowSource(ArraySource, Protocol):
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

    def read(self, index: int) -> np.ndarray:
        """Return window ``index`` as radar code, uint8 ``[T, H, W]``, 255 where missing."""
        ...


def event_checksum(frames: np.ndarray) -> bytes:
    """Return the SHA-256 of an event's codes, uint8 ``[T, H, W]``."""
    return hashlib.sha256(np.ascontiguousarray(frames).data).digest()


def fingerprint(
    recipe: str, ids: Sequence[bytes], times: np.ndarray, windows: np.ndarray, checksum: Callable[[int], bytes]
) -> str:
    """Return 16 hex digits over the windows that ``recipe`` cuts from events.

    Args:
        recipe: frames and strides, as text.
        ids: event ids in the order of use, UTF-8.
        times: their times in seconds since 1970 UTC, int64 ``[E]``.
        windows: how many windows each has, ``[E]``.
        checksum: :func:`event_checksum` of the n-th event. Asked for at most 16 evenly spaced events, the first and
            the last among them, because an archive must decompress what it hashes.
    """
    digest = hashlib.sha256(recipe.encode())
    digest.update(b"\n".join(ids))
    digest.update(np.ascontiguousarray(times, dtype="<i8").data)
    digest.update(np.ascontiguousarray(windows, dtype="<i8").data)
    count = min(len(ids), SAMPLED_EVENTS)
    for place in range(count):
        digest.update(checksum((len(ids) - 1) * place // max(count - 1, 1)))
    return digest.hexdigest()[:16]
