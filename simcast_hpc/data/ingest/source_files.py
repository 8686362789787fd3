"""List the radar files of a source: folders, patterns with times in the names, and Zarr stores."""

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from simcast_hpc.config import ConfigError
from simcast_hpc.data.data_license import LICENSE_FILE
from simcast_hpc.radar.read_frame import is_zarr

from .time_patterns import TimePattern

_REMOTE = ("s3://", "https://", "http://")


@dataclass(frozen=True, order=True)
class SourceFile:
    """A radar file or Zarr store. A store has size and time 0: its frames are known by their times.

    Attributes:
        path: absolute path, or the address of a remote store.
        size: bytes.
        mtime_ns: time of the last change in ns since 1970.
        is_store: whether it is a Zarr store, which can contain any number of frames.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    is_store: bool = False


def is_remote(source: str) -> bool:
    """Return whether a source is the address of a remote store."""
    return source.startswith(_REMOTE)


def list_source(
    sources: Sequence[str],
    *,
    pattern: str = "*",
    since: datetime | None = None,
    until: datetime | None = None,
    is_composite: bool = False,
) -> list[SourceFile]:
    """Return the files of all sources, sorted by path; hidden files are skipped, and links to a file listed once.

    Args:
        sources: folders (searched with their subfolders), files, Zarr stores, addresses of remote stores, or patterns
            with directives of strftime, whose names give the times.
        pattern: names of files in folders, as a glob; with ``/`` the path below the folder, and with directives of
            strftime a pattern of times below the folder.
        since: files whose name gives an earlier time are not listed.
        until: files whose name gives a later time are not listed.
        is_composite: whether each source is a folder of volumes that one reader combines; it is listed as a store.

    Raises:
        ConfigError: a source does not exist or contains no matching file.
    """
    if is_composite:
        return _composites(sources, pattern)
    found: dict[tuple[int, int] | str, SourceFile] = {}
    for source in sources:
        if is_remote(source):
            found.setdefault(source, SourceFile(source, is_store=True))
            continue
        count = 0
        for path in _files(source, pattern, since, until):
            count += 1
            status = path.stat()
            file = SourceFile(str(path), status.st_size, status.st_mtime_ns)
            if path.is_dir():
                file = SourceFile(str(path), is_store=True)
            identity = status.st_dev, status.st_ino
            other = found.get(identity)
            if other is None or (Path(other.path).is_symlink(), other) > (path.is_symlink(), file):
                found[identity] = file
        if not count:
            limits = " in the time from --from to --to" if since or until else ""
            raise ConfigError(
                f"SOURCE {source} contains no file"
                + (f" that matches --pattern {pattern!r}" if pattern != "*" else "")
                + limits
            )
    return sorted(found.values())


def _composites(sources: Sequence[str], pattern: str) -> list[SourceFile]:
    for source in sources:
        if is_remote(source) or not Path(source).is_dir():
            raise ConfigError(f"SOURCE {source} is not a folder; --importer composite reads the volumes of a folder")
    if pattern != "*":
        raise ConfigError(f"--pattern {pattern!r} does not apply to composites; use --importer '... pattern={pattern}'")
    return sorted({SourceFile(str(Path(source).absolute()), is_store=True) for source in sources})


def _files(source: str, pattern: str, since: datetime | None, until: datetime | None) -> Iterator[Path]:
    path = Path(source).absolute()
    if not path.exists() and "%" in source:
        yield from _timed_files(TimePattern(str(path)), since, until)
    elif not path.exists():
        raise ConfigError(f"SOURCE {source} does not exist")
    elif path.is_file() or is_zarr(path):
        yield path
    elif not path.is_dir():
        raise ConfigError(f"SOURCE {source} is neither a file nor a folder")
    elif "%" in pattern:
        yield from _timed_files(TimePattern(f"{str(path).replace('%', '%%')}/{pattern}"), since, until)
    else:
        for relative, file in _walk(path, ""):
            if file.name != LICENSE_FILE and fnmatch.fnmatchcase(relative if "/" in pattern else file.name, pattern):
                yield file


def _timed_files(pattern: TimePattern, since: datetime | None, until: datetime | None) -> Iterator[Path]:
    """Yield the files that match; folders outside the limits are not listed."""
    folder = Path(pattern.folder)
    if not folder.is_dir():
        raise ConfigError(f"SOURCE {pattern.text}: {folder} is not a folder")

    def search(below: str, level: int) -> Iterator[Path]:
        for entry in _entries(folder / below):
            relative = f"{below}/{entry.name}" if below else entry.name
            period = pattern.period(relative)
            if period is None or not period.meets(since, until):
                continue
            path = folder / relative
            if level + 1 < pattern.depth:
                if entry.is_dir():
                    yield from search(relative, level + 1)
            elif entry.is_file() or is_zarr(path):
                yield path

    yield from search("", 0)


def _walk(folder: Path, below: str, parents: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, Path]]:
    """Yield relative and absolute paths of files and Zarr stores; links to folders are followed, loops are not."""
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in parents:
        return
    for entry in _entries(folder):
        relative, path = f"{below}{entry.name}", folder / entry.name
        if entry.is_dir() and not is_zarr(path):
            yield from _walk(path, f"{relative}/", (*parents, identity))
        elif entry.is_dir() or entry.is_file():
            yield relative, path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden, sorted.

    Raises:
        ConfigError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda one: one.name)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be read: {error.strerror}") from error
