"""Cache of open HDF5 files per process, and conversion of time-last arrays as archives store them."""

import os
from collections import OrderedDict
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the LZ4 and Zstd filters with h5py
import numpy as np

from simcast_hpc.config import DataError

from .hdf5_chunks import check_row
from .hdf5_guard import HDF5_ERRORS, check_hdf5

MAX_OPEN_FILES = 64
_ROWS_PER_COPY = 2


class OpenFiles:
    """The ``MAX_OPEN_FILES`` most recently used files, so that memory does not grow with the number of files.

    Chunk caches are off, because the chunks of a window are read once. A pickled copy and a forked child start empty.
    """

    def __init__(self):
        self._owner = os.getpid()
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()
        self._checked: dict[Path, set[tuple[str, int]]] = {}

    def __contains__(self, path: Path) -> bool:
        return self._owner == os.getpid() and path in self._files

    def __len__(self) -> int:
        return len(self._files) if self._owner == os.getpid() else 0

    def get(self, path: Path) -> h5py.File:
        """Return the open file.

        Raises:
            OSError: the file is absent, truncated or not HDF5.
            DataError: it is not self-contained, see :func:`check_hdf5`.
        """
        if self._owner != os.getpid():  # a forked worker must not share the parent's open files
            self._owner, self._files, self._checked = os.getpid(), OrderedDict(), {}
        file = self._files.get(path)
        if file is None:
            while len(self._files) >= MAX_OPEN_FILES:
                oldest, former = self._files.popitem(last=False)
                former.close()
                self._checked.pop(oldest, None)
            file = h5py.File(path, "r", rdcc_nbytes=0)
            try:
                check_hdf5(file, path, reads_whole=False)
            except DataError:
                file.close()
                raise
            except HDF5_ERRORS as error:
                file.close()
                raise OSError(f"damaged: {error}") from error
            self._files[path] = file
        self._files.move_to_end(path)
        return file

    def check_row(self, path: Path, dataset: h5py.Dataset, row: int) -> None:
        """Check the chunks of a row of a dataset in an open file before they are read, once per open file.

        Raises:
            DataError: a chunk expands further than its size, see :func:`.hdf5_chunks.check_row`.
        """
        checked = self._checked.setdefault(path, set())
        if (str(dataset.name), row) not in checked:
            check_row(dataset, row)
            checked.add((str(dataset.name), row))

    def __getstate__(self) -> dict[str, object]:
        return {"_owner": -1, "_files": OrderedDict(), "_checked": {}}


def time_major(stored: np.ndarray) -> np.ndarray:
    """Return ``[H, W, T]`` as a contiguous ``[T, H, W]``; copies few rows at a time, which stay in the cache."""
    height, width, frames = stored.shape
    out = np.empty((frames, height, width), stored.dtype)
    for top in range(0, height, _ROWS_PER_COPY):
        out[:, top : top + _ROWS_PER_COPY] = stored[top : top + _ROWS_PER_COPY].transpose(2, 0, 1)
    return out
