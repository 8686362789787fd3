"""Statistics of prepared events: area above each threshold, missing pixels, histogram of the codes."""

from typing import Any

import numpy as np

from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.shards.shard_format import SPLITS, Index

from ..encoding import MISSING_CODE


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
            statistics[split or "no split"] = counts_summary(spec, in_split.sum(axis=0)) | {"events": len(in_split)}
    return statistics


def counts_summary(spec: DatasetSpec, counts: np.ndarray) -> dict[str, Any]:
    """Return the statistics of pixels from the counts of their 256 codes, int64 ``[256]``."""
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
