"""Cross-validation folds of events, so that one model can be trained or evaluated on events that another has not seen.

The fold of an event is a function of its identifier only. All windows of an event are therefore in one fold, and window
stride, order and event selection do not change the fold of an event.
"""

import hashlib

import numpy as np

from simcast_hpc.config import DataError, HoldOutConfig

from .importance_sampling import mean_rates
from .window_source import WindowKey, WindowSource


def fold_of(event: str, folds: int) -> int:
    """Return the fold of an event, 0 .. ``folds`` - 1, computed from a hash of its identifier."""
    return int.from_bytes(hashlib.blake2b(event.encode(), digest_size=8).digest(), "little") % folds


class WithoutFold:
    """The windows of ``inner`` whose events are not in the held-out fold."""

    def __init__(self, inner: WindowSource, held_out: HoldOutConfig):
        """Select the windows.

        Raises:
            DataError: no window remains, or none is held out, because there are too few events.
        """
        self.inner, self.frames, self.grid, self.dates = inner, inner.frames, inner.grid, inner.dates
        folds = np.array([fold_of(inner.key(index).event, held_out.folds) for index in range(len(inner))])
        self._kept = np.flatnonzero(folds != held_out.fold)
        if len(self._kept) in (0, len(inner)):
            share = "all" if len(self._kept) == 0 else "none"
            raise DataError(
                f"data.hold_out: {share} of the training events are in fold {held_out.fold} of {held_out.folds}; use "
                "fewer folds"
            )
        recipe = f"{inner.fingerprint} without fold {held_out.fold} of {held_out.folds}"
        self.fingerprint = hashlib.sha256(recipe.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._kept)

    def mean_rates(self) -> np.ndarray:
        """Return the mean rain rate of each window in mm/h, float64 ``[N]``."""
        return mean_rates(self.inner)[self._kept]

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        return self.inner.key(int(self._kept[index]))

    def read(self, index: int) -> np.ndarray:
        """Return window ``index``, uint8 ``[T, H, W]``."""
        return self.inner.read(int(self._kept[index]))
