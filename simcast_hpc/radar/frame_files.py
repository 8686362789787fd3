"""Sets of radar files: list the files of folders, index their times, read frames and encode them for a model."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from simcast_hpc.config import ConfigError, DataError

from .frame_encoding import EncodedFrame, ModelEncoding, encode_frame
from .importer_choice import ImporterChoice
from .radar_frame import FieldChoice, QuantityError
from .read_frame import frame_times, read_frames
from .zarr_store import is_remote, is_zarr

logger = logging.getLogger(__name__)
_MOST_COUNTED = 10_001  # files in subfolders, for a message


def list_files(paths: Sequence[Path], pattern: str = "*", importer: ImporterChoice | None = None) -> list[Path]:
    """Return the files among ``paths`` and the files in its folders that match ``pattern``, without hidden ones.

    A Zarr group is a folder and counts as a file, as any folder does for the importer of a composite. A file with
    several names, such as a link ``latest``, is returned once.

    Raises:
        ConfigError: a path does not exist, or a folder contains no matching file.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir() and importer is not None and importer.is_composite:
            files.append(path)
        elif path.is_dir() and not is_zarr(path):
            matching = sorted(
                file
                for file in path.glob(pattern)
                if (file.is_file() or is_zarr(file)) and not file.name.startswith(".")
            )
            if not matching:
                raise ConfigError(
                    f"the folder {path} contains no file that matches --pattern {pattern!r}{_below(path, pattern)}"
                )
            files += matching
        elif path.is_file() or is_zarr(path):
            files.append(path)
        else:
            raise ConfigError(f"{path} is neither a file nor a folder of radar frames")
    return distinct_files(files)


def _below(folder: Path, pattern: str) -> str:
    """Return the part of a message that names files in subfolders, which a pattern without / does not search."""
    if "/" in pattern:
        return ""
    deeper = (path for path in folder.glob(f"**/{pattern}") if path.is_file() and not path.name.startswith("."))
    number = sum(1 for _ in itertools.islice(deeper, _MOST_COUNTED))
    if not number:
        return ""
    counted = f"more than {_MOST_COUNTED - 1}" if number == _MOST_COUNTED else str(number)
    return f"; {counted} matching files are in its subfolders, which --pattern '**/{pattern}' searches"


def distinct_files(paths: Iterable[Path]) -> list[Path]:
    """Return each file once: of its names the first that is not a symbolic link, or the first.

    Raises:
        OSError: a file does not exist.
    """
    chosen: dict[tuple[int, int], Path] = {}
    for path in paths:
        if is_remote(path):
            chosen[hash(str(path)), -1] = path
            continue
        status = path.stat()
        identity = status.st_dev, status.st_ino
        if chosen.setdefault(identity, path).is_symlink() and not path.is_symlink():
            chosen[identity] = path
    return list(chosen.values())


def index_times(
    files: Iterable[Path], *, skip_unreadable: bool, encoding: ModelEncoding | None = None
) -> dict[datetime, Path]:
    """Return the file of each time.

    Args:
        files: radar files.
        skip_unreadable: skip files that cannot be read, with a warning, instead of raising. Files with other
            quantities are counted in one warning.
        encoding: encoding of the model, which chooses the field of a file with several.

    Raises:
        DataError: a file cannot be read, two files contain the same time, or all files contain other quantities.
    """
    choice = FieldChoice() if encoding is None else encoding.choice
    times_by_file: dict[Path, list[datetime]] = {}
    others: list[QuantityError] = []
    for path in files:
        try:
            times_by_file[path] = frame_times(
                path, prefer=choice.unit, dataset=choice.dataset, importer=choice.importer
            )
        except DataError as error:
            if not skip_unreadable:
                raise
            if isinstance(error, QuantityError):
                others.append(error)
            else:
                logger.warning("skipped: %s", error)
    if others and not times_by_file:
        raise DataError(without_quantity(others))
    if others:
        logger.warning("skipped %s; the first: %s", _counted(len(others)), others[0])
    require_unique_times(times_by_file)
    return {time: path for path, times in times_by_file.items() for time in times}


def without_quantity(errors: Sequence[QuantityError]) -> str:
    """Return the message for files that all contain other quantities; names what the first contains."""
    return f"{_counted(len(errors))}, and none has it; --pattern selects files by name; the first: {errors[0]}"


def _counted(number: int) -> str:
    return f"{number} {'file' if number == 1 else 'files'} without the quantity that is read"


def read_encoded(
    files: Mapping[datetime, Path], times: Iterable[datetime], encoding: ModelEncoding
) -> dict[datetime, EncodedFrame]:
    """Return the frames of ``times``, encoded for a model; each file is read once.

    Args:
        files: the file of each time, from :func:`index_times`.
        times: times to read.
        encoding: encoding of the model.

    Raises:
        DataError: a file cannot be read, no longer contains a time, or does not match the model.
    """
    remaining = set(times)
    frames: dict[datetime, EncodedFrame] = {}
    for path in sorted({files[time] for time in remaining}):
        own = {time for time in remaining if files[time] == path}
        for frame in read_frames(
            path, prefer=encoding.unit, dataset=encoding.dataset, importer=encoding.importer, times=own
        ):
            frames[frame.time] = encode_frame(frame, encoding)
    if missing := sorted(remaining - set(frames)):
        raise DataError(f"{files[missing[0]]} no longer contains a frame of {missing[0]:%Y-%m-%d %H:%M:%S} UTC")
    return frames


def require_unique_times(times_by_file: Mapping[Path, Sequence[datetime]]) -> None:
    """Check that no two files contain the same time.

    Raises:
        DataError: two do; names both.
    """
    files: dict[datetime, Path] = {}
    for path, times in times_by_file.items():
        for time in times:
            if (other := files.setdefault(time, path)) != path:
                raise DataError(
                    f"{path} and {other} both contain the time {time:%Y-%m-%d %H:%M:%S} UTC; pass only one of them "
                    "(--pattern selects files by name)"
                )
