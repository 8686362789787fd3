"""Windows per CPU second: Earthformer's data loader and our readers over the same events in every layout.

Batches are those passed to a training step: Earthformer's loader returns float32 in [0, 1], ours uint8 that the device
converts; ``ours, and to [0, 1]`` also converts on the CPU. Outputs are compared before the timing.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data_archives import drop_cache, files_of
from benchmarks.earthformer_loader import FRAMES, batches_at, open_loader, sequential_batches, to_codes
from benchmarks.measurements import time_call
from simcast_hpc.config import DataConfig
from simcast_hpc.data.encoding import code_to_unit
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.window_source import WindowSource

BATCH = 6  # two events, so that Earthformer's loader decodes none twice


def open_ours(root: Path) -> WindowSource:
    """Return our windows over an archive or shards."""
    return open_windows(DataConfig(dataset="sevir", root=root), split="train", frames=FRAMES)


def our_batches(source: WindowSource, batches: Sequence[int], *, to_unit: bool) -> Iterator[torch.Tensor]:
    """Yield our batches at these indices."""
    for batch in batches:
        codes = torch.from_numpy(np.stack([source.read(BATCH * batch + place) for place in range(BATCH)]))
        yield code_to_unit(codes) if to_unit else codes


def compare_outputs(loader: Any, roots: dict[str, Path]) -> int:
    """Compare every window with that of Earthformer's loader; return the number of windows.

    Raises:
        AssertionError: a window differs.
    """
    reference = open_loader(loader, roots["gzip"], batch=BATCH)
    count = len(open_ours(roots["gzip"])) // BATCH
    for root in roots.values():
        source = open_ours(root)
        for batch, expected in enumerate(sequential_batches(reference, count)):
            [codes] = our_batches(source, [batch], to_unit=False)
            np.testing.assert_array_equal(codes.numpy(), to_codes(expected))
    return count * BATCH


def time_reading(loader: Any | None, roots: dict[str, Path], *, repetitions: int) -> list[dict[str, object]]:
    """Return a row per provider, layout, order and state of the page cache: medians over the repetitions."""
    rows = []
    count = len(open_ours(roots["gzip"])) // BATCH
    orders = {"in order": list(range(count)), "random": np.random.default_rng(0).permutation(count).tolist()}
    for layout, root in roots.items():
        for order, indices in orders.items():
            for cache in ("warm", "dropped"):
                for provider, batches in _providers(loader, layout, root, order, indices).items():
                    times = _times(batches, files_of(root) if cache == "dropped" else [], repetitions)
                    wall, cpu = (round(count * BATCH / float(value), 2) for value in np.median(times, axis=0))
                    rows.append(
                        {
                            "provider": provider,
                            "layout": layout,
                            "order": order,
                            "cache": cache,
                            "windows_per_core_s": cpu,
                            "windows_per_s": wall,
                        }
                    )
    return rows


def _providers(
    loader: Any | None, layout: str, root: Path, order: str, indices: list[int]
) -> dict[str, Callable[[], Iterator[Any]]]:
    result: dict[str, Callable[[], Iterator[Any]]] = {}
    if loader is not None and not layout.startswith("shards"):
        reference = open_loader(loader, root, batch=BATCH)
        in_order = order == "in order"
        result["Earthformer's loader"] = lambda: (
            sequential_batches(reference, len(indices)) if in_order else batches_at(reference, iter(indices))
        )
    source = open_ours(root)
    result["ours"] = lambda: our_batches(source, indices, to_unit=False)
    result["ours, and to [0, 1]"] = lambda: our_batches(source, indices, to_unit=True)
    return result


def _times(batches: Callable[[], Iterator[Any]], dropped: list[Path], repetitions: int) -> list[tuple[float, float]]:
    times = []
    for _ in range(repetitions + 1):
        drop_cache(dropped)
        times.append(time_call(lambda: [None for _ in batches()]))
    return times[1:]  # the first opens files and warms the cache
