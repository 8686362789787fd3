"""Statistics of prepared events, counted on the way: wet area, missing pixels, how often each code occurs."""

from typing import Any

import numpy as np

from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.shards.shard_format import SPLITS, Index

from ..encoding import MISSING_CODE


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
