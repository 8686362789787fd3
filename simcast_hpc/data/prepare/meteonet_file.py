"""Reader of one npz file of MeteoNet, loose or in a tar file: dates, and frames one at a time in constant memory.

The files may come from anyone: sizes are checked before memory is allocated, and nothing is unpickled.
"""

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.data.raw_layouts import MeteoNetLayout
from simcast_hpc.storage.zip_members import check_members

from .meteonet_dates import LARGEST_PICKLE, read_dates

GRIDS = {"NW": (565, 784), "SE": (515, 784)}
MOST_FRAMES = 11 * 288 + 32  # a file contains at most 11 days
_LARGEST_SIDE = 4096
_LARGEST_TAR_MEMBER = 2**29  # read into memory; the published files have about 10 MB
_MOST_TAR_MEMBERS = 20_000
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
_LARGEST_EXTENSION = 2**16


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
            shape, _, dtype = _header(stream)
            if dtype.kind != "O" or len(shape) != 1:
                raise WrongTypeError(f"{self.path}: dates are {dtype} {shape}; MeteoNet has datetime objects [T]")
            if not 0 <= shape[0] <= MOST_FRAMES:
                raise WrongTypeError(f"{self.path}: {shape[0]} dates; a file of MeteoNet has at most {MOST_FRAMES}")
            return read_dates(stream.read(LARGEST_PICKLE + 1), count=shape[0])

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames as stored, int16 ``[H, W]``.

        Raises:
            DataError: the file is damaged, or ``data`` is not int16 ``[T, H, W]``.
        """
        with self._open("data") as stream:
            shape, fortran, dtype = _header(stream)
            if dtype != np.int16 or len(shape) != 3 or fortran:
                raise WrongTypeError(f"{self.path}: data is {dtype} {shape}; MeteoNet has int16 [T, H, W]")
            if not 0 <= shape[0] <= MOST_FRAMES or not all(1 <= side <= _LARGEST_SIDE for side in shape[1:]):
                raise WrongTypeError(
                    f"{self.path}: data has shape {shape}; a file of MeteoNet has at most {MOST_FRAMES} frames"
                )
            size = shape[1] * shape[2] * 2
            for _ in range(shape[0]):
                raw = stream.read(size)
                if len(raw) != size:
                    raise DataError(f"{self.path} is truncated: {len(raw)} of {size} bytes of a frame")
                yield np.frombuffer(raw, dtype).reshape(shape[1:])

    @contextmanager
    def _open(self, member: str) -> Iterator[IO[bytes]]:
        try:
            with zipfile.ZipFile(self._bytes()) as file:
                check_members(file)
                with file.open(f"{member}.npy") as stream:
                    yield stream
        except KeyError as error:
            raise DataError(f"{self.path} has no array {member!r}: {error}") from error
        except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.path} is truncated or not an npz file of MeteoNet: {error}; download it again"
            ) from error

    def _bytes(self) -> Any:
        if self.archive is None:
            return self.path
        with _open_tar(self.archive) as tar:
            for member in tar:
                # A later link or sparse file of the same name is not the member that was checked.
                if member.name == self.name and member.size == self.size and _is_plain(member):
                    stored = tar.extractfile(member)
                    assert stored is not None
                    return io.BytesIO(stored.read())
        raise DataError(f"{self.archive} has changed: it does not contain {self.name}")


class _Member(tarfile.TarInfo):
    """A member whose long names and extended headers, which are read into memory, have a limit."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the member of a header of 512 bytes.

        Raises:
            TarError: its header continues in a large or sparse member.
        """
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENSIONS and not 0 <= member.size <= _LARGEST_EXTENSION:
            raise tarfile.ReadError(f"a header of {member.size} bytes; at most {_LARGEST_EXTENSION} are read")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{member.name} is a sparse file, which MeteoNet has not")
        return member


def _open_tar(path: Path) -> tarfile.TarFile:
    """Open a tar file, plain or with gzip; the others expand without bound in one call."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return tarfile.open(path, "r:gz" if is_gzip else "r:", tarinfo=_Member)


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isfile() and not member.issparse()


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        return read(stream)
    except Exception as error:  # the parsers that NumPy calls raise errors of several modules, such as tokenize
        raise ValueError(f"invalid header of an array: {type(error).__name__}") from error


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
        with _open_tar(path) as tar:
            files = []
            for number, member in enumerate(tar):
                if number == _MOST_TAR_MEMBERS:
                    raise DataError(f"{path} contains more than {_MOST_TAR_MEMBERS} files")
                name = Path(member.name).name
                if not (member.isfile() and pattern.fullmatch(name)):
                    continue
                if not _is_plain(member) or member.size > _LARGEST_TAR_MEMBER:
                    raise DataError(f"{path}: {name} has {member.size} bytes; at most {_LARGEST_TAR_MEMBER} are read")
                files.append(MeteoNetFile(path / name, path, member.name, member.size))
            return files
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} is truncated or not a tar file: {error}; download it again") from error
