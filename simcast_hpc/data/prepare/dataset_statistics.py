"""Statistics of prepared events, counted on the way: wet area, missing pixels, how often each code occurs."""

from typing import Any

import numpy as np

from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.shards.shard_format import SPLITS, Index

from ..encoding import MISSING_CODE

_PIECE = 2**16


def summary(spec: DatasetSpec, index: Index, histograms: np.ndarray) -> dict[str, Any]:
    """Return the statistics of each split.

    Args:
        spec: the data set, whose lowest threshold a wet pixel reaches.
        index: the events.
        histograms: counts of the 256 codes of each event, ``[E, 256]``; events past the end stand in no shard.
    """
    found: dict[str, Any] = {}
    for number, split in enumerate(SPLITS):
        mine = histograms[index.split[: len(histograms)] == number].astype(np.int64)
        if len(mine):
            found[split or "no split"] = _of(spec, mine.sum(axis=0)) | {"events": len(mine)}
    return found


def _of(spec: DatasetSpec, counts: np.ndarray) -> dict[str, Any]:
    valid = int(counts[:MISSING_CODE].sum())
    codes = np.arange(MISSING_CODE)
    thresholds = zip(spec.threshold_labels(), spec.threshold_codes(), strict=True)
    return {
        "pixels": int(counts.sum()),
        "percent_missing": round(100 * int(counts[MISSING_CODE]) / int(counts.sum()), 6),
        "mean_code": round(float((counts[:MISSING_CODE] * codes).sum() / valid), 6) if valid else None,
        "percent_at_or_above": {
            label: round(100 * float(counts[:MISSING_CODE][codes >= code].sum()) / valid, 6) if valid else None
            for label, code in thresholds
        },
        "codes": counts.tolist(),
    }


def code_histogram(codes: np.ndarray) -> np.ndarray:
    """Return the counts of the 256 codes in uint8 ``codes`` of any shape, int64 ``[256]``.

    Pairs of neighbours are counted as one 16-bit number, in pieces that stay in the cache: four times as fast as
    counting bytes.
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    even = len(flat) // 2 * 2
    pairs = flat[:even].view("<u2")
    counts = np.zeros(2**16, np.int64)
    for begin in range(0, len(pairs), _PIECE):
        counts += np.bincount(pairs[begin : begin + _PIECE], minlength=2**16)
    table = counts.reshape(256, 256)
    total = table.sum(axis=0) + table.sum(axis=1)
    if even < len(flat):
        total[flat[-1]] += 1
    return total
