"""Table of the rain statistics of all windows of prepared data, as Parquet: for sampling by other programs."""

from pathlib import Path

import numpy as np

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.storage.atomic_files import atomic_file

from .importance_sampling import window_means
from .sampling_statistics import STATISTICS, read_statistics
from .shards.shard_format import SPLITS, read_index, read_manifest


def write_window_table(root: Path, path: Path, *, frames: int, step_minutes: float) -> int:
    """Write one row per window of ``frames`` consecutive frames of each event, and return the number of rows.

    Columns: ``event``, ``split``, ``start`` (first frame in the event), ``time`` (of the first frame, UTC), ``t``
    (number of time steps since 1970), ``x`` and ``y`` (upper left pixel of the event, 0 where the index has no tiles),
    and ``mean``, ``wet_share`` and ``missing_share`` as in ``statistics.h5``. ``t``, ``x``, ``y`` and ``mean`` are the
    columns by which mlcast-dataset-sampler names a window.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: the folder has no statistics, or its events are shorter than ``frames``.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError("--table requires pyarrow: pip install pyarrow") from error
    # 1. Statistics of each window
    manifest = read_manifest(root)
    index = read_index(root, manifest)
    available = manifest.frames_per_event
    stored = read_statistics(root, index_sha256=manifest.index.sha256, events=len(index), frames=available)
    if stored is None:
        raise DataError(f"{root / STATISTICS} does not exist; run `simcast data prepare` again into another folder")
    if frames > available:
        raise DataError(f"windows of {frames} frames do not fit in events of {available} frames in {root}")
    rows = np.flatnonzero(index.shard >= 0)
    starts = np.arange(available - frames + 1)
    events, first = np.repeat(rows, len(starts)), np.tile(starts, len(rows))
    means = window_means(stored, events, first, frames=frames, frame_stride=1)
    # 2. Columns
    seconds = index.begin[events] + np.rint(first * step_minutes * 60).astype(np.int64)
    x, y = (getattr(index, name, None) for name in ("tile_x", "tile_y"))
    columns = {
        "event": pa.array([bytes(name).decode() for name in index.id[events]]),
        "split": pa.array(np.array(SPLITS)[index.split[events]]),
        "start": pa.array(first.astype(np.int32)),
        "time": pa.array(seconds, pa.timestamp("s", tz="UTC")),
        "t": pa.array(seconds // round(step_minutes * 60)),
        "x": pa.array(np.zeros(len(events), np.int32) if x is None else x[events].astype(np.int32)),
        "y": pa.array(np.zeros(len(events), np.int32) if y is None else y[events].astype(np.int32)),
        "mean": pa.array(means.mean_rate.astype(np.float32)),
        "wet_share": pa.array(means.wet_share.astype(np.float32)),
        "missing_share": pa.array(means.missing_share.astype(np.float32)),
    }
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
    return len(events)
