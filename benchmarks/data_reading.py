"""Windows a second and core: the public loader and our readers over the same events in every layout.

A batch is what each hands to a training step: the public loader's float32 in [0, 1], our uint8, which the device turns;
"and to [0, 1]" turns it on the core too. Outputs are compared before anything is timed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data_archives import drop_cache, files_of
from benchmarks.public_sevir_loader import FRAMES, at, codes_of, in_order, open_public
from simcast_hpc.config import DataConfig
from simcast_hpc.data.encoding import code_to_unit
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.window_source import WindowSource

BATCH = 6  # two whole events, which spares the public loader decoding one twice


@dataclass(frozen=True)
class Reading:
    """One line of the table: windows per second of processor time, and of the clock, medians over repetitions."""

    provider: str
    layout: str
    order: str
    cache: str
    per_core_second: float
    per_second: float

    def row(self) -> dict[str, object]:
        """Return its columns of the CSV."""
        return {
            "provider": self.provider,
            "layout": self.layout,
            "order": self.order,
            "cache": self.cache,
            "windows_per_core_s": round(self.per_core_second, 2),
            "windows_per_s": round(self.per_second, 2),
        }


def ours(root: Path) -> WindowSource:
    """Return our windows over an archive or shards."""
    return open_windows(DataConfig(dataset="sevir", root=root), split="train", frames=FRAMES)


def batches_of(source: WindowSource, batches: Sequence[int], *, to_unit: bool) -> Iterator[torch.Tensor]:
    """Yield our batches at these places."""
    for batch in batches:
        codes = torch.from_numpy(np.stack([source.read(BATCH * batch + place) for place in range(BATCH)]))
        yield code_to_unit(codes) if to_unit else codes


def compare(loader: Any, roots: dict[str, Path]) -> int:
    """Hold every window of ours against the public loader's; return how many there are.

    Raises:
        AssertionError: one differs.
    """
    public = open_public(loader, roots["gzip"], batch=BATCH)
    count = len(ours(roots["gzip"])) // BATCH
    for root in roots.values():
        source = ours(root)
        for batch, theirs in enumerate(in_order(public, count)):
            [mine] = batches_of(source, [batch], to_unit=False)
            np.testing.assert_array_equal(mine.numpy(), codes_of(theirs))
    return count * BATCH


def read_all(loader: Any | None, roots: dict[str, Path], *, repetitions: int) -> list[Reading]:
    """Return the table."""
    found = []
    count = len(ours(roots["gzip"])) // BATCH
    orders = {"in order": list(range(count)), "random": np.random.default_rng(0).permutation(count).tolist()}
    for layout, root in roots.items():
        for order, places in orders.items():
            for cache in ("warm", "dropped"):
                ways = dict(_ways(loader, layout, root, order, places))
                for provider, way in ways.items():
                    times = _times(way, files_of(root) if cache == "dropped" else [], repetitions)
                    cpu, wall = (count * BATCH / value for value in np.median(times, axis=0))
                    found.append(Reading(provider, layout, order, cache, float(cpu), float(wall)))
    return found


def _ways(
    loader: Any | None, layout: str, root: Path, order: str, places: list[int]
) -> Iterator[tuple[str, Callable[[], Iterator[Any]]]]:
    if loader is not None and not layout.startswith("shards"):
        public = open_public(loader, root, batch=BATCH)
        yield (
            "public loader",
            (lambda: in_order(public, len(places))) if order == "in order" else (lambda: at(public, iter(places))),
        )
    source = ours(root)
    yield "ours", lambda: batches_of(source, places, to_unit=False)
    yield "ours, and to [0, 1]", lambda: batches_of(source, places, to_unit=True)


def _times(way: Callable[[], Iterator[Any]], dropped: list[Path], repetitions: int) -> list[tuple[float, float]]:
    found = []
    for number in range(repetitions + 1):
        drop_cache(dropped)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in way():
            pass
        if number:  # the first opens files and warms the cache
            found.append((time.process_time() - cpu, time.perf_counter() - wall))
    return found
