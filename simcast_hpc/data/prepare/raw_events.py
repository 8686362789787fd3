"""What every reader of raw data offers to the preparation: events of equal length and grid, by number."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from simcast_hpc.data.data_errors import DataProblem
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.distributed.ranks import Ranks


class RawEvent(NamedTuple):
    """An event before it is read. Times are seconds since 1970 UTC: ``time`` decides the split, ``begin`` is frame 0.

    ``percent_missing`` is what the catalog says of it, None where that is counted from the codes.
    ``file`` and ``file_index`` say where it stands.
    """

    id: str
    time: int
    begin: int
    split: str
    percent_missing: float | None
    file: str
    file_index: int


class EventSource(Protocol):
    """Raw data, looked into: what can be used in ``events``, what cannot in ``problems``."""

    @property
    def spec(self) -> DatasetSpec:
        """The data set's description."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Pixels of a frame, (H, W)."""
        ...

    @property
    def frames(self) -> int:
        """Frames of an event."""
        ...

    @property
    def events(self) -> Sequence[RawEvent]:
        """The usable events, in the order in which they are stored."""
        ...

    @property
    def absent(self) -> Sequence[RawEvent]:
        """Events that are named but cannot be used: readers count them where an id must stand once."""
        ...

    @property
    def problems(self) -> Sequence[DataProblem]:
        """What is wrong with the rest."""
        ...

    @property
    def notes(self) -> Sequence[DataProblem]:
        """What is peculiar, and harmless to those who read the shards."""
        ...

    @property
    def identity(self) -> str:
        """Hash that changes when the raw data does, as far as that shows without reading it."""
        ...

    def complete(self, ranks: Ranks) -> None:
        """Complete ``events`` where ranks share the inspection of files. A collective that does not raise."""
        ...

    def read(self, number: int) -> np.ndarray:
        """Return event ``number`` as uint8 ``[T, H, W]``, 255 where missing.

        Raises:
            DataError: it cannot be read.
        """
        ...
