"""The radar frames that came: their times, and frames near a nominal time encoded for the verification."""

import bisect
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.forecast.watched_files import Stamp, list_stamps
from simcast_hpc.radar.frame_encoding import EncodedFrame, ModelEncoding, encode_frame
from simcast_hpc.radar.radar_frame import RadarGrid
from simcast_hpc.radar.read_frame import frame_times, read_frames

logger = logging.getLogger(__name__)
_CACHE_BYTES = 512 << 20
_FRAMES_AT_ONCE = 24  # of a file with many
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PhysicalValues(ModelEncoding):
    """An encoding whose frames keep their values in the model's unit, float32, NaN where missing, without codes."""

    def encode(self, physical: np.ndarray) -> np.ndarray:
        """Return the values unchanged, float32."""
        return np.asarray(physical, np.float32)


@dataclass(frozen=True)
class FrameFile:
    """A file with frames: its path, state, and the times of its frames."""

    path: Path
    stamp: Stamp
    times: tuple[datetime, ...]


class ArrivedFrames:
    """Frames of radar files by time.

    Args:
        files: files with their times, of :func:`find_frame_files`.
        code: encoding, pixel size and cadence of the forecasts.
    """

    def __init__(self, files: Iterable[FrameFile], code: ModelEncoding):
        self._code = code
        self._file_of: dict[datetime, FrameFile] = {}
        # Of two files with one time the one that changed last is used, as in watch mode.
        for file in sorted(files, key=lambda one: (one.stamp.changed_ns, one.path)):
            self._file_of.update(dict.fromkeys(file.times, file))
        self.times = sorted(self._file_of)
        self._cached: OrderedDict[datetime, EncodedFrame] = OrderedDict()
        self._bytes = 0
        self._unreadable: set[datetime] = set()

    def nearest(self, time: datetime, tolerance: timedelta) -> datetime | None:
        """Return the time of the frame nearest to ``time``; None if none is within the tolerance."""
        after = bisect.bisect(self.times, time)
        near = min(self.times[max(after - 1, 0) : after + 1], key=lambda one: abs(one - time), default=None)
        return near if near is not None and abs(near - time) <= tolerance else None

    def identity(self, time: datetime | None) -> list[Any] | None:
        """Return what changes if the frame of this time is replaced: name, size and modification time of its file."""
        if time is None:
            return None
        file = self._file_of[time]
        return [file.path.name, file.stamp.size, file.stamp.changed_ns, (time - _EPOCH).total_seconds()]

    def frame(self, time: datetime) -> EncodedFrame | None:
        """Return the encoded frame of a time; None, with a warning once, if its file cannot be read or encoded."""
        if time in self._cached:
            self._cached.move_to_end(time)
        elif time not in self._unreadable:
            self._read(time)
        return self._cached.get(time)

    def codes(self, times: Sequence[datetime | None], shape: tuple[int, int]) -> np.ndarray:
        """Return frames ``[T, H, W]``, missing for times that are None or unreadable.

        uint8 codes, 255 where missing; of :class:`PhysicalValues` float32 in the model's unit, NaN where missing.
        """
        if isinstance(self._code, PhysicalValues):
            codes = np.full((len(times), *shape), np.nan, np.float32)
        else:
            codes = np.full((len(times), *shape), self._code.spec.encoding.missing_code, np.uint8)
        for number, time in enumerate(times):
            frame = None if time is None else self.frame(time)
            if frame is not None:
                codes[number] = frame.codes
        return codes

    def grid(self, time: datetime) -> tuple[RadarGrid, Path] | None:
        """Return the map of a frame after averaging, and its file; None if it cannot be read."""
        frame = self.frame(time)
        return None if frame is None else (frame.grid, frame.path)

    def _read(self, time: datetime) -> None:
        """Read the frame of a time, and those after it in the same file, which are needed next."""
        file, choice = self._file_of[time], self._code.choice
        in_file = sorted(file.times)
        first = bisect.bisect_left(in_file, time)
        wanted = in_file[first : first + _FRAMES_AT_ONCE]
        try:
            frames = read_frames(
                file.path, prefer=choice.unit, dataset=choice.dataset, importer=choice.importer, times=wanted
            )
            encoded = {one.time: encode_frame(one, self._code) for one in frames}
            if time not in encoded:
                raise DataError(f"{file.path} no longer contains a frame of {time:%Y-%m-%d %H:%M:%S} UTC")
        except DataError as error:
            self._give_up(time, error)
            return
        self._keep({one: frame for one, frame in encoded.items() if self._file_of.get(one) is file}, time)

    def _give_up(self, time: datetime, error: DataError) -> None:
        self._unreadable.add(time)
        logger.warning("skipped: %s", error)

    def _keep(self, frames: Mapping[datetime, EncodedFrame], time: datetime) -> None:
        """Cache frames; those that were used longest ago are removed, that of ``time`` last."""
        for one, frame in frames.items():
            if one not in self._cached:
                self._cached[one] = frame
                self._bytes += frame.codes.nbytes
        self._cached.move_to_end(time)
        while self._bytes > _CACHE_BYTES and len(self._cached) > 1:
            self._bytes -= self._cached.popitem(last=False)[1].codes.nbytes


def find_frame_files(
    folders: Sequence[Path],
    *,
    pattern: str,
    excluded: Sequence[Path],
    code: ModelEncoding,
    known: dict[str, Any],
) -> tuple[list[FrameFile], list[str], dict[str, Any]]:
    """Return the radar files of folders with the times of their frames, the problems of others, and the new index.

    Hidden files, unfinished transfers and files in ``excluded`` are skipped.

    Args:
        folders: folders of radar files, or single files.
        pattern: of file names in folders.
        excluded: resolved folders of the forecasts and of the output.
        code: encoding, which chooses the field of a file with several.
        known: index of an earlier call, so that only new and changed files are opened.

    Raises:
        ConfigError: a path does not exist, or there is no file.
    """
    stamps: dict[Path, Stamp] = {}
    for folder in folders:
        if not folder.exists():
            raise ConfigError(f"{folder} is neither a file nor a folder of radar frames")
        place = folder.resolve()
        inside = (place, pattern) if place.is_dir() else (place.parent, place.name)
        found = list_stamps(*inside, excluded[0])
        stamps |= {path: stamp for path, stamp in found.items() if not set(excluded) & set(path.parents)}
    if not stamps:
        raise ConfigError(f"{', '.join(map(str, folders))}: no file matches --pattern {pattern!r}")
    choice, files, problems, index = code.choice, [], [], {}
    field = [choice.unit, choice.dataset, str(choice.importer or "")]
    for path, stamp in stamps.items():
        entry = known.get(str(path), [])
        if not _is_entry(entry) or entry[0] != list(stamp) or entry[1] != field:
            try:
                times = frame_times(path, prefer=choice.unit, dataset=choice.dataset, importer=choice.importer)
                entry = [list(stamp), field, [one.timestamp() for one in times], ""]
            except DataError as error:
                entry = [list(stamp), field, [], str(error)]
        index[str(path)] = entry
        if entry[3]:
            problems.append(entry[3])
        files.append(FrameFile(path, stamp, tuple(datetime.fromtimestamp(one, UTC) for one in entry[2])))
    return files, problems, index


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 4 and isinstance(entry[2], list) and isinstance(entry[3], str)
