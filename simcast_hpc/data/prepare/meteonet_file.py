"""Reader of one npz file of MeteoNet, loose or in a tar file: dates, and frames one at a time in constant memory.

``dates`` is an array of Python objects, which numpy stores as pickle. Only dates are unpickled.
"""

import io
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.data.raw_layouts import MeteoNetLayout

GRIDS = {"NW": (565, 784), "SE": (515, 784)}
_ALLOWED_CLASSES = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("numpy", "dtype"), ("datetime", "datetime"), ("datetime", "date"), ("_codecs", "encode"),
}  # fmt: skip


class WrongTypeError(DataError):
    """An array of a file has another dtype or number of axes than in MeteoNet."""


@dataclass(frozen=True)
class MeteoNetFile:
    """Location of a file: ``archive`` is its tar file or None, ``name`` the name in it, ``size`` in bytes."""

    path: Path
    archive: Path | None
    name: str
    size: int

    def read_dates(self) -> list[datetime]:
        """Return the times of the frames, UTC.

        Raises:
            DataError: the file is damaged or contains no dates.
        """
        with self._open("dates") as stream:
            _, _, dtype = _header(stream)
            if dtype.kind != "O":
                raise WrongTypeError(f"{self.path}: dates are {dtype}; MeteoNet has objects of datetime")
            dates = _Dates(stream).load()
        return list(dates.ravel())

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames as stored, int16 ``[H, W]``.

        Raises:
            DataError: the file is damaged, or ``data`` is not int16 ``[T, H, W]``.
        """
        with self._open("data") as stream:
            shape, fortran, dtype = _header(stream)
            if dtype != np.int16 or len(shape) != 3 or fortran:
                raise WrongTypeError(f"{self.path}: data is {dtype} {shape}; MeteoNet has int16 [T, H, W]")
            size = shape[1] * shape[2] * 2
            for _ in range(shape[0]):
                raw = stream.read(size)
                if len(raw) != size:
                    raise DataError(f"{self.path} is truncated: {len(raw)} of {size} bytes of a frame")
                yield np.frombuffer(raw, dtype).reshape(shape[1:])

    @contextmanager
    def _open(self, member: str) -> Iterator[IO[bytes]]:
        try:
            with zipfile.ZipFile(self._bytes()) as file, file.open(f"{member}.npy") as stream:
                yield stream
        except KeyError as error:
            raise DataError(f"{self.path} has no array {member!r}: {error}") from error
        except (
            OSError,
            EOFError,
            ValueError,
            zlib.error,
            zipfile.BadZipFile,
            tarfile.TarError,
            pickle.UnpicklingError,
        ) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.path} is truncated or not an npz file of MeteoNet: {error}; download it again"
            ) from error

    def _bytes(self) -> Any:
        if self.archive is None:
            return self.path
        with tarfile.open(self.archive) as tar:
            stored = tar.extractfile(self.name)
            assert stored is not None
            return io.BytesIO(stored.read())


class _Dates(pickle.Unpickler):
    """Unpickler that allows only arrays and dates."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_CLASSES:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not a date")
        return super().find_class(module, name)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def find_files(root: Path, layout: MeteoNetLayout) -> list[MeteoNetFile]:
    """Return the files of a product and region below ``root``, loose and in tar files, sorted by name.

    Raises:
        DataError: there is none, one exists twice, or a tar file is damaged.
    """
    pattern = re.compile(rf"{layout.product}_{layout.region}_\d{{4}}_\d{{2}}\.\d\.npz")
    files: dict[str, MeteoNetFile] = {}
    for path in sorted(Path(root).rglob("*")):
        if pattern.fullmatch(path.name):
            candidates = [MeteoNetFile(path, None, path.name, path.stat().st_size)]
        elif path.name.endswith((".tar", ".tar.gz", ".tgz")):
            candidates = _members(path, pattern)
        else:
            continue
        for file in candidates:
            name = file.path.name
            if name in files:
                raise DataError(f"{file.path} and {files[name].path} are the same file of MeteoNet; remove one")
            files[name] = file
    if not files:
        raise DataError(f"there is no file {layout.product}_{layout.region}_YEAR_MONTH.PART.npz below {root}")
    return [files[name] for name in sorted(files)]


def _members(path: Path, pattern: re.Pattern[str]) -> list[MeteoNetFile]:
    try:
        with tarfile.open(path) as tar:
            return [
                MeteoNetFile(path / Path(member.name).name, path, member.name, member.size)
                for member in tar
                if member.isfile() and pattern.fullmatch(Path(member.name).name)
            ]
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{path} is truncated or not a tar file: {error}; download it again") from error
