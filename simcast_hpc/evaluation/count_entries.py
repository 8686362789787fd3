"""Count all forecasts in one pass over the windows of a test set, distributed over ranks by event."""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distributed.ranks import SINGLE_RANK, Ranks
from simcast_hpc.monitoring.progress import Progress
from simcast_hpc.verification.counting import count_windows
from simcast_hpc.verification.protocols import ScoreProtocol
from simcast_hpc.verification.sufficient_statistics import Statistics, merge

from .entries import Entry
from .unit_fields import UnitFields

Counted = dict[str, dict[str, Statistics]]
logger = logging.getLogger(__name__)


def count_entries(
    source: WindowSource,
    entries: Sequence[Entry],
    protocols: Sequence[ScoreProtocol],
    *,
    frames_in: int,
    batch_size: int,
    heavy: float,
    as_issued: UnitFields | None = None,
    ranks: Ranks = SINGLE_RANK,
) -> tuple[Counted, int]:
    """Return the statistics of each entry by counting hash, and the window with the most pixels of at least ``heavy``.

    Protocols with the same counting hash share one pass, and each window is read once. Each event is counted by one
    rank in a fixed order, window by window, so every sum is bitwise independent of the number of ranks and of the batch
    size. Collective with several ranks; ranks other than 0 send their statistics to it and return no statistics and
    window -1.

    With ``as_issued``, forecasts are those that a file of ``simcast predict`` contains, see :meth:`.Entry.as_issued`.
    """
    by_hash = {protocol.counting_hash: protocol for protocol in protocols}
    own: list[tuple[str, str, Statistics]] = []
    heaviest = (-1, 0)
    # 1. Count the events of this rank
    with ranks.together():
        units = _group_by_event(source, batch_size)[ranks.rank :: ranks.size]
        progress = Progress(logger, "evaluation", sum(map(len, units)), unit="windows")
        for unit in units:
            rows: list[tuple[str, str, Statistics]] = []
            for begin in range(0, len(unit), batch_size):
                indices = unit[begin : begin + batch_size]
                windows = torch.from_numpy(np.stack([source.read(index) for index in indices]))
                past, observed = windows[:, :frames_in], windows[:, frames_in:]
                rows += _count_batch(source, indices, past, observed, entries, by_hash, as_issued=as_issued)
                counts = ((observed >= heavy) & (observed != MISSING_CODE)).flatten(1).sum(1)
                # The first of several equal windows, for any number of ranks
                heaviest = max([heaviest, *((int(n), -index) for n, index in zip(counts, indices, strict=True))])
                progress.advance(len(indices))
            own += _merge(rows)
        own = _merge(own)
    # 2. Merge the ranks
    gathered = ranks.gather_on_first((own, heaviest))
    if not ranks.is_first:
        return {}, -1
    parts = _merge([part for rank_parts, _ in gathered for part in rank_parts])
    counted: Counted = {entry.name: {} for entry in entries}
    for name, counting_hash, statistics in parts:
        counted[name][counting_hash] = statistics
    return counted, -max(candidate for _, candidate in gathered)[1]


def _group_by_event(source: WindowSource, batch_size: int) -> list[list[int]]:
    """Return the windows in groups of complete events; small events are grouped up to the batch size."""
    by_event: dict[str, list[int]] = {}
    for index in range(len(source)):
        by_event.setdefault(source.key(index).event, []).append(index)
    units: list[list[int]] = []
    for indices in by_event.values():
        if units and len(units[-1]) + len(indices) <= batch_size:
            units[-1] = units[-1] + indices
        else:
            units.append(indices)
    return units


def _count_batch(
    source: WindowSource,
    indices: Sequence[int],
    past: torch.Tensor,
    observed: torch.Tensor,
    entries: Sequence[Entry],
    by_hash: dict[str, ScoreProtocol],
    *,
    as_issued: UnitFields | None,
) -> list[tuple[str, str, Statistics]]:
    keys = [source.key(index) for index in indices]
    parts, method, raw = [], None, torch.empty(0)
    for entry in entries:
        if entry.forecast is not method:  # the post-processed rows of a forecast follow it and share its result
            method, raw = entry.forecast, entry.raw_windows(keys, past, frames_out=observed.shape[1])
        forecast = entry.postprocessed(raw, past)
        if as_issued is not None:
            forecast = entry.as_issued(forecast, past, as_issued)
        target = observed.to(forecast.device)
        for counting_hash, protocol in by_hash.items():
            statistics = count_windows(target, forecast, protocol=protocol, events=[key.event for key in keys])
            parts.append((entry.name, counting_hash, statistics.to("cpu")))
    return parts


def _merge(parts: Sequence[tuple[str, str, Statistics]]) -> list[tuple[str, str, Statistics]]:
    """Return one statistics per entry and counting hash; windows of one event are added in their order."""
    grouped: dict[tuple[str, str], list[Statistics]] = {}
    for name, counting_hash, statistics in parts:
        grouped.setdefault((name, counting_hash), []).append(statistics)
    return [(name, counting_hash, merge(statistics)) for (name, counting_hash), statistics in grouped.items()]
