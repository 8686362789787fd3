"""Windows that the ranks of a spatial group read together: each reads its share of the frames, a gather completes them.

A frame is stored as one compressed chunk, so that reading its rows would read and decompress all of it. Crops, flips,
rotations and base forecasts need whole frames, too; they follow the gather.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from .crop_positions import CropPositions
from .encoding import MISSING_CODE
from .window_source import ArraySource, WindowKey

if TYPE_CHECKING:  # reading data imports no torch
    from torch import Tensor


@runtime_checkable
class FrameSource(ArraySource, Protocol):
    """Windows of which single frames can be read."""

    @property
    def frames(self) -> int:
        """Frames per window, T."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Pixels of a frame, (H, W)."""
        ...

    def read_frames(self, index: int, first: int, last: int) -> np.ndarray:
        """Return frames ``first .. last - 1`` of window ``index``, uint8 ``[last - first, H, W]``."""
        ...


class FrameShare:
    """This rank's frames of each window, an :class:`.ArraySource`.

    Args:
        source: of the whole windows.
        rank: in the spatial group.
        size: ranks of the group.

    Attributes:
        first: the first frame of this rank.
        last: the frame after its last; the last ranks may have fewer frames than the others, or none.
    """

    def __init__(self, source: FrameSource, *, rank: int, size: int):
        self.source = source
        self._share = -(-source.frames // size)
        self.first = min(rank * self._share, source.frames)
        self.last = min(self.first + self._share, source.frames)

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> WindowKey:
        """Return the event and first frame of window ``index``."""
        return self.source.key(index)

    def read(self, index: int) -> np.ndarray:
        """Return the share of window ``index``, uint8 ``[ceil(T / p), H, W]``, padded with missing frames.

        Raises:
            DataError: the stored data is damaged.
        """
        frames = np.full((self._share, *self.source.grid), MISSING_CODE, np.uint8)
        if self.first < self.last:
            frames[: self.last - self.first] = self.source.read_frames(index, self.first, self.last)
        return frames

    def complete(self, shares: "Tensor", gather: "Callable[[Tensor, int], Tensor]") -> "Tensor":
        """Return the whole windows ``[B, T, H, W]`` from the shares of this rank, ``[B, ceil(T / p), H, W]``.

        ``gather`` concatenates the tensors of all ranks of the group, in order, along an axis; a collective.
        """
        return gather(shares, 1)[:, : self.source.frames]


def frame_share(source: ArraySource, crops: CropPositions | None, *, rank: int, size: int) -> FrameShare | None:
    """Return this rank's share of the frames of ``source``, or None if each rank of the group reads whole windows.

    That is so with one rank per group, for sources without ``read_frames``, and if the pixels choose the crop.
    """
    if size == 1 or not isinstance(source, FrameSource) or (crops is not None and crops.reads_pixels):
        return None
    return FrameShare(source, rank=rank, size=size)
