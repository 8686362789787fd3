"""Copy prepared shards to a local disk, once per node, and verify them."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path

from simcast_hpc.config import DataError
from simcast_hpc.storage.atomic_files import atomic_file, sweep, write_json, write_text
from simcast_hpc.storage.private_folders import make_private, user_folder

from .shard_format import MANIFEST, Manifest, ShardFile

logger = logging.getLogger(__name__)
_BLOCK = 2**22
_SPARE_BYTES = 2**30
_LOCK, _VERIFIED = ".lock", ".verified.json"


def stage(root: Path, manifest: Manifest, shards: Collection[int], into: Path) -> Path:
    """Copy these shards below ``into`` and return the folder, or return ``root`` if they do not fit.

    The other ranks of the node wait for the one that copies. The folder belongs to this user, and no other user can
    write to it (:func:`~simcast_hpc.storage.private_folders.user_folder`). It is named after the hash of the manifest,
    so that two preparations never mix. An earlier copy of a shard is used if its SHA-256 is that of the manifest,
    which is verified once while size, inode and times of the file are unchanged.

    Raises:
        DataError: a shard does not match the manifest, ``into`` is not writable, or another user can write to it.
    """
    files = [manifest.index, *(manifest.shards[number] for number in sorted(shards))]
    try:
        make_private(folder := user_folder(into))
        make_private(target := folder / manifest.hash[:16])
        lock = os.open(target / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sweep(target)
            verified = _read_verified(target)
            missing = [file for file in files if not _is_copied(target / file.name, file, verified)]
            size = sum(file.bytes for file in missing)
            free = shutil.disk_usage(target).free
            if missing and size + _SPARE_BYTES > free:
                logger.warning(
                    "data.stage_to=%s has %.1f GB free but needs %.1f GB: reading shards from %s",
                    into, free / 1e9, size / 1e9, root,
                )  # fmt: skip
                return root
            for file in missing:
                _copy(root / file.name, target / file.name, file)
                verified[file.name] = _state(target / file.name, file)
            if missing:
                logger.info("copied %d files, %.1f GB, to %s", len(missing), size / 1e9, target)
            write_text(target / MANIFEST, manifest.file_text)
            write_json(target / _VERIFIED, verified)
        finally:
            os.close(lock)
    except OSError as error:
        raise DataError(f"data.stage_to={into}: {error}") from error
    return target


def _read_verified(target: Path) -> dict[str, list[object]]:
    """Return the states of the files whose SHA-256 was verified; none if the record is absent or damaged."""
    try:
        verified = json.loads((target / _VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return verified if isinstance(verified, dict) else {}


def _state(path: Path, file: ShardFile) -> list[object]:
    """Return the expected hash, and what changes with the content; no user can set the time of the status change."""
    status = path.lstat()
    return [file.sha256, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _is_copied(path: Path, file: ShardFile, verified: dict[str, list[object]]) -> bool:
    """Return whether ``path`` is a verified copy; verify and record it if it is new or has changed."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_size != file.bytes:
        return False
    if verified.get(file.name) == (state := _state(path, file)):
        return True
    with path.open("rb") as content:
        is_same = hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
    if is_same:
        verified[file.name] = state
    return is_same


def _copy(source: Path, into: Path, file: ShardFile) -> None:
    digest = hashlib.sha256()
    with atomic_file(into) as temporary:
        with source.open("rb") as read, temporary.open("wb") as write:
            while block := read.read(_BLOCK):
                digest.update(block)
                write.write(block)
        if digest.hexdigest() != file.sha256:
            raise DataError(f"the SHA-256 of {source} differs from that in its manifest; prepare or copy it again")
