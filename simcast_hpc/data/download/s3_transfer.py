"""Download of one S3 object into one file: byte ranges of one version, resumed after an interruption, then verified."""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class RemoteObject:
    """An S3 object: ``key`` with its bucket, size in bytes, ETag without quotes."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class RetryPolicy:
    """Number of consecutive failures without progress until an error, and the pause after the first one in seconds."""

    tries: int = 8
    pause: float = 1.0


def part_of(into: Path) -> Path:
    """Return the path of an unfinished download."""
    return into.with_name(f".{into.name}.part")


def etag_of(path: Path) -> Path:
    """Return the path of the file that stores the ETag of the bytes in ``path``."""
    return path.with_name(f".{path.name.lstrip('.')}.etag")


def is_downloaded(remote: RemoteObject, into: Path) -> bool:
    """Return whether an earlier call downloaded and verified this version of the object."""
    return into.is_file() and into.stat().st_size == remote.size and _recorded(into) == remote.etag


def downloaded_bytes(remote: RemoteObject, into: Path) -> int:
    """Return the number of bytes of this version of an object that are downloaded."""
    part = part_of(into)
    if is_downloaded(remote, into):
        return remote.size
    return min(part.stat().st_size, remote.size) if part.is_file() and _recorded(part) == remote.etag else 0


def download_object(
    filesystem: Any, remote: RemoteObject, into: Path, *, retry: RetryPolicy, progress: Callable[[int], None]
) -> bool:
    """Download ``remote`` into ``into``; return whether a checksum was verified (otherwise only the size was).

    Args:
        filesystem: an ``s3fs.S3FileSystem``; its read timeout ends a stalled connection.
        remote: the listed object; each request checks the ETag.
        into: the file; it is created when the download is complete.
        retry: when to give up.
        progress: called with the number of bytes after each block, negative when bytes were discarded.

    Raises:
        ObjectChangedError: the object is no longer the listed version; the partial download is removed.
        DownloadError: no progress in the allowed tries, the object is shorter than listed, or its checksum is wrong.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(into)
    for path in (into, part, etag_of(into), etag_of(part)):
        if path.is_symlink():
            raise DownloadError(f"{path} is a symbolic link, which a download does not follow; remove it")
    if part.is_file() and (_recorded(part) != remote.etag or part.stat().st_size > remote.size):
        logger.warning("%s changed since its partial download; restarting", remote.key)
        part.unlink()
    etag_of(part).write_text(remote.etag, encoding="utf-8")
    try:
        _fill(filesystem, remote, part, retry=retry, progress=progress)
    except ObjectChangedError:
        progress(-part.stat().st_size if part.is_file() else 0)
        part.unlink(missing_ok=True)
        raise
    verified = matches_etag(part, remote.etag)
    if verified is False:
        part.unlink()
        raise DownloadError(
            f"{remote.key}: the checksum of the download differs from its ETag {remote.etag}; download it again"
        )
    etag_of(into).unlink(missing_ok=True)  # of an earlier version
    flush(part)
    publish(part, into)
    etag_of(part).replace(etag_of(into))
    return bool(verified)


def _fill(
    filesystem: Any, remote: RemoteObject, part: Path, *, retry: RetryPolicy, progress: Callable[[int], None]
) -> None:
    failures, block = 0, LARGEST_BLOCK
    with part.open("ab") as file:
        while (begin := file.tell()) < remote.size:
            end = min(begin + block, remote.size)
            try:
                data = _read(filesystem, remote, begin, end)
            except ConnectionError as error:
                failures += 1
                if failures >= retry.tries:
                    raise DownloadError(
                        f"{remote.key}: no progress in {failures} tries after {begin} of {remote.size} bytes: {error}; "
                        "run the same command to resume"
                    ) from error
                logger.info("%s: %s; retrying from byte %d", remote.key, error, begin)
                time.sleep(min(30.0, retry.pause * 2 ** (failures - 1)))
                block = max(SMALLEST_BLOCK, block // 2)  # so that a connection that breaks early still makes progress
                continue
            if len(data) != end - begin:
                raise DownloadError(
                    f"{remote.key} is truncated on the server: {len(data)} of {end - begin} bytes at offset {begin}; "
                    f"the listed size is {remote.size} bytes"
                )
            file.write(data)
            file.flush()
            progress(len(data))
            failures, block = 0, min(LARGEST_BLOCK, 2 * block)


def _read(filesystem: Any, remote: RemoteObject, begin: int, end: int) -> bytes:
    """Return a range of bytes; raise any connection failure of the libraries as ConnectionError."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError
    from s3fs.utils import FileExpired

    try:
        with filesystem.open(remote.key, "rb", cache_type="none") as stored:
            if stored.details["ETag"].strip('"') != remote.etag or stored.size != remote.size:
                raise ObjectChangedError(
                    f"{remote.key} changed on the server: from {remote.size} bytes and ETag {remote.etag} to "
                    f"{stored.size} and {stored.details['ETag']}"
                )
            stored.seek(begin)
            return stored.read(end - begin)
    except FileExpired as error:
        raise ObjectChangedError(f"{remote.key} changed on the server during the download") from error
    except FileNotFoundError as error:
        raise ObjectChangedError(f"{remote.key} no longer exists on the server") from error
    except (OSError, TimeoutError, ClientError, BotoCoreError) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    except IndexError as error:  # s3fs 2026.9 expects an error number in a timeout
        if not isinstance(error.__context__, TimeoutError):
            raise
        raise ConnectionError("the connection timed out") from error


def _recorded(path: Path) -> str:
    record = etag_of(path)
    return record.read_text(encoding="utf-8") if record.is_file() else ""


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
