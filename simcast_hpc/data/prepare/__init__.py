"""From raw data to shards: readers of each layout (``events.py`` says what they have in common) and the ranks' work."""

from pathlib import Path

from ..spec import DatasetSpec
from .archive_events import ArchiveEvents
from .events import EventSource, RawEvent
from .hko7 import HKO7Events
from .meteonet import MeteoNetEvents
from .run import Recipe, prepare


def open_raw(spec: DatasetSpec, root: Path) -> EventSource:
    """Return the events of raw data in the layout that its description names.

    Raises:
        DataError: there is nothing there that can be used.
    """
    kinds = {"archive": ArchiveEvents, "hko7": HKO7Events, "meteonet": MeteoNetEvents}
    return kinds[spec.layout.kind](spec, root)


__all__ = ["EventSource", "RawEvent", "Recipe", "open_raw", "prepare"]
