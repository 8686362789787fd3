"""Copy prepared shards to a local disk, once per node, and verify them."""

import fcntl
import hashlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from simcast_hpc.config import DataError
from simcast_hpc.storage.atomic_files import atomic_file, sweep, write_text

from .shard_format import MANIFEST, Manifest, ShardFile

logger = logging.getLogger(__name__)
_BLOCK = 2**22
_SPARE_BYTES = 2**30


def stage(root: Path, manifest: Manifest, shards: Collection[int], into: Path) -> Path:
    """Copy these shards below ``into`` and return the folder, or return ``root`` if they do not fit.

    The other ranks of the node wait for the one that copies; earlier copies are kept. The folder is named after the
    hash of the manifest, so that two preparations never mix.

    Raises:
        DataError: a shard does not match the manifest, or ``into`` is not writable.
    """
    target = into / manifest.hash[:16]
    files = [manifest.index, *(manifest.shards[number] for number in sorted(shards))]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with (target / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sweep(target)
            missing = [file for file in files if not _is_copied(target / file.name, file)]
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
            if missing:
                logger.info("copied %d files, %.1f GB, to %s", len(missing), size / 1e9, target)
            write_text(target / MANIFEST, manifest.text)
    except OSError as error:
        raise DataError(f"data.stage_to={into}: {error}") from error
    return target


def _is_copied(path: Path, file: ShardFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes


def _copy(source: Path, into: Path, file: ShardFile) -> None:
    digest = hashlib.sha256()
    with atomic_file(into) as temporary:
        with source.open("rb") as read, temporary.open("wb") as write:
            while block := read.read(_BLOCK):
                digest.update(block)
                write.write(block)
        if digest.hexdigest() != file.sha256:
            raise DataError(f"the SHA-256 of {source} differs from that in its manifest; prepare or copy it again")
