"""Unpacks the radar frames of a downloaded tar file: only names that a pattern expects, into folders by day."""

import shutil
import tarfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from simcast_hpc.config.text_files import printable
from simcast_hpc.storage.atomic_files import atomic_file

from .archive_description import Period, Product, time_of_name
from .object_transfer import DownloadError

_LARGEST_FRAME = 2**26
_LARGEST_DAY = 2**31


def frame_path(target: Path, time: datetime, name: str) -> Path:
    """Return where the file of a time is stored: ``target/YYYY/MM/DD/name``."""
    return target / f"{time:%Y}" / f"{time:%m}" / f"{time:%d}" / name


def unpack_frames(
    archive: Path, product: Product, period: Period, target: Path, *, check: Callable[[], None] = lambda: None
) -> list[datetime]:
    """Unpack the frames of a period from a tar file, which may contain a tar file per day; return their times.

    The path of a member is ignored, its name must match ``product.names_inside``, and it must be a regular file:
    nothing is written outside ``target``. Frames that exist with the same size are kept. ``check`` is called before
    each frame, to stop.

    Raises:
        DownloadError: the tar file is damaged, or a member is too large.
    """
    times: set[datetime] = set()
    most = 2 * len(product.frame_times(period)) + 100
    try:
        for name, size, content in _members(archive, product, period):
            check()
            time = time_of_name(name, product.names_inside)
            if time is None or time not in period:
                continue
            if size > _LARGEST_FRAME or len(times) > most:
                raise DownloadError(
                    f"{archive.name}: the member {printable(name)[:100]} has {size} bytes, or more than {most} frames "
                    f"are in the file; at most {_LARGEST_FRAME} bytes are valid"
                )
            into = frame_path(target, time, name)
            if not (into.is_file() and not into.is_symlink() and into.stat().st_size == size):
                into.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(into) as temporary, temporary.open("wb") as file:
                    shutil.copyfileobj(content, file)
                    if file.tell() != size:
                        raise DownloadError(f"{archive.name}: the member {name} is truncated")
            times.add(time)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the local disk
        raise DownloadError(f"{archive.name} is not a complete tar file: {error}") from error
    return sorted(times)


def _members(archive: Path, product: Product, period: Period) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield name, size and content of the frames, in the order of the file."""
    with tarfile.open(archive, "r:*") as outer:
        for member in outer:
            name = member.name.rpartition("/")[2]
            content = outer.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            day = time_of_name(name, product.days_inside)
            if day is None:
                yield name, member.size, content
            elif day < period.end and day + timedelta(days=1) > period.begin:
                if member.size > _LARGEST_DAY:
                    raise DownloadError(f"{archive.name}: the member {name} has {member.size} bytes")
                with tarfile.open(fileobj=content, mode="r|*") as inner:
                    for frame in inner:
                        stream = inner.extractfile(frame) if frame.isreg() else None
                        if stream is not None:
                            yield frame.name.rpartition("/")[2], frame.size, stream
