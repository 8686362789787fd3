"""New HDF5 files: a full disk is an error instead of a crash of the HDF5 library.

If HDF5 cannot write, because the disk is full, it cannot close the file either, and the use of its objects afterwards,
also by their destructors, ends the process with a segmentation fault (seen with HDF5 2.0). The files of this
module therefore report no failed write to HDF5: they collect the rest of the content in memory after the first failure,
and raise the error when they are closed.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from .atomic_files import atomic_file


class Hdf5Target(io.RawIOBase):
    """A new file on disk, for ``h5py.File(target, "w")``; in memory from the first write that fails.

    Attributes:
        failure: the error of that write; None while all content is on disk.
    """

    def __init__(self, path: Path):
        """Create or empty the file.

        Raises:
            OSError: it cannot be opened.
        """
        super().__init__()
        self._disk = io.FileIO(path, "w+")
        self._memory: io.BytesIO | None = None
        self.failure: OSError | None = None

    def readable(self) -> bool:
        """Return that the file can be read."""
        return True

    def writable(self) -> bool:
        """Return that the file can be written."""
        return True

    def seekable(self) -> bool:
        """Return that positions can be set."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set and return the position."""
        return self._content.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._content.tell()

    def readinto(self, buffer) -> int:
        """Read bytes from the position; return their number, 0 at the end."""
        return self._content.readinto(buffer) or 0

    def write(self, data) -> int:
        """Write all bytes at the position; return their number."""
        view = memoryview(data).cast("B")
        if self._memory is None:
            begin = self._disk.tell()
            try:
                written = 0
                while written < len(view):  # an unbuffered file can write a part
                    written += self._disk.write(view[written:]) or 0
                return written
            except OSError as error:
                self._continue_in_memory(error, begin)
        return self._content.write(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size; return it."""
        size = self.tell() if size is None else size
        if self._memory is None:
            begin = self._disk.tell()
            try:
                return self._disk.truncate(size)
            except OSError as error:
                self._continue_in_memory(error, begin)
        content, position = self._content, self.tell()
        content.seek(0, os.SEEK_END)
        content.write(bytes(max(0, size - content.tell())))
        content.truncate(size)
        content.seek(position)
        return size

    def close(self) -> None:
        """Close the file; an incomplete one stays on disk."""
        if not self.closed:
            self._disk.close()
        super().close()

    def check(self) -> None:
        """Raise the error of the first write that failed, for writers of many gigabytes.

        Raises:
            OSError: a write failed.
        """
        if self.failure is not None:
            raise self.failure

    @property
    def _content(self) -> io.FileIO | io.BytesIO:
        return self._disk if self._memory is None else self._memory

    def _continue_in_memory(self, error: OSError, position: int) -> None:
        self._disk.seek(0)
        self._memory = io.BytesIO(self._disk.read())
        self._memory.seek(position)
        self.failure = error


@contextmanager
def hdf5_target(path: Path) -> Iterator[Hdf5Target]:
    """Yield a new file, for use as ``h5py.File(target, "w")`` inside the block.

    Raises:
        OSError: it cannot be opened or written. What is on disk is then incomplete.
    """
    target = Hdf5Target(path)
    try:
        yield target
    finally:
        target.close()
        target.check()


@contextmanager
def atomic_hdf5(path: Path, *, libver: str | None = None) -> Iterator[h5py.File]:
    """Yield a new HDF5 file that replaces ``path`` when the block succeeds; see :func:`.atomic_files.atomic_file`.

    Raises:
        OSError: it cannot be written; ``path`` keeps its old content.
    """
    with (
        atomic_file(path) as temporary,
        hdf5_target(temporary) as target,
        h5py.File(target, "w", libver=libver) as file,
    ):
        yield file
