"""One pass over the windows of a test set, spread over ranks by whole events, merged exactly."""

from collections.abc import Sequence

import numpy as np
import torch

from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distributed.ranks import SINGLE_RANK, Ranks
from simcast_hpc.verification.counting import count
from simcast_hpc.verification.protocols import ScoreProtocol
from simcast_hpc.verification.sufficient_statistics import Statistics, merge

from .entries import Entry

Counted = dict[str, dict[str, Statistics]]


def count_entries(
    source: WindowSource,
    entries: Sequence[Entry],
    protocols: Sequence[ScoreProtocol],
    *,
    frames_in: int,
    batch_size: int,
    heavy: float,
    ranks: Ranks = SINGLE_RANK,
) -> tuple[Counted, int]:
    """Return the statistics of each entry by counting hash, and the window with the most observed pixels of ``heavy``.

    Protocols that count alike share one pass, and the windows are read once. Each event is counted by one rank, in
    one order, so that not only the integers but every sum is the same however many ranks there are. A collective
    with several ranks all ranks return the same.
    """
    rules = {protocol.counting_hash: protocol for protocol in protocols}
    own: list[tuple[str, str, Statistics]] = []
    best = (-1, 0)
    with ranks.together():
        for unit in _units(source, batch_size)[ranks.rank :: ranks.size]:
            for begin in range(0, len(unit), batch_size):
                indices = unit[begin : begin + batch_size]
                windows = torch.from_numpy(np.stack([source.read(index) for index in indices]))
                past, observed = windows[:, :frames_in], windows[:, frames_in:]
                own += _counted(source, indices, past, observed, entries, rules)
                counts = ((observed >= heavy) & (observed != MISSING_CODE)).flatten(1).sum(1)
                # Of equals the first window, as one rank alone would find it.
                best = max([best, *((int(n), -index) for n, index in zip(counts, indices, strict=True))])
        own = _merged(own)
    gathered = ranks.gather((own, best))
    parts = _merged([part for theirs, _ in gathered for part in theirs])
    counted: Counted = {entry.name: {} for entry in entries}
    for name, rule, statistics in parts:
        counted[name][rule] = statistics
    return counted, -max(found for _, found in gathered)[1]


def _units(source: WindowSource, batch_size: int) -> list[list[int]]:
    """Return windows in groups of whole events, of a batch where several fit into one."""
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


def _counted(
    source: WindowSource,
    indices: Sequence[int],
    past: torch.Tensor,
    observed: torch.Tensor,
    entries: Sequence[Entry],
    rules: dict[str, ScoreProtocol],
) -> list[tuple[str, str, Statistics]]:
    keys = [source.key(index) for index in indices]
    found = []
    for entry in entries:
        forecast = entry.of(keys, past, frames_out=observed.shape[1])
        seen = observed.to(forecast.device)
        for rule, protocol in rules.items():
            statistics = count(seen, forecast, protocol=protocol, events=[key.event for key in keys])
            found.append((entry.name, rule, statistics.to("cpu")))
    return found


def _merged(parts: Sequence[tuple[str, str, Statistics]]) -> list[tuple[str, str, Statistics]]:
    """Return one statistics an entry and rule; those of an event that was counted in batches keep their order."""
    grouped: dict[tuple[str, str], list[Statistics]] = {}
    for name, rule, statistics in parts:
        grouped.setdefault((name, rule), []).append(statistics)
    return [(name, rule, merge(statistics)) for (name, rule), statistics in grouped.items()]
