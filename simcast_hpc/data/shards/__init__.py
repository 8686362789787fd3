"""Prepared data: time-major events in compressed HDF5 shards, an index of all of them, and a manifest that comes last.

```
ROOT/shard-00000.h5   codes uint8 [n, T, H, W], compressed frame by frame; id, sha256, usable, gaps, histogram of each
ROOT/index.h5         one row an event, in the order of the archive: see ``layout.Index``
ROOT/manifest.json    what was prepared, every file with its size and SHA-256; without it the folder is unfinished
```

Nothing in a file depends on who wrote it, when or where, so any number of ranks writes the same bytes.
"""
