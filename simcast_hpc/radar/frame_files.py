"""Files of radar frames: which times they hold, told cheaply, and the chosen ones as a model sees them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from simcast_hpc.config import ConfigError, DataError

from .frame_encoding import CodedFrame, ModelCode, coded
from .frame_sequence import reject_twins
from .read_frame import frame_times, read_frames

logger = logging.getLogger(__name__)


def list_files(places: Sequence[Path], pattern: str = "*") -> list[Path]:
    """Return files that are named, and those of folders whose name fits ``pattern``; hidden ones are left out.

    Raises:
        ConfigError: a place does not exist, or a folder holds no such file.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.glob(pattern) if path.is_file() and not path.name.startswith("."))
            if not inside:
                raise ConfigError(f"the folder {place} holds no file that fits --pattern {pattern!r}")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise ConfigError(f"{place} is neither a file nor a folder of radar frames")
    return found


def times_of(files: Iterable[Path], *, tolerate: bool) -> dict[datetime, Path]:
    """Return the file of every time.

    Args:
        files: radar files.
        tolerate: warn of files that cannot be read and leave them out, in place of refusing.

    Raises:
        DataError: a file cannot be read, or two hold one time.
    """
    held: dict[Path, list[datetime]] = {}
    for path in files:
        try:
            held[path] = frame_times(path)
        except DataError as error:
            if not tolerate:
                raise
            logger.warning("left out: %s", error)
    reject_twins(held)
    return {time: path for path, times in held.items() for time in times}


def read_coded(held: Mapping[datetime, Path], times: Iterable[datetime], code: ModelCode) -> dict[datetime, CodedFrame]:
    """Return the frames of these times, coded for a model; each file is read once.

    Raises:
        DataError: a file cannot be read, does not hold a time that it said it had, or does not fit the model.
    """
    wanted = set(times)
    frames: dict[datetime, CodedFrame] = {}
    for path in sorted({held[time] for time in wanted}):
        for frame in read_frames(path, prefer=code.unit):
            if frame.time in wanted and held[frame.time] == path:
                frames[frame.time] = coded(frame, code)
    if lost := sorted(wanted - set(frames)):
        raise DataError(f"{held[lost[0]]} no longer holds a frame of {lost[0]:%Y-%m-%d %H:%M:%S} UTC")
    return frames
