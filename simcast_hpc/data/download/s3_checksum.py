"""What S3 says of an object's bytes, held against a file: an ETag is an MD5, or an MD5 of the MD5s of parts."""

import hashlib
from pathlib import Path

MIB = 2**20
# Part sizes of the usual tools: aws and boto3 8 MiB, s3fs 50, rclone 5, s3cmd 15; then powers of two.
_PART_SIZES = tuple(size * MIB for size in (8, 5, 10, 15, 16, 50, 64, 32, 100, 128, 256, 512, 1024))


def matches(path: Path, etag: str) -> bool | None:
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
