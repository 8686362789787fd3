"""Free space and write access in the folders of a run, its caches, its loader and its temporary files."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

from .finding import Finding, Severity

_GIB = 2**30
_MIN_INODES = 10_000
NETWORK = {"afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "panfs", "smb3", "wekafs"}


def check_space(name: str, folder: Path, *, want_gib: float, severity: Severity, remedy: str) -> Finding:
    """Check whether ``folder``, or its nearest existing parent, is writable and has free space.

    Args:
        name: purpose of the folder, for the message.
        folder: need not exist; it is left unchanged.
        want_gib: required free space, GiB.
        severity: of too little space; a folder that is full or not writable is always an error.
        remedy: what to do.
    """
    existing = existing_parent(folder)
    try:
        free = free_gib(existing)
        inodes = os.statvfs(existing)
        _write_probe(existing)
    except OSError as error:
        state = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "is not writable"
        return Finding("free space", "error", f"{name} {folder} {state}: {error.strerror or error}", remedy)
    if free < want_gib:
        message = f"{name} {folder}: {free:.1f} GiB free, {want_gib:g} GiB required"
        return Finding("free space", severity, message, remedy)
    if inodes.f_files and inodes.f_favail < _MIN_INODES:
        return Finding("free space", severity, f"{name} {folder}: only {inodes.f_favail} free inodes", remedy)
    return Finding("free space", "ok", f"{name} {folder}: {free:.1f} GiB free on {file_system(existing)}")


def free_gib(folder: Path) -> float:
    """Return the free space for users on the file system of ``folder`` or of its nearest existing parent, GiB."""
    return shutil.disk_usage(existing_parent(folder)).free / _GIB


def existing_parent(path: Path) -> Path:
    """Return ``path`` if it exists, else its nearest existing parent."""
    path = path.absolute()
    return path if path.exists() else existing_parent(path.parent)


def file_system(path: Path) -> str:
    """Return the type of the file system of ``path`` as named by the kernel; ``unknown`` without /proc."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "unknown"
    resolved = existing_parent(path).resolve()
    above = [(point, kind) for _, point, kind, *_ in mounts if resolved.is_relative_to(point.replace("\\040", " "))]
    # Of several mounts on the longest path the last one is visible.
    return max(enumerate(above), key=lambda one: (len(one[1][0]), one[0]))[1][1] if above else "unknown"


def _write_probe(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".simcast-doctor-") as probe:
        probe.write(b"x" * 4096)
        probe.flush()
        os.fsync(probe.fileno())
