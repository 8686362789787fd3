"""Prepared data: time-major events in compressed HDF5 shards, an index of all events, and a manifest written last.

```
ROOT/shard-00000.h5   codes uint8 [n, T, H, W], compressed per frame; id, sha256, usable, gaps, histogram per event
ROOT/index.h5         one row per event, in the order of the archive: see ``shard_format.Index``
ROOT/manifest.json    content, and each file with its size and SHA-256; without it the preparation is unfinished
```

The files do not depend on rank, time or place, so any number of ranks writes the same bytes.
"""
