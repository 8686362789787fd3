"""HDF5 files that stay open in the process that reads them: few at a time, and never one inherited by a fork."""

import os
from collections import OrderedDict
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the LZ4 and Zstd filters with h5py

MOST_OPEN = 64


class OpenFiles:
    """The last ``MOST_OPEN`` files used, so that memory does not grow with the number of files.

    Chunk caches are off: a window's chunks are read once. A pickled copy, and a forked child, begins with none open.
    """

    def __init__(self):
        self._owner = os.getpid()
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()

    def __contains__(self, path: Path) -> bool:
        return self._owner == os.getpid() and path in self._files

    def __len__(self) -> int:
        return len(self._files) if self._owner == os.getpid() else 0

    def get(self, path: Path) -> h5py.File:
        """Return the open file.

        Raises:
            OSError: it is absent, truncated or not HDF5.
        """
        if self._owner != os.getpid():  # a worker made by fork must not share the parent's open files
            self._owner, self._files = os.getpid(), OrderedDict()
        file = self._files.get(path)
        if file is None:
            while len(self._files) >= MOST_OPEN:
                self._files.popitem(last=False)[1].close()
            file = self._files[path] = h5py.File(path, "r", rdcc_nbytes=0)
        self._files.move_to_end(path)
        return file

    def __getstate__(self) -> dict[str, object]:
        return {"_owner": -1, "_files": OrderedDict()}
