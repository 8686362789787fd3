"""Atomic writing of files and directories: after a kill or a power cut the old or the new content exists, never a part.

Content is written under a hidden name next to the final one, flushed to disk and renamed; then the directory is
flushed, since a rename survives a power cut only after that. The hidden name contains host, process and random
digits, so that concurrent writers never share it and nobody can place a link there beforehand, and ends in
``.partial``, so that no pattern by file type matches it. Links are never followed: a link at the final name is
replaced, one at the hidden name is an error.
"""

import json
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PARTIAL, _REMOVED = ".partial", ".removed"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file; it replaces ``path`` when the block succeeds and is removed when the block fails.

    Its name does not end like ``path``: name the format to a writer that derives it from the file name. Permissions
    are those of the umask, whatever the writer sets.

    Raises:
        OSError: the file cannot be written; ``path`` keeps its old content.
    """
    temporary = temporary_path(path)
    with temporary.open("xb") as file:  # O_EXCL, so an existing link is an error
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        yield temporary
        _complete(temporary, mode)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary directory; it becomes ``path`` when the block succeeds and is removed when the block fails.

    Args:
        path: the final directory.
        replace: whether an existing ``path`` is replaced. It is renamed first, so for a moment there is none.

    Raises:
        OSError: the directory cannot be written, or ``path`` exists and is not to be replaced.
    """
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        flush(temporary)
        if replace:
            remove(path)
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1))


def write_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    from safetensors.torch import save_file  # late: data and commands that write no tensors import no torch

    with atomic_file(path) as temporary:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata=None if metadata is None else dict(metadata))


def temporary_path(path: Path) -> Path:
    """Return a hidden name next to ``path`` that no other writer uses."""
    return _hidden(path, _PARTIAL)


def flush(path: Path) -> None:
    """Flush a file, or a directory and all that it contains, to disk."""
    if path.is_dir():
        for entry in path.rglob("*"):
            _fsync(entry)
    _fsync(path)


def publish(temporary: Path, path: Path) -> None:
    """Rename a flushed file or directory to its final name and flush the directory that contains it."""
    temporary.replace(path)
    _fsync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, link or directory if it exists; a directory is first hidden by a rename, so no part is seen."""
    if _is_directory(path):
        hidden = _hidden(path, _REMOVED)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(directory: Path, name: str | None = None) -> None:
    """Remove what killed writers left in ``directory``, of the file or directory ``name`` or of all.

    A writer that is still at work there fails with FileNotFoundError.
    """
    for suffix in (_PARTIAL, _REMOVED):
        for path in directory.glob(f".{'' if name is None else escape(name) + '.'}*{suffix}"):
            shutil.rmtree(path, ignore_errors=True) if _is_directory(path) else path.unlink(missing_ok=True)


def _is_directory(path: Path) -> bool:
    """Return whether a path is a directory itself and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}")


def _complete(temporary: Path, mode: int) -> None:
    """Set the permissions of a written file and flush it to disk.

    Raises:
        OSError: it is a link or not a regular file, because another process replaced it.
    """
    descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{temporary} is not a regular file: another process replaced it while it was written")
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot flush a directory
            raise
    finally:
        os.close(descriptor)
