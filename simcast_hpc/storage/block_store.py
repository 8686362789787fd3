"""Stored pseudo-frames: the teacher rolled out once over every training sequence, in blocks that processes share.

A block is one ``.npy`` of ``BLOCK`` windows, ``[n, T'l, H, W]``, fp16 with NaN or uint8 with 255. It appears by a
rename, so a cut-short roll-out continues where it stopped, and what a reader sees is whole. Every writer has a partial
file of its own: two that write the same block write the same bytes, and the later rename changes nothing.
"""

import json
import os
import socket
from functools import lru_cache
from pathlib import Path

import numpy as np

from simcast_hpc.config import ConfigError, DataError

BLOCK = 64
_MANIFEST = "manifest.json"


class RolloutCache:
    """Pseudo-frames of every window of a source, readable by window index."""

    def __init__(self, folder: Path, *, identity: dict[str, object]):
        """Open a finished cache.

        Args:
            folder: what ``simcast rollout`` filled.
            identity: what it must have been made of (see :func:`cache_identity`).

        Raises:
            ConfigError: there is none, it is unfinished, or it was made of something else.
        """
        self.folder = folder
        found = read_manifest(folder)
        if found is None:
            raise ConfigError(f"student.rollouts={folder} holds no finished roll-out; run `simcast rollout` first")
        differing = [key for key in identity if found.get(key) != identity[key]]
        if differing:
            key = differing[0]
            raise ConfigError(
                f"the roll-out in {folder} was made with {key}={found.get(key)!r}, this run has {identity[key]!r}; "
                "roll out again into another folder"
            )

    def read(self, index: int) -> np.ndarray:
        """Return the pseudo-frames after window ``index``, ``[T'l, H, W]``."""
        block, place = divmod(index, BLOCK)
        return np.array(open_block(self.folder, block)[place])


@lru_cache(maxsize=64)
def open_block(folder: Path, block: int) -> np.ndarray:
    """Return a stored block of a finished folder, mapped into memory; the files last used stay open.

    Raises:
        DataError: the file is absent or damaged.
    """
    path = block_path(folder, block)
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is absent or damaged though {folder} was finished: {error}; remove the folder and make it again"
        ) from error


def cache_identity(
    *, teacher: str, source: str, pseudo_dtype: str, frames_out: int, windows: int, precision: str
) -> dict[str, object]:
    """Return what a roll-out depends on: the teacher's weights, the windows and how frames are stored."""
    return {
        "teacher": teacher,
        "source": source,
        "pseudo_dtype": pseudo_dtype,
        "frames_out": frames_out,
        "windows": windows,
        "precision": precision,
    }


def block_path(folder: Path, block: int) -> Path:
    """Return where a block of windows stands."""
    return folder / f"block-{block:06d}.npy"


def write_block(folder: Path, block: int, frames: np.ndarray) -> None:
    """Write a block whole or not at all."""
    path = block_path(folder, block)
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            np.save(file, frames)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except FileNotFoundError:
        if not path.is_file():  # another wrote the same block meanwhile, and swept up
            raise
    finally:
        partial.unlink(missing_ok=True)


def standing_blocks(folder: Path) -> set[int]:
    """Return the numbers of the blocks that stand."""
    return {int(path.stem.removeprefix("block-")) for path in folder.glob("block-*.npy")}


def read_manifest(folder: Path) -> dict[str, object] | None:
    """Return what a finished cache was made of; None where it is not finished."""
    path = folder / _MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_manifest(folder: Path, identity: dict[str, object]) -> None:
    """Declare the cache finished: the last thing that is written."""
    partial = _partial(folder / _MANIFEST)
    partial.write_text(json.dumps(identity, indent=1), encoding="utf-8")
    partial.replace(folder / _MANIFEST)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a finished folder: leases, and blocks half written."""
    for path in (*folder.glob("block-*.partial"), *folder.glob("block-*.lease")):
        path.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
