"""Folders in which no other user can plant files: caches of compiled code, and copies of data on a local disk.

On a shared disk such as ``/tmp`` another user can create a folder or a link under a predictable name before this user
does. What is read from it, such as a compiled kernel, would be that user's.
"""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from simcast_hpc.config import SimcastError

_PRIVATE_MODE = 0o700
_MAX_LINKS = 40  # as the kernel
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UntrustedFolderError(SimcastError, OSError):
    """Another user can write to a folder from which this user would run code or read data."""

    exit_status = 2


def make_private(folder: Path) -> None:
    """Create a folder with mode 0700, and missing parents, or check the existing one with :func:`check_private`.

    Raises:
        UntrustedFolderError: another user can write to it.
        OSError: it cannot be created.
    """
    for missing in reversed([folder, *folder.parents]):
        if not os.path.lexists(missing):
            missing.mkdir(mode=_PRIVATE_MODE, exist_ok=True)
    check_private(folder)


def claim_private(folder: Path) -> None:
    """Check an existing folder with :func:`check_private`; create a missing one only where others could create it.

    Raises:
        UntrustedFolderError: another user can write to it, or can replace a part of its path.
        OSError: it cannot be created.
    """
    if os.path.lexists(folder):
        check_private(folder)
        return
    parent = next(one for one in folder.absolute().parents if os.path.lexists(one))
    check_path(folder)
    if parent.stat().st_mode & _WRITABLE_BY_OTHERS:
        make_private(folder)


def check_private(folder: Path) -> None:
    """Check that only this user can write to a folder.

    The folder must belong to this user or root, must not be a link, and neither a group (other than the user's own, of
    which nobody else is a member) nor all users may write to it. Every folder of its path, also behind links, must
    belong to this user or root. Where all users can write to one, the next part of the path must belong to this user or
    root, and the sticky bit must prevent others from renaming it. Parents to which a group can write, such as the
    folder of a project, and the content of the folder are not judged.

    Raises:
        UntrustedFolderError: another user can write to it; names the part of the path and its owner or mode.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no folder"
        raise UntrustedFolderError(f"{folder} is {kind}; use the path of a folder that belongs to you")
    if not _is_trusted(status):
        raise UntrustedFolderError(f"{folder} belongs to {owner_name(status.st_uid)}; use a folder that belongs to you")
    by_group = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
    if by_group or status.st_mode & stat.S_IWOTH:
        raise UntrustedFolderError(
            f"{folder} has mode {stat.S_IMODE(status.st_mode):04o}, so other users can write to it; remove it, or use "
            "a folder that only you can write to"
        )
    check_path(folder)


def check_path(folder: Path) -> None:
    """Check that no other user can replace a part of the path of a folder; see :func:`check_private`.

    Parts that do not exist are not judged, but the folder that would contain them is.

    Raises:
        UntrustedFolderError: names the part of the path and its owner or mode.
    """
    for parent, child in _steps(folder):
        status = parent.lstat()
        mode = status.st_mode
        if not _is_trusted(status) and not _is_unmapped(status.st_uid):
            raise UntrustedFolderError(
                f"{folder} can be replaced by {owner_name(status.st_uid)}, to whom {parent} belongs; use a folder "
                "whose parents belong to you or root"
            )
        if not mode & stat.S_IWOTH:
            continue
        if not mode & stat.S_ISVTX:
            raise UntrustedFolderError(
                f"{folder} can be replaced by any user: {parent} has mode {stat.S_IMODE(mode):04o}, without the "
                "sticky bit; use another folder"
            )
        if os.path.lexists(child) and not _is_trusted(status := child.lstat()):
            raise UntrustedFolderError(
                f"{child} belongs to {owner_name(status.st_uid)}, in a folder to which every user can write; use a "
                "folder that belongs to you"
            )


def user_folder(disk: Path) -> Path:
    """Return the folder of this user on a disk that users may share: ``simcast-UID`` in the folder ``disk``.

    Several users can name the same ``disk``: if it does not exist in a folder to which others can write, or if another
    user can replace it, the result is in the nearest parent without this fault. Nothing is created.
    """
    disk = base = Path(os.path.abspath(disk))
    while base != base.parent and not _is_usable(base):
        base = base.parent
    is_shared = base.stat().st_mode & _WRITABLE_BY_OTHERS
    is_rejected = any(os.path.lexists(part) for part in (disk, *disk.parents) if base in part.parents)
    return (base if is_shared or is_rejected else disk) / f"simcast-{os.geteuid()}"


def owner_name(uid: int) -> str:
    """Return the name and number of a user, such as ``user ann (1000)``."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:  # common in containers
        return f"user {uid}"


def _is_usable(folder: Path) -> bool:
    try:
        check_path(folder)
        return folder.is_dir() and (_is_trusted(status := folder.stat()) or _is_unmapped(status.st_uid))
    except OSError:
        return False


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in (os.geteuid(), 0)


def _is_own_group(gid: int) -> bool:
    """Return whether a group consists of this user: where it does, the umask of many sites is 0002."""
    if os.geteuid() == 0:
        return False
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _is_unmapped(uid: int) -> bool:
    """Return whether a user is one that this user namespace does not map, as root of the host in many containers."""
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
        maps = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return False
    return uid == overflow and sum(int(line.split()[2]) for line in maps) < 2**32 - 1


def _steps(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield every folder through which the kernel reaches ``path``, with the next part; links are followed one by one.

    Ends at the first part that does not exist.

    Raises:
        UntrustedFolderError: the links form a loop.
    """
    absolute = path.absolute()
    here, remaining, links = Path(absolute.anchor), list(reversed(absolute.parts[1:])), 0
    while remaining:
        name = remaining.pop()
        if name == "..":
            here = here.parent
            continue
        child = here / name
        yield here, child
        if child.is_symlink():
            links += 1
            if links > _MAX_LINKS:
                raise UntrustedFolderError(f"{path} contains a loop of symbolic links")
            target = child.readlink()
            if target.is_absolute():
                here = Path(target.anchor)
            remaining += [part for part in reversed(target.parts) if part != target.anchor]
        elif child.is_dir():
            here = child
        else:
            return
