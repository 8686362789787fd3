"""Cache of the counts of single forecasts, and of the times and hashes of files, for repeated verification.

An entry belongs to content: its name is a hash of everything that determines the counts. A damaged entry is counted
again. Entries are written atomically, so that several runs can share a cache.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simcast_hpc.config import DataError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.storage.atomic_files import atomic_file, write_json
from simcast_hpc.storage.npz_files import load_npz
from simcast_hpc.verification.protocols import ScoreProtocol
from simcast_hpc.verification.sufficient_statistics import Statistics, group_events

_INDEX = "files.json"
_LARGEST = 1 << 30  # bytes of the index; a file takes about 200


@dataclass(frozen=True, eq=False)
class IssueCounts:
    """Counts of one issued forecast and of the baselines of the same issue time.

    Attributes:
        statistics: by name (``forecast`` or a baseline) and counting hash; a name that could not be counted is absent.
        probability_forecasts, probability_events: int64 ``[thresholds, T, bins + 1]``: pixels by the issued
            probability, and those of them where the threshold was observed; None without probabilities.
        arrived: bool ``[T]``: whether the frame of each lead time came.
    """

    statistics: Mapping[str, Mapping[str, Statistics]]
    probability_forecasts: np.ndarray | None
    probability_events: np.ndarray | None
    arrived: np.ndarray


@dataclass
class CountCache:
    """Cache in a folder; see the module. ``files`` is the index of file times and hashes that the caller keeps."""

    folder: Path
    files: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "CountCache":
        """Open the cache of a folder; a missing or damaged index is empty."""
        path = folder / _INDEX
        read = functools.partial(read_json_file, error=DataError, what="the index of the cache", most_bytes=_LARGEST)
        try:
            files = read(path) if path.is_file() else {}
        except DataError:
            files = {}
        return cls(folder, files if isinstance(files, dict) else {})

    def save_index(self) -> None:
        """Write the index of files."""
        write_json(self.folder / _INDEX, self.files)

    def counts(self, key: Mapping[str, Any], count: Callable[[], IssueCounts]) -> tuple[IssueCounts, bool]:
        """Return the stored counts of ``key``, or count and store them; and whether they were stored before."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:40]
        path = self.folder / digest[:2] / f"{digest}.npz"
        if path.is_file():
            try:
                return _load(path), True
            except (DataError, ValueError, KeyError, TypeError):
                pass
        counted = count()
        _save(path, counted)
        return counted, False


def _save(path: Path, counts: IssueCounts) -> None:
    arrays: dict[str, np.ndarray] = {"arrived": counts.arrived}
    names, number = [], 0
    for name, by_hash in counts.statistics.items():
        for counting_hash, statistics in by_hash.items():
            names.append([name, counting_hash, statistics.protocol.to_json(), list(statistics.events)])
            arrays |= {f"{number}:{key}": sums.numpy() for key, sums in statistics.sums.items()}
            number += 1
    if counts.probability_forecasts is not None and counts.probability_events is not None:
        arrays |= {"forecasts": counts.probability_forecasts, "events": counts.probability_events}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, names=np.array(json.dumps(names)), **arrays)


def _load(path: Path) -> IssueCounts:
    """Return stored counts.

    Raises:
        DataError, ValueError, KeyError, TypeError: the entry is damaged.
    """
    arrays = load_npz(path, error=DataError, what="the cached counts")
    statistics: dict[str, dict[str, Statistics]] = {}
    for number, (name, counting_hash, protocol, events) in enumerate(json.loads(str(arrays["names"]))):
        prefix = f"{number}:"
        sums = {
            key.removeprefix(prefix): torch.from_numpy(value) for key, value in arrays.items() if key.startswith(prefix)
        }
        one = group_events(ScoreProtocol.from_json(protocol), keys=events, sums=sums)
        statistics.setdefault(name, {})[counting_hash] = one
    return IssueCounts(statistics, arrays.get("forecasts"), arrays.get("events"), arrays["arrived"])
