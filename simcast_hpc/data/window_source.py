"""``WindowSource``, the interface of all data (windows of encoded radar frames, read by index), and its fingerprint."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

SAMPLED_EVENTS = 16


class WindowKey(NamedTuple):
    """Origin of a window: the event, and its first frame, counted after ``frame_stride``."""

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
    """Windows of one split of one dataset, implemented by archives, prepared shards and user-defined sources.

    Reading is safe in worker processes: each process opens its own files.
    """

    @property
    def frames(self) -> int:
        """Frames per window, T."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Pixels of a frame, (H, W)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Short hex hash of the content, independent of where and how the data is stored."""
        ...

    @property
    def dates(self) -> tuple[str, ...]:
        """Distinct UTC dates of the events: an upper bound of the number of independent weather situations."""
        ...

    def read(self, index: int) -> np.ndarray:
        """Return window ``index`` as encoded pixel values, uint8 ``[T, H, W]``, 255 where missing."""
        ...


def event_checksum(frames: np.ndarray) -> bytes:
    """Return the SHA-256 of an event's encoded frames, uint8 ``[T, H, W]``."""
    return hashlib.sha256(np.ascontiguousarray(frames).data).digest()


def fingerprint(
    recipe: str, ids: Sequence[bytes], times: np.ndarray, windows: np.ndarray, checksum: Callable[[int], bytes]
) -> str:
    """Return a hash of 16 hex digits of windows, equal for an archive, a copy of it and its prepared shards.

    Args:
        recipe: frames and strides, as text.
        ids: event ids in the order of use, UTF-8.
        times: event times in seconds since 1970 UTC, int64 ``[E]``.
        windows: number of windows per event, ``[E]``.
        checksum: :func:`event_checksum` of the n-th event. Called for at most 16 evenly spaced events, including
            the first and last, because an archive must decompress what it hashes.
    """
    digest = hashlib.sha256(recipe.encode())
    digest.update(b"\n".join(ids))
    digest.update(np.ascontiguousarray(times, dtype="<i8").data)
    digest.update(np.ascontiguousarray(windows, dtype="<i8").data)
    count = min(len(ids), SAMPLED_EVENTS)
    for number in range(count):
        digest.update(checksum((len(ids) - 1) * number // max(count - 1, 1)))
    return digest.hexdigest()[:16]
