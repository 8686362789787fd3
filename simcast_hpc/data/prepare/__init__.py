"""Preparation of raw data into shards, distributed over ranks, with one reader per layout."""

from pathlib import Path

from simcast_hpc.data.dataset_spec import DatasetSpec

from .archive_events import ArchiveEvents
from .hko7_events import HKO7Events
from .meteonet_events import MeteoNetEvents
from .prepare_shards import Recipe, prepare
from .raw_events import EventSource, RawEvent


def open_raw(spec: DatasetSpec, root: Path) -> EventSource:
    """Return the events of raw data in the layout of its description.

    Raises:
        DataError: there is no usable data.
    """
    kinds = {"archive": ArchiveEvents, "hko7": HKO7Events, "meteonet": MeteoNetEvents}
    return kinds[spec.layout.kind](spec, root)


__all__ = ["EventSource", "RawEvent", "Recipe", "open_raw", "prepare"]
