"""The files of a watched folder: which are complete, which times they contain, their frames, and their problems.

Whatever goes wrong with a file is a problem of this file. It is tried again when it changes, and after intervals that
double from a minute to an hour, since a reader can also fail for lack of memory, time or network. Files that take the
time limit of the reader delay others little: the first attempt is short, the newest files are first, and the time per
scan is bounded.
"""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from simcast_hpc.config import DataError, SimcastError
from simcast_hpc.radar.frame_encoding import EncodedFrame, ModelEncoding, encode_frame
from simcast_hpc.radar.frame_files import distinct_files
from simcast_hpc.radar.read_frame import frame_times, read_frames
from simcast_hpc.radar.zarr_store import is_zarr
from simcast_hpc.storage.run_directory import file_hash

from .choose_frames import EARLIEST_YEAR

logger = logging.getLogger(__name__)
# A frame further ahead of the clock waits until the clock reaches it.
FUTURE_TOLERANCE = timedelta(hours=1)
_UNFINISHED = (".partial", ".part", ".tmp", ".filepart")
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 60.0, 3600.0
_RETRY_SECONDS_PER_SCAN = 1.0
_NEW_SECONDS_PER_SCAN = 20.0
_CACHE_BYTES = 512 << 20
_HASHED_BYTES = 1 << 30


class Stamp(NamedTuple):
    """State of a file by which a change of its content or permissions is recognized; of a Zarr store, of its files."""

    size: int
    changed_ns: int
    status_ns: int
    inode: int


@dataclass(frozen=True)
class InspectedFile:
    """A file that was inspected: the times of its frames, or why it cannot be used."""

    stamp: Stamp
    times: tuple[datetime, ...] = ()
    problem: str = ""


class Retry(NamedTuple):
    """Number of failures and the time, by the monotonic clock, of the next attempt."""

    failures: int
    at: float

    @classmethod
    def after(cls, previous: "Retry | None") -> "Retry":
        """Return the retry after one more failure."""
        failures = 1 if previous is None else previous.failures + 1
        wait = min(_FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 10), _LONGEST_RETRY_SECONDS)
        return cls(failures, time.monotonic() + wait)

    @property
    def is_due(self) -> bool:
        """Whether the time of the next attempt has come."""
        return time.monotonic() >= self.at


