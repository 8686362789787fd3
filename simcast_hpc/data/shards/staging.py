"""Prepared shards copied to a node's own disk, once for all of its ranks, verified before they are used."""

import fcntl
import hashlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from simcast_hpc.config import DataError
from simcast_hpc.storage.atomic_files import atomic_file, sweep, write_text

from .shard_format import INDEX, MANIFEST, Manifest, ShardFile

logger = logging.getLogger(__name__)
_BLOCK = 2**22
_SPARE_BYTES = 2**30


def stage(root: Path, manifest: Manifest, shards: Collection[int], into: Path) -> Path:
    """Return the folder below ``into`` that holds a copy of these shards; ``root`` itself where they do not fit.

    Ranks of a node wait for the one that copies; what an earlier call copied stays. A folder is named after its
    manifest's hash, so that two preparations never mix.

    Raises:
        DataError: a shard's bytes are not those of the manifest, or ``into`` cannot be written.
    """
    target = into / manifest.hash[:16]
    wanted = [manifest.index, *(manifest.shards[number] for number in sorted(shards))]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with (target / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sweep(target)
            missing = [file for file in wanted if not _stands(target / file.name, file)]
            size = sum(file.bytes for file in missing)
            free = shutil.disk_usage(target).free
            if missing and size + _SPARE_BYTES > free:
                logger.warning(
                    "data.stage_to=%s has %.1f GB free, %.1f GB are to be copied: shards are read from %s",
                    into, free / 1e9, size / 1e9, root,
                )  # fmt: skip
                return root
            for file in missing:
                _copy(root / file.name, target / file.name, file)
            if missing:
                logger.info("%d files, %.1f GB, were copied to %s", len(missing), size / 1e9, target)
            write_text(target / MANIFEST, manifest.text)
    except OSError as error:
        raise DataError(f"data.stage_to={into}: {error}") from error
    return target


def _stands(path: Path, file: ShardFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes


def _copy(source: Path, into: Path, file: ShardFile) -> None:
    digest = hashlib.sha256()
    with atomic_file(into) as temporary:
        with source.open("rb") as read, temporary.open("wb") as write:
            while block := read.read(_BLOCK):
                digest.update(block)
                write.write(block)
        if digest.hexdigest() != file.sha256:
            kind = "the index" if file.name == INDEX else "a shard"
            raise DataError(f"{source} is not {kind} of its manifest: its SHA-256 differs; prepare or copy it again")
