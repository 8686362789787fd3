"""Count the file operations of processes by phase and folder with ``strace``.

    python -m benchmarks.file_operations FOLDER COMMAND...

The command line replaces itself by the command under ``strace``, which writes ``FOLDER/rank-R``; R is the variable of
the launcher, or 0. A program marks its phases by :func:`mark`, a look at a path that does not exist. Reads of mapped
files are page faults, which are not counted. Requires Linux and ``strace``.
"""

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

COLUMNS = ("opens", "stats", "changes", "bytes_read", "bytes_written")
"""Opens and stats, also of paths that do not exist; entries made, renamed or removed; bytes of reads and of writes."""
_MARK = "/simcast-phase/"
_KINDS = {
    **dict.fromkeys(("open", "openat", "openat2", "creat"), "opens"),
    **dict.fromkeys(("stat", "lstat", "newfstatat", "fstat", "statx", "access", "faccessat", "faccessat2"), "stats"),
    **dict.fromkeys(("readlink", "readlinkat"), "stats"),
    **dict.fromkeys(("read", "pread64", "readv", "preadv"), "bytes_read"),
    **dict.fromkeys(("write", "pwrite64", "writev", "pwritev"), "bytes_written"),
    **dict.fromkeys(("mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"), "changes"),
    **dict.fromkeys(("chmod", "fchmodat", "link", "linkat", "symlink", "symlinkat"), "changes"),
}
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
_LINE = re.compile(r"^(\d+) +(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+)")
_RESUMED = re.compile(r"^<\.\.\. \w+ resumed>(.*)$")
_UNFINISHED = " <unfinished ...>"
_PATH = re.compile(r'^(?:(?:AT_FDCWD|\d+)(?:<(?P<folder>[^>]*)>)?, )?"(?P<path>(?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")


def mark(phase: str) -> None:
    """Begin a phase of this process in the output of ``strace``."""
    os.access(_MARK + phase, os.F_OK)


def command_line(folder: Path, command: Sequence[str]) -> list[str]:
    """Return the command line that runs ``command`` as a rank under ``strace``.

    Raises:
        RuntimeError: ``strace`` is missing.
    """
    if shutil.which("strace") is None:
        raise RuntimeError("the command strace is missing; install strace")
    return [sys.executable, "-m", "benchmarks.file_operations", str(folder), *command]


def counts(lines: Iterable[str], folders: Mapping[str, str]) -> dict[tuple[str, str], Counter[str]]:
    """Return the counts of ``COLUMNS`` by phase and kind of path.

    Args:
        lines: output of ``strace`` with process numbers and decoded descriptors.
        folders: kind of the paths below each folder; the first that fits. The others are ``other``. Pipes, sockets
            and devices are not counted.
    """
    result: dict[tuple[str, str], Counter[str]] = {}
    phase = "start"
    for name, arguments, value in _calls(lines):
        column = _KINDS.get(name)
        path = None if column is None else _path(arguments, by_descriptor=column.startswith("bytes"))
        if path is None or column is None:
            continue
        if path.startswith(_MARK):
            phase = path.removeprefix(_MARK)
            continue
        if not path.startswith("/") or path.startswith(("/dev/", "/proc/", "/sys/")):
            continue
        kind = next((kind for folder, kind in folders.items() if _is_below(path, folder)), "other")
        amount = max(value, 0) if column.startswith("bytes") else 1
        result.setdefault((phase, kind), Counter())[column] += amount
    return result


def _calls(lines: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    """Yield name, arguments and result of each call, those that another thread interrupted where they end."""
    pending: dict[str, str] = {}
    for line in lines:
        if not (found := _LINE.match(line.rstrip("\n"))):
            continue
        thread, text = found.groups()
        if text.endswith(_UNFINISHED):
            pending[thread] = text.removesuffix(_UNFINISHED)
            continue
        if resumed := _RESUMED.match(text):
            text = pending.pop(thread, "") + resumed[1]
        if call := _CALL.match(text):
            yield call[1], call[2], int(call[3])


def _path(arguments: str, *, by_descriptor: bool) -> str | None:
    if by_descriptor:
        found = _DESCRIPTOR.match(arguments)
        return found and found[1]
    if not (found := _PATH.match(arguments)):
        return None
    return os.path.normpath(os.path.join(found["folder"] or "/", found["path"]))


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def main(arguments: Sequence[str]) -> None:
    """Replace this process by a command under ``strace``."""
    folder, *command = arguments
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    calls = "%file,read,pread64,readv,preadv,write,pwrite64,writev,pwritev"
    options = ["-f", "--seccomp-bpf", "-qq", "-y", "-s", "0", "-e", f"trace={calls}", "-o", f"{folder}/rank-{rank}"]
    os.execvp("strace", ["strace", *options, *command])


if __name__ == "__main__":
    main(sys.argv[1:])
