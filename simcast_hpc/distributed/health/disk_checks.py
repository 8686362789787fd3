"""Room where a run, its caches, its loader and its temporary files write, and whether anything can be written there."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

from .finding import Finding, Severity

_GIB = 2**30
_FEW_FILES = 10_000
NETWORK = {"afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "panfs", "smb3", "wekafs"}


def check_space(what: str, folder: Path, *, want_gib: float, severity: Severity, do: str) -> Finding:
    """Return whether ``folder``, or the one above it that is there, takes ``want_gib`` more and can be written.

    Args:
        what: whose folder it is, for the message.
        folder: need not be there; nothing is left in it.
        want_gib: free space, GiB.
        severity: of too little space. What cannot be written at all is an error.
        do: what helps.
    """
    place = standing(folder)
    try:
        free = free_gib(place)
        files = os.statvfs(place)
        _write(place)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        said = "is full" if full else "cannot be written"
        return Finding("free space", "error", f"{what} {folder} {said}: {error.strerror or error}", do)
    if free < want_gib:
        return Finding("free space", severity, f"{what} {folder}: {free:.1f} GiB free, {want_gib:g} are asked for", do)
    if files.f_files and files.f_favail < _FEW_FILES:
        return Finding("free space", severity, f"{what} {folder}: room for {files.f_favail} more files (inodes)", do)
    return Finding("free space", "ok", f"{what} {folder}: {free:.1f} GiB free on {file_system(place)}")


def free_gib(folder: Path) -> float:
    """Return what a user may still write on the file system of ``folder``, or of the one above that is there, GiB."""
    return shutil.disk_usage(standing(folder)).free / _GIB


def standing(path: Path) -> Path:
    """Return ``path``, or the nearest folder above it that is there."""
    path = path.absolute()
    return path if path.exists() else standing(path.parent)


def file_system(path: Path) -> str:
    """Return the type of the file system that holds ``path``, as the kernel names it; ``unknown`` without /proc."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "unknown"
    found = standing(path).resolve()
    above = [(point, kind) for _, point, kind, *_ in mounts if found.is_relative_to(point.replace("\\040", " "))]
    # The last mount on the longest path is the one that is seen.
    return max(enumerate(above), key=lambda one: (len(one[1][0]), one[0]))[1][1] if above else "unknown"


def _write(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".simcast-doctor-") as probe:
        probe.write(b"x" * 4096)
        probe.flush()
        os.fsync(probe.fileno())