class WatchedFiles:
    """Files of a folder, their times and encoded frames; see the module.

    Args:
        folder: to watch.
        code: encoding of the model.
        pattern: of file names.
        settled_seconds: a file whose modification is older is complete; a newer one if a later scan finds it unchanged.
        excluded: folder whose files are not read, that of the forecasts.
    """

    def __init__(self, folder: Path, code: ModelEncoding, *, pattern: str, settled_seconds: float, excluded: Path):
        self._folder, self._code, self._pattern, self._excluded = folder, code, pattern, excluded
        self._settled_ns = int(settled_seconds * 1e9)
        self._seen: dict[Path, Stamp] = {}
        self._known: dict[Path, InspectedFile] = {}
        self._retries: dict[Path, tuple[Stamp, Retry]] = {}
        self._encoded: dict[tuple[Path, Stamp], dict[datetime, EncodedFrame]] = {}
        self._digests: dict[tuple[Path, Stamp], dict[datetime, str]] = {}
        self._announced: set[Path] = set()
        self._stop: Callable[[], object] | None = None

    def update(self, stop: Callable[[], object]) -> None:
        """Inspect files that are new or changed and no longer grow, and those whose next attempt is due.

        ``stop`` also ends the reading of a frame until the next update, with ``ReadingStopped``.
        """
        self._stop = stop
        now_ns, listing = time.time_ns(), list_stamps(self._folder, self._pattern, self._excluded)
        self._known = {path: known for path, known in self._known.items() if path in listing}
        # 1. New and changed files, the newest first; those for which no time is left are inspected at the next scan
        until = time.monotonic() + _NEW_SECONDS_PER_SCAN
        for path, stamp in sorted(listing.items(), key=lambda item: -item[1].changed_ns):
            if stop() or time.monotonic() > until:
                break
            known = self._known.get(path)
            is_settled = self._seen.get(path) == stamp or now_ns - stamp.changed_ns > self._settled_ns
            if is_settled and (known is None or known.stamp != stamp):
                self._known[path] = self._inspect(path, stamp)
        # 2. Files that failed; not all at once, since each can take the time limit of the reader
        until = time.monotonic() + _RETRY_SECONDS_PER_SCAN
        for path, known in list(self._known.items()):
            if stop() or time.monotonic() > until:
                break
            if known.problem and self._retries[path][1].is_due:
                self._known[path] = self._inspect(path, known.stamp)
        self._seen = listing
        self._retries = {path: retry for path, retry in self._retries.items() if path in listing}
        self._digests = {key: value for key, value in self._digests.items() if key[0] in listing}
        self._announced &= set(listing)

    def by_time(self, now: datetime) -> dict[datetime, Path]:
        """Return the file of every time that the clock has reached; of two files with one time the newer."""
        files: dict[datetime, Path] = {}
        for path, known in sorted(self._known.items(), key=lambda item: (item[1].stamp.changed_ns, item[0])):
            if not known.problem:
                files.update(dict.fromkeys((one for one in known.times if one <= now + FUTURE_TOLERANCE), path))
        return files

    def waiting(self, now: datetime) -> list[tuple[Path, str]]:
        """Return the files with frames that the clock has not reached, and what is wrong with each."""
        waiting = []
        for path, known in self._known.items():
            early = [one for one in known.times if one > now + FUTURE_TOLERANCE]
            if not known.problem and early:
                text = (
                    f"the time {min(early):%Y-%m-%d %H:%M} UTC is in the future; it is used when the clock reaches it"
                )
                waiting.append((path, text))
                if path not in self._announced:
                    self._announced.add(path)
                    logger.warning("%s: %s", path, text)
            else:
                self._announced.discard(path)
        return waiting

    def problems(self) -> list[tuple[Path, str]]:
        """Return the files that cannot be used and why, the one that changed last first."""
        known = sorted(self._known.items(), key=lambda item: -item[1].stamp.changed_ns)
        return [(path, one.problem) for path, one in known if one.problem]

    def arrived(self, path: Path) -> float:
        """Return when a file arrived: the last change of its status, seconds since 1970.

        Transfers that keep modification times, such as ``rsync -t``, set those to the past, but not this one.
        """
        return self._known[path].stamp.status_ns / 1e9

    def content(self, path: Path, moment: datetime) -> str:
        """Return a hash of the content that determines the frame of ``moment``.

        Raises:
            Exception: the file cannot be read.
        """
        known = self._known[path]
        key = (path, known.stamp)
        if key not in self._digests:
            if len(known.times) == 1 and path.is_file() and known.stamp.size <= _HASHED_BYTES:
                self._digests[key] = {moment: file_hash(path)}
            else:  # a file that grows: frames that it had before do not change
                self._read(path)
        return self._digests[key].get(moment, "absent")

    def frame(self, path: Path, moment: datetime) -> EncodedFrame:
        """Return the encoded frame of ``moment``.

        Raises:
            Exception: the file cannot be read, or does not match the model.
        """
        key = (path, self._known[path].stamp)
        frame = (self._encoded[key] if key in self._encoded else self._read(path)).get(moment)
        if frame is None:
            raise DataError(f"{path} no longer contains a frame of {moment:%Y-%m-%d %H:%M:%S} UTC")
        self._retries.pop(path, None)
        return frame

    def has_failed(self, path: Path) -> bool:
        """Return whether the last attempt to read a file, as it is now, failed."""
        failed = self._retries.get(path)
        return failed is not None and failed[0] == self._known[path].stamp

    def set_aside(self, path: Path, error: Exception) -> None:
        """Record that a file cannot be used until it changes or its next attempt is due."""
        self._known[path] = self._failed(path, self._known[path].stamp, error)

    def _inspect(self, path: Path, stamp: Stamp) -> InspectedFile:
        try:
            choice = self._code.choice
            short = path not in self._retries or self._retries[path][0] != stamp
            found = frame_times(
                path, prefer=choice.unit, dataset=choice.dataset, importer=choice.importer, stop=self._stop, short=short
            )
            times = tuple(found)
            if times and min(times).year < EARLIEST_YEAR:
                raise DataError(f"{path} contains the time {min(times).isoformat()}, before the first weather radars")
        except Exception as error:
            return self._failed(path, stamp, error)
        return InspectedFile(stamp, times)

    def _failed(self, path: Path, stamp: Stamp, error: Exception) -> InspectedFile:
        known, previous = self._known.get(path), self._retries.get(path)
        self._retries[path] = stamp, Retry.after(previous[1] if previous and previous[0] == stamp else None)
        text = _describe(path, error)
        if previous is None or previous[0] != stamp or (known is not None and known.problem not in ("", text)):
            logger.warning("ignored until it changes: %s", text)
        return InspectedFile(stamp, problem=text)

    def _read(self, path: Path) -> dict[datetime, EncodedFrame]:
        key = (path, self._known[path].stamp)
        choice = self._code.choice
        short = not self.has_failed(path)
        stored = read_frames(
            path, prefer=choice.unit, dataset=choice.dataset, importer=choice.importer, stop=self._stop, short=short
        )
        frames = {frame.time: encode_frame(frame, self._code) for frame in stored}
        self._encoded[key] = frames
        if key not in self._digests:  # otherwise the hash of the file is there
            self._digests[key] = {time: _digest(frame) for time, frame in frames.items()}
        size = sum(frame.codes.nbytes for cached in self._encoded.values() for frame in cached.values())
        for old in list(self._encoded)[:-1]:
            if size <= _CACHE_BYTES:
                break
            size -= sum(frame.codes.nbytes for frame in self._encoded.pop(old).values())
        return frames


