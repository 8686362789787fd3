"""From raw data to shards: readers of each layout (``events.py`` says what they have in common) and the ranks' work."""

from pathlib import Path

from simcast_hpc.data.dataset_spec import DatasetSpec

from .archive_events import ArchiveEvents
from .hko7_events import HKO7Events
from .meteonet_events import MeteoNetEvents
from .prepare_shards import Recipe, prepare
from .raw_events import EventSource, RawEvent


def open_raw(spec: DatasetSpec, root: Path) -> EventSource:
    """Return the events of raw data in the layout that its description names.

    Raises:
        DataError: there is nothing there that can be used.
    """
    kinds = {"archive": ArchiveEvents, "hko7": HKO7Events, "meteonet": MeteoNetEvents}
    return kinds[spec.layout.kind](spec, root)


__all__ = ["EventSource", "RawEvent", "Recipe", "open_raw", "prepare"]
