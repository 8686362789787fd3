"""Statistics of prepared events: area above each threshold, missing pixels, histogram of the codes."""

from typing import Any

import numpy as np

from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.shards.shard_format import SPLITS, Index

from ..encoding import MISSING_CODE

_PIECE = 2**16


def summary(spec: DatasetSpec, index: Index, histograms: np.ndarray) -> dict[str, Any]:
    """Return the statistics of each split.

    Args:
        spec: the dataset description, for the thresholds.
        index: the events.
        histograms: counts of the 256 codes of each event, ``[E, 256]``; events beyond the end are in no shard.
    """
    statistics: dict[str, Any] = {}
    for number, split in enumerate(SPLITS):
        in_split = histograms[index.split[: len(histograms)] == number].astype(np.int64)
        if len(in_split):
            statistics[split or "no split"] = _of_counts(spec, in_split.sum(axis=0)) | {"events": len(in_split)}
    return statistics


def _of_counts(spec: DatasetSpec, counts: np.ndarray) -> dict[str, Any]:
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

    Pairs of adjacent codes are counted as one 16-bit number, in pieces that fit in the cache: four times as fast as
    counting bytes, and a tenth of the cost of compressing them.
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