def list_stamps(folder: Path, pattern: str, excluded: Path) -> dict[Path, Stamp]:
    """Return the files and Zarr stores of a folder, each once if it has several names.

    Hidden files, those with the suffix of an unfinished transfer, and files in ``excluded`` or in a store are skipped.
    """
    stamps: dict[Path, Stamp] = {}
    stores: set[Path] = set()
    try:
        paths = sorted(folder.glob(pattern))
    except OSError as error:  # such as a network file system that is not mounted at the moment
        logger.warning("%s cannot be listed: %s", folder, error)
        return {}
    for path in paths:
        if path.name.startswith(".") or path.suffix.lower() in _UNFINISHED or excluded in path.parents:
            continue
        try:
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                stamps[path] = Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            elif stat.S_ISDIR(status.st_mode) and is_zarr(path):
                stamps[path] = _store_stamp(path, status.st_ino)
                stores.add(path)
        except OSError:  # removed since the listing, a broken link, or no permission
            continue
    return {path: stamps[path] for path in distinct_files(stamps) if not stores.intersection(path.parents)}


def current_time() -> datetime:
    """Return the time of the clock, UTC."""
    return datetime.now(UTC)


def _store_stamp(store: Path, inode: int) -> Stamp:
    size = changed = status = 0
    for folder, _, names in os.walk(store):
        for name in names:
            state = os.lstat(os.path.join(folder, name))
            size += state.st_size
            changed, status = max(changed, state.st_mtime_ns), max(status, state.st_ctime_ns)
    return Stamp(size, changed, status, inode)


def _describe(path: Path, error: Exception) -> str:
    if path.is_symlink():  # messages may contain the first bytes of a file; a link can lead to any file
        return f"{path} is a link to something that cannot be read as a radar frame"
    return str(error) if isinstance(error, SimcastError) else f"{path}: {type(error).__name__}: {error}"


def _digest(frame: EncodedFrame) -> str:
    return hashlib.sha256(frame.codes.tobytes() + repr((frame.grid, frame.unit, frame.time)).encode()).hexdigest()
