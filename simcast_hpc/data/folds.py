"""Folds of events: what one model must not have seen so that another can be judged, or taught, on it.

The fold of an event is a function of its identifier alone. So no event's windows straddle folds, and neither window
stride, order nor which events are kept move an event from one fold to another.
"""

import hashlib

import numpy as np

from simcast_hpc.config import DataError, HoldOutConfig

from .window_source import WindowKey, WindowSource


def fold_of(event: str, folds: int) -> int:
    """Return which of ``folds`` folds an event is in, by a hash of its identifier."""
    return int.from_bytes(hashlib.blake2b(event.encode(), digest_size=8).digest(), "little") % folds


class WithoutFold:
    """The windows of ``inner`` whose events are not in the fold that is held out."""

    def __init__(self, inner: WindowSource, held_out: HoldOutConfig):
        """Choose the windows.

        Raises:
            DataError: no window is left, or none is held out: there are too few events.
        """
        self.inner, self.frames, self.grid, self.dates = inner, inner.frames, inner.grid, inner.dates
        folds = np.array([fold_of(inner.key(index).event, held_out.folds) for index in range(len(inner))])
        self._kept = np.flatnonzero(folds != held_out.fold)
        if len(self._kept) in (0, len(inner)):
            what = "nothing but" if len(self._kept) == 0 else "nothing in"
            raise DataError(
                f"data.hold_out: the training events leave {what} fold {held_out.fold} of {held_out.folds}; take fewer "
                "folds"
            )
        recipe = f"{inner.fingerprint} without fold {held_out.fold} of {held_out.folds}"
        self.fingerprint = hashlib.sha256(recipe.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._kept)

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        return self.inner.key(int(self._kept[index]))

    def read(self, index: int) -> np.ndarray:
        """Return window ``index``, uint8 ``[T, H, W]``."""
        return self.inner.read(int(self._kept[index]))
