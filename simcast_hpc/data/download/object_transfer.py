"""Download of one remote object into one file: byte ranges of one version, resumed after a stop, then verified."""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from simcast_hpc.config import SimcastError
from simcast_hpc.storage.atomic_files import flush, publish

logger = logging.getLogger(__name__)
MIB = 2**20
# Part sizes of common tools: aws and boto3 8 MiB, s3fs 50, rclone 5, s3cmd 15; then powers of two.
_PART_SIZES = tuple(size * MIB for size in (8, 5, 10, 15, 16, 50, 64, 32, 100, 128, 256, 512, 1024))
LARGEST_BLOCK, SMALLEST_BLOCK = 16 * 2**20, 2**18


class DownloadError(SimcastError, RuntimeError):
    """An object could not be downloaded completely; the same call resumes the download."""


class ObjectChangedError(DownloadError):
    """The object on the server is no longer the listed version."""


class MissingObjectError(DownloadError):
    """The object does not exist on the server."""


class TryLaterError(ConnectionError):
    """A request failed in a way that a later one can avoid; ``wait`` is the pause that the server asked for."""

    def __init__(self, message: str, *, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class RemoteObject:
    """An object on a server.

    Attributes:
        key: name for messages; of S3, the key with its bucket.
        size: bytes, None if the listing does not contain them.
        etag: ETag without quotes; empty if unknown.
        url: address, empty for readers that use ``key``.
        sha256: of the content, empty if unknown.
        largest: largest valid number of bytes.
    """

    key: str
    size: int | None
    etag: str
    url: str = ""
    sha256: str = ""
    largest: int = 2**50


@dataclass(frozen=True)
class RetryPolicy:
    """Number of consecutive failures without progress until an error, and the pause after the first one in seconds."""

    tries: int = 8
    pause: float = 1.0

    def pause_after(self, error: ConnectionError, failures: int) -> None:
        """Sleep before the next try: twice as long after each failure, at most 30 s, or as long as the server asks.

        Raises:
            DownloadError: it was the last allowed failure.
        """
        if failures >= self.tries:
            raise DownloadError(f"no answer in {failures} tries: {error}; run the same command to resume") from error
        logger.info("%s; trying again", error)
        time.sleep(max(getattr(error, "wait", 0.0), min(30.0, self.pause * 2 ** (failures - 1))))


@dataclass(frozen=True)
class Piece:
    """Bytes of an object, and its size and version by the answer that contained them."""

    data: bytes
    size: int | None
    etag: str


@dataclass(frozen=True)
class Transferred:
    """A complete download: size in bytes, ETag by the server, and whether a checksum was verified."""

    size: int
    etag: str
    verified: bool


class RangeReader(Protocol):
    """Reads byte ranges of objects."""

    def read(self, remote: RemoteObject, begin: int, end: int) -> Piece:
        """Return the bytes from ``begin`` to ``end`` (exclusive), fewer only at the end of the object.

        Raises:
            ConnectionError: the request failed; a later one can succeed.
            ObjectChangedError: the object is not the listed version.
            MissingObjectError: the object does not exist.
        """
        ...


def part_of(into: Path) -> Path:
    """Return the path of an unfinished download."""
    return into.with_name(f".{into.name}.part")


def etag_of(path: Path) -> Path:
    """Return the path of the file that stores the ETag of the bytes in ``path``."""
    return path.with_name(f".{path.name.lstrip('.')}.etag")


def is_downloaded(remote: RemoteObject, into: Path) -> bool:
    """Return whether an earlier call downloaded and verified this version of the object, by its stored ETag."""
    return into.is_file() and into.stat().st_size == remote.size and _recorded(into) == remote.etag


def downloaded_bytes(remote: RemoteObject, into: Path) -> int:
    """Return the number of bytes of this version of an object that are downloaded."""
    part = part_of(into)
    if is_downloaded(remote, into):
        return remote.size or 0
    if not part.is_file() or remote.size is None or _recorded(part) != remote.etag:
        return 0
    return min(part.stat().st_size, remote.size)


def download_object(
    reader: RangeReader,
    remote: RemoteObject,
    into: Path,
    *,
    retry: RetryPolicy,
    progress: Callable[[int], None],
    keep_etag: bool = True,
) -> "Transferred":
    """Download ``remote`` into ``into``.

    Args:
        reader: of byte ranges; its timeout ends a stalled connection.
        remote: the listed object; each request checks the ETag.
        into: the file; it is created when the download is complete.
        retry: when to give up.
        progress: called with the number of bytes after each block, negative when bytes were discarded.
        keep_etag: whether the ETag is stored next to ``into``, for :func:`is_downloaded`.

    Raises:
        ObjectChangedError: the object is no longer the listed version; the partial download is removed.
        DownloadError: no progress in the allowed tries, the object is shorter than listed, or its checksum is wrong.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(into)
    for path in (into, part, etag_of(into), etag_of(part)):
        if path.is_symlink():
            raise DownloadError(f"{path} is a symbolic link, which a download does not follow; remove it")
    if part.is_file() and not _continues(part, remote):
        logger.warning("%s changed since its partial download; restarting", remote.key)
        part.unlink()
    if part.is_file() and not remote.etag:
        remote = replace(remote, etag=_recorded(part))
    try:
        remote = _fill(reader, remote, part, retry=retry, progress=progress)
    except (ObjectChangedError, MissingObjectError):
        progress(-part.stat().st_size if part.is_file() else 0)
        part.unlink(missing_ok=True)
        etag_of(part).unlink(missing_ok=True)
        raise
    verified = _matches(part, remote)
    if verified is False:
        part.unlink()
        raise DownloadError(
            f"{remote.key}: the checksum of the download differs from its {'SHA-256' if remote.sha256 else 'ETag'} "
            f"{remote.sha256 or remote.etag}; download it again"
        )
    etag_of(into).unlink(missing_ok=True)  # of an earlier version
    flush(part)
    publish(part, into)
    if keep_etag:
        etag_of(part).replace(etag_of(into))
    else:
        etag_of(part).unlink(missing_ok=True)
    return Transferred(into.stat().st_size, remote.etag, bool(verified))


def _continues(part: Path, remote: RemoteObject) -> bool:
    """Return whether a partial download can be continued: it is a beginning of the same version."""
    recorded = _recorded(part)
    if not recorded or part.stat().st_size > (remote.largest if remote.size is None else remote.size):
        return False
    return not remote.etag or recorded == remote.etag


def _fill(
    reader: RangeReader, remote: RemoteObject, part: Path, *, retry: RetryPolicy, progress: Callable[[int], None]
) -> RemoteObject:
    """Append the missing bytes to ``part``; return the object with the size and version that the server sent."""
    failures, block, size, etag = 0, LARGEST_BLOCK, remote.size, remote.etag
    if etag:
        etag_of(part).write_text(etag, encoding="utf-8")
    with part.open("ab") as file:
        while size is None or file.tell() < size:
            begin = file.tell()
            end = min(begin + block, max(begin + 1, remote.largest) if size is None else size)
            try:
                piece = reader.read(replace(remote, size=size, etag=etag), begin, end)
            except ConnectionError as error:
                failures += 1
                try:
                    retry.pause_after(error, failures)
                except DownloadError as last:
                    raise DownloadError(
                        f"{remote.key}: no progress in {failures} tries after {begin} of {_text(size)} bytes: {error}; "
                        "run the same command to resume"
                    ) from last.__cause__
                block = max(SMALLEST_BLOCK, block // 2)  # so that a connection that breaks early still makes progress
                continue
            if size is None:
                size = _size_by(piece, begin, end)
                end = end if size is None else min(end, size)
            if max(end, size or 0) > remote.largest:
                raise DownloadError(
                    f"{remote.key} has {size or end} bytes or more; the largest valid size is {remote.largest}"
                )
            if not etag and piece.etag:
                etag = piece.etag
                etag_of(part).write_text(etag, encoding="utf-8")
            if len(piece.data) != end - begin:
                raise DownloadError(
                    f"{remote.key} is truncated on the server: {len(piece.data)} of {end - begin} bytes at offset "
                    f"{begin}; the listed size is {size} bytes"
                )
            file.write(piece.data)
            file.flush()
            progress(len(piece.data))
            failures, block = 0, min(LARGEST_BLOCK, 2 * block)
    return replace(remote, size=size, etag=etag)


def _size_by(piece: Piece, begin: int, end: int) -> int | None:
    """Return the size of an object whose listing has none, None if the server does not send it and more may follow."""
    if piece.size is None and len(piece.data) == end - begin:
        return None
    return piece.size if piece.size is not None else begin + len(piece.data)


def _text(size: int | None) -> str:
    return "an unknown number of" if size is None else str(size)


def _recorded(path: Path) -> str:
    record = etag_of(path)
    return record.read_text(encoding="utf-8", errors="replace") if record.is_file() else ""


def _matches(path: Path, remote: RemoteObject) -> bool | None:
    if not remote.sha256:
        return matches_etag(path, remote.etag)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == remote.sha256


def matches_etag(path: Path, etag: str) -> bool | None:
    """Return whether the content of a file matches an ETag, None if the ETag is not a known checksum.

    An ETag is an MD5, or for a multipart upload ``HASH-PARTS``, the MD5 of the MD5s of the parts. S3 does not give
    the part size, so the sizes of common tools that result in this number of parts are tried.
    """
    digest, _, parts = etag.strip('"').partition("-")
    if len(digest) != 32 or not set(digest) <= set("0123456789abcdef"):
        return None
    if not parts:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == digest
    if not parts.isdecimal() or len(parts) > 5:  # S3 allows 10,000 parts
        return None
    size = path.stat().st_size
    for part in _PART_SIZES:
        if -(-size // part) == int(parts) and _multipart_md5(path, part) == digest:
            return True
    return None


def _multipart_md5(path: Path, size: int) -> str:
    combined = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(size):
            combined.update(hashlib.md5(part, usedforsecurity=False).digest())
    return combined.hexdigest()
