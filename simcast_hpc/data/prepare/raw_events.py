"""``EventSource``, the interface of the readers of raw data: events of equal length and grid, read by number."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from simcast_hpc.data.data_errors import DataProblem
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.distributed.ranks import Ranks


class RawEvent(NamedTuple):
    """Metadata of an event. Times are seconds since 1970 UTC: ``time`` decides the split, ``begin`` is that of frame 0.

    ``percent_missing`` is the value of the catalog, or None if it is to be counted from the pixel values.
    ``file`` and ``file_index`` locate the event.
    """

    id: str
    time: int
    begin: int
    split: str
    percent_missing: float | None
    file: str
    file_index: int


class EventSource(Protocol):
    """Checked raw data: ``events`` are usable, ``problems`` describe the rest."""

    @property
    def spec(self) -> DatasetSpec:
        """Description of the dataset."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Pixels of a frame, (H, W)."""
        ...

    @property
    def frames(self) -> int:
        """Frames per event."""
        ...

    @property
    def events(self) -> Sequence[RawEvent]:
        """Usable events, in the order in which they are stored."""
        ...

    @property
    def absent(self) -> Sequence[RawEvent]:
        """Listed events that are not usable; they count where an id must be unique."""
        ...

    @property
    def problems(self) -> Sequence[DataProblem]:
        """Problems of the events that are not usable."""
        ...

    @property
    def notes(self) -> Sequence[DataProblem]:
        """Peculiarities that do not affect the shards."""
        ...

    @property
    def identity(self) -> str:
        """Hash of the raw data from metadata such as names and sizes, without reading the frames."""
        ...

    def complete(self, ranks: Ranks) -> None:
        """Complete ``events`` where ranks share the inspection of files. A collective that does not raise."""
        ...

    def read(self, number: int) -> np.ndarray:
        """Return event ``number`` as uint8 ``[T, H, W]``, 255 where missing.

        Raises:
            DataError: the event cannot be read.
        """
        ...
