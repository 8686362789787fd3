"""The fingerprint of windows: a hash of what they hold, equal for an archive, a copy of it and its prepared shards."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

SAMPLED_EVENTS = 16


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
