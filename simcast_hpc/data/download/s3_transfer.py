"""One object of S3 into one file: byte ranges of one version of it, resumed where it stopped, verified at the end."""

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
# Part sizes of the usual tools: aws and boto3 8 MiB, s3fs 50, rclone 5, s3cmd 15; then powers of two.
_PART_SIZES = tuple(size * MIB for size in (8, 5, 10, 15, 16, 50, 64, 32, 100, 128, 256, 512, 1024))
LARGEST_BLOCK, SMALLEST_BLOCK = 16 * 2**20, 2**18


class DownloadError(SimcastError, RuntimeError):
    """An object could not be fetched whole; what was fetched stays, and the same call goes on from there."""


class ObjectChangedError(DownloadError):
    """The object on the server is no longer the one that was listed."""


@dataclass(frozen=True)
class RemoteObject:
    """An object: ``key`` with its bucket, size in bytes, and ETag without quotes."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class RetryPolicy:
    """How many failures in a row without a byte of progress are borne, and the first pause after one, in seconds."""

    tries: int = 8
    pause: float = 1.0


def part_of(into: Path) -> Path:
    """Return where the bytes of an unfinished file stand."""
    return into.with_name(f".{into.name}.part")


def etag_of(path: Path) -> Path:
    """Return the file that says which version of the object the bytes of ``path`` are of."""
    return path.with_name(f".{path.name.lstrip('.')}.etag")


def stands(remote: RemoteObject, into: Path) -> bool:
    """Say whether an earlier call fetched and verified exactly this object."""
    return into.is_file() and into.stat().st_size == remote.size and _recorded(into) == remote.etag


def fetched(remote: RemoteObject, into: Path) -> int:
    """Return how many bytes of this version of an object are there, whole or in part."""
    part = part_of(into)
    if stands(remote, into):
        return remote.size
    return min(part.stat().st_size, remote.size) if part.is_file() and _recorded(part) == remote.etag else 0


def fetch(
    filesystem: Any, remote: RemoteObject, into: Path, *, patience: RetryPolicy, progress: Callable[[int], None]
) -> bool:
    """Fetch ``remote`` into ``into``; return whether a checksum was verified (else its size alone was).

    Args:
        filesystem: an ``s3fs.S3FileSystem``; its read timeout is what ends a stalled connection.
        remote: what the listing said; every request asks for this version by its ETag.
        into: the file, which appears when it is whole.
        patience: when to give up.
        progress: called with the number of bytes after each block, negative when bytes had to be thrown away.

    Raises:
        ObjectChangedError: the object is not the listed one any more; its bytes so far are removed.
        DownloadError: no progress in so many tries, the object is shorter than listed, or its checksum is wrong.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(into)
    if part.is_file() and (_recorded(part) != remote.etag or part.stat().st_size > remote.size):
        logger.warning("%s changed since it was fetched in part: from the beginning", remote.key)
        part.unlink()
    etag_of(part).write_text(remote.etag, encoding="utf-8")
    try:
        _fill(filesystem, remote, part, patience=patience, progress=progress)
    except ObjectChangedError:
        progress(-part.stat().st_size if part.is_file() else 0)
        part.unlink(missing_ok=True)
        raise
    verified = matches_etag(part, remote.etag)
    if verified is False:
        part.unlink()
        raise DownloadError(f"{remote.key}: the bytes fetched are not those of its ETag {remote.etag}; fetch it again")
    etag_of(into).unlink(missing_ok=True)  # of what stood there before
    flush(part)
    publish(part, into)
    etag_of(part).replace(etag_of(into))
    return bool(verified)


def _fill(
    filesystem: Any, remote: RemoteObject, part: Path, *, patience: RetryPolicy, progress: Callable[[int], None]
) -> None:
    failures, block = 0, LARGEST_BLOCK
    with part.open("ab") as file:
        while (begin := file.tell()) < remote.size:
            end = min(begin + block, remote.size)
            try:
                data = _read(filesystem, remote, begin, end)
            except ConnectionError as error:
                failures += 1
                if failures >= patience.tries:
                    raise DownloadError(
                        f"{remote.key}: no progress in {failures} tries, {begin} of {remote.size} bytes are there: "
                        f"{error}; the same call goes on from there"
                    ) from error
                logger.info("%s: %s; again from byte %d", remote.key, error, begin)
                time.sleep(min(30.0, patience.pause * 2 ** (failures - 1)))
                block = max(SMALLEST_BLOCK, block // 2)  # a connection that is cut early still brings something
                continue
            if len(data) != end - begin:
                raise DownloadError(
                    f"{remote.key} is truncated on the server: {len(data)} of the {end - begin} bytes from {begin} on; "
                    f"the listing says {remote.size} bytes"
                )
            file.write(data)
            file.flush()
            progress(len(data))
            failures, block = 0, min(LARGEST_BLOCK, 2 * block)


def _read(filesystem: Any, remote: RemoteObject, begin: int, end: int) -> bytes:
    """Return a range of bytes; whatever a bad connection raises in the libraries below is a ConnectionError."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError
    from s3fs.utils import FileExpired

    try:
        with filesystem.open(remote.key, "rb", cache_type="none") as stored:
            if stored.details["ETag"].strip('"') != remote.etag or stored.size != remote.size:
                raise ObjectChangedError(
                    f"{remote.key} changed on the server: it had {remote.size} bytes and ETag {remote.etag}, now "
                    f"{stored.size} and {stored.details['ETag']}"
                )
            stored.seek(begin)
            return stored.read(end - begin)
    except FileExpired as error:
        raise ObjectChangedError(f"{remote.key} changed on the server while it was fetched") from error
    except FileNotFoundError as error:
        raise ObjectChangedError(f"{remote.key} is not on the server any more") from error
    except (OSError, TimeoutError, ClientError, BotoCoreError) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    except IndexError as error:  # s3fs 2026.9 looks for a number in a timeout that has none
        if not isinstance(error.__context__, TimeoutError):
            raise
        raise ConnectionError("the connection was silent for too long") from error


def _recorded(path: Path) -> str:
    record = etag_of(path)
    return record.read_text(encoding="utf-8") if record.is_file() else ""


def matches_etag(path: Path, etag: str) -> bool | None:
    """Return whether a file has the bytes that an ETag stands for; None where the ETag cannot say.

    An object that was uploaded in parts has an ETag ``HASH-PARTS`` that depends on their size, which S3 does not
    tell: sizes of usual tools that give so many parts are tried.
    """
    digest, _, parts = etag.strip('"').partition("-")
    if len(digest) != 32 or not set(digest) <= set("0123456789abcdef"):
        return None
    if not parts:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == digest
    size = path.stat().st_size
    for part in _PART_SIZES:
        if -(-size // part) == int(parts) and _of_parts(path, part) == digest:
            return True
    return None


def _of_parts(path: Path, size: int) -> str:
    whole = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(size):
            whole.update(hashlib.md5(part, usedforsecurity=False).digest())
    return whole.hexdigest()
