"""Copy a data folder to a local disk of this node, as the batch scripts do on every node.

```
python -m simcast_hpc.data.archive_copy where SOURCE DISK     prints the folder of the copy, the same for all nodes
python -m simcast_hpc.data.archive_copy copy SOURCE TARGET    copies, unless an unchanged copy exists
```
"""

import fcntl
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from simcast_hpc.config import DataError, SimcastError
from simcast_hpc.storage.atomic_files import atomic_directory, sweep
from simcast_hpc.storage.private_folders import make_private, user_folder

_MARKER = ".copied"
_BLOCK = 2**22


def copy_path(source: Path, disk: Path) -> Path:
    """Return the folder of the copy of ``source`` on a disk that users may share; nothing is created."""
    digest = hashlib.sha256(str(source.absolute()).encode()).hexdigest()
    return user_folder(disk) / f"{source.absolute().name}-{digest[:12]}"


def copy_folder(source: Path, target: Path) -> bool:
    """Copy the files of ``source`` and return True, or return False if ``target`` is an earlier copy of them.

    The parent of ``target`` is a folder to which only this user can write. A second job of the user on the node waits
    for the first. The copy replaces an earlier one if a name, size or modification time differs, or if a file of the
    copy is missing, and appears only when it is complete. The SHA-256 of every file is compared with that of the
    original.

    Raises:
        DataError: it does not fit, a copied file differs, or another user can write to the parent of ``target``.
    """
    try:
        make_private(target.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(target.with_name(f".{target.name}.lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sweep(target.parent, target.name)
            return _copy_missing(source, target)
        finally:
            os.close(lock)
    except OSError as error:
        raise DataError(f"{source} cannot be copied to {target}: {error}") from error


def _copy_missing(source: Path, target: Path) -> bool:
    # 1. Is there a copy?
    files = {str(path.relative_to(source)): path.stat() for path in _files(source)}
    if not files:
        raise DataError(f"{source} contains no file to copy")
    listing = "".join(f"{name}\0{one.st_size}\0{one.st_mtime_ns}\n" for name, one in sorted(files.items()))
    digest = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    if _is_complete(target, {name: one.st_size for name, one in files.items()}, digest):
        return False
    # 2. Is there space?
    shutil.rmtree(target, ignore_errors=True)
    required, free = sum(one.st_size for one in files.values()), shutil.disk_usage(target.parent).free
    if free < required:
        raise DataError(
            f"{target.parent} has {free >> 20} MiB free, {required >> 20} MiB required; choose another disk, or unset "
            "LOCAL_DATA"
        )
    # 3. Copy and verify
    with atomic_directory(target) as temporary:
        for name in files:
            into = temporary / name
            into.parent.mkdir(parents=True, exist_ok=True)
            expected = _copy_file(source / name, into)
            with into.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != expected:
                    raise DataError(f"the copy {into} differs from {source / name}; check the disk")
        (temporary / _MARKER).write_text(digest, encoding="utf-8")
    return True


def _files(source: Path) -> Iterator[Path]:
    """Yield the files below a folder; links are followed, each folder once."""
    seen: set[str] = set()
    for folder, _, names in os.walk(source, followlinks=True, onerror=_raise):
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        for name in names:
            if (path := Path(folder, name)).is_file() and path.relative_to(source) != Path(_MARKER):
                yield path


def _raise(error: OSError) -> None:
    raise error


def _is_complete(target: Path, sizes: dict[str, int], digest: str) -> bool:
    """Return whether a copy has the marker of these files, and all of them: cleaners remove old files of ``/tmp``."""
    try:
        if (target / _MARKER).read_text(encoding="utf-8") != digest:
            return False
        copies = {name: (target / name).lstat() for name in sizes}
    except (OSError, ValueError):
        return False
    return all(stat.S_ISREG(copies[name].st_mode) and copies[name].st_size == size for name, size in sizes.items())


def _copy_file(source: Path, into: Path) -> str:
    """Copy a file and return the SHA-256 of what was read."""
    digest = hashlib.sha256()
    with source.open("rb") as read, into.open("xb") as write:
        while block := read.read(_BLOCK):
            digest.update(block)
            write.write(block)
    return digest.hexdigest()


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status: 2 for an error of the data or the disk."""
    action, source, place = arguments
    try:
        if action == "where":
            print(copy_path(Path(source), Path(place)))
            return 0
        copied = copy_folder(Path(source), Path(place))
    except SimcastError as error:
        print(error, file=sys.stderr)
        return 2
    node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    print(f"{place} on {node} {'is a new copy' if copied else 'already is a copy'} of {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
