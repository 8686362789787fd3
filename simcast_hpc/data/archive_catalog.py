"""``CATALOG.csv`` of an archive in SEVIR's layout: read its rows, and select the events of a split.

The selection is that of the public SEVIR loader (``SEVIRDataLoader`` of Earthformer): rows of one image type, within
the dates of the split, with a limited percentage of missing pixels and a unique id, sorted by id.
"""

import csv
import io
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from sys import intern

from simcast_hpc.config import DataError
from simcast_hpc.config.text_files import read_text_file

from .data_errors import DataProblem
from .dataset_spec import DatasetSpec, Split
from .empty_split import empty_split, in_other_splits, too_many_missing

logger = logging.getLogger(__name__)
CATALOG = "CATALOG.csv"
_COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")
_OFFSETS = "minute_offsets"


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the catalog; ``offsets`` is its ``minute_offsets``, empty if the catalog has none."""

    id: str
    file_name: str
    file_index: int
    time: datetime
    percent_missing: float
    offsets: str = ""

    @property
    def seconds(self) -> int:
        """``time`` in seconds since 1970 UTC."""
        return int(self.time.replace(tzinfo=UTC).timestamp())

    @property
    def first_minute(self) -> float:
        """Minutes from ``time`` to the first frame."""
        return parse_offsets(self.offsets)[0] if self.offsets else 0.0


def read_catalog(spec: DatasetSpec, root: Path, *, file_names: Collection[str] | None = None) -> list[Event]:
    """Return the rows of the dataset's image type, in the order of the catalog.

    Raises:
        DataError: the catalog or a column is missing, or a row is truncated or contains an invalid number, percentage
            or time.
    """
    catalog = root / CATALOG
    if not catalog.exists():
        raise DataError(_no_catalog(root))
    reader = csv.reader(io.StringIO(read_text_file(catalog, error=DataError, what="the catalog"), newline=""))
    try:
        return list(_rows(catalog, reader, spec.image_type, file_names))
    except csv.Error as error:
        raise DataError(f"the catalog {catalog}, line {reader.line_num}: {error}; download it again") from error


def _no_catalog(root: Path) -> str:
    if root.is_dir():
        return (
            f"{root} contains neither {CATALOG} nor prepared shards (manifest.json); pass the folder of one of them. "
            "`simcast data synth FOLDER` writes a synthetic archive; `simcast data import` converts radar files"
        )
    return f"{root / CATALOG} cannot be read: {root} is not a folder; pass that of an archive or of prepared shards"


def _rows(
    catalog: Path, reader: Iterator[list[str]], image_type: str, file_names: Collection[str] | None
) -> Iterator[Event]:
    header = next(reader, [])
    absent = [column for column in _COLUMNS if column not in header]
    if absent:
        raise DataError(f"{catalog} has no column {', '.join(absent)}; it has {header}")
    ids, names, indices, types, times, missing = (header.index(column) for column in _COLUMNS)
    offsets = header.index(_OFFSETS) if _OFFSETS in header else None
    needed = max(ids, names, indices, types, times, missing, offsets or 0)
    for number, row in enumerate(reader, start=2):
        if not row:
            continue
        if len(row) <= needed:
            lost = [column for column in (*_COLUMNS, _OFFSETS) if column in header and header.index(column) >= len(row)]
            raise DataError(f"{catalog}, line {number}, event {row[0]}: truncated before column {lost[0]}")
        if row[types] != image_type or (file_names is not None and row[names] not in file_names):
            continue
        try:
            yield Event(
                row[ids],
                intern(_relative(row[names])),
                int(row[indices]),
                _utc(row[times]),
                _percent(row[missing]),
                "" if offsets is None else intern(row[offsets]),
            )
        except (ValueError, OverflowError) as error:  # OverflowError: a time zone leaves the years 1 to 9999
            raise DataError(f"{catalog}, line {number}, event {row[ids]}: {error}") from error


def _percent(text: str) -> float:
    """Return ``pct_missing``, NaN (unknown) where it is empty.

    Raises:
        ValueError: it is not a number from 0 to 100.
    """
    percent = float(text or "nan")
    if text and not 0 <= percent <= 100:
        raise ValueError(f"pct_missing={text!r} must be from 0 to 100, or empty if it is unknown")
    return percent


def _relative(file_name: str) -> str:
    """Return a file name that is below the folder of the archive.

    Raises:
        ValueError: it is absolute or contains `..`, or cannot be a name.
    """
    parts = PurePosixPath(file_name).parts
    if not parts or ".." in parts or parts[0] == "/" or not file_name.isprintable():
        raise ValueError(f"file_name={file_name!r} must be relative to the archive, without `..`")
    return file_name


def archive_path(root: Path, spec: DatasetSpec, file_name: str) -> Path:
    """Return the path of a file of an archive.

    Raises:
        DataError: a symbolic link leads out of the archive.
    """
    path = root / spec.folder / file_name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{path} is a symbolic link to {path.resolve()}, outside of the archive {root}; move the files into the "
            "archive, or link the whole archive"
        )
    return path


def choose_events(
    spec: DatasetSpec, root: Path, split: Split, max_percent_missing: float | None, file_names: Sequence[str] | None
) -> list[Event]:
    """Return the events of a split, sorted by id.

    Raises:
        DataError: as :func:`read_catalog`; the cadence of an event is not that of the dataset; or no event remains.
    """
    # 1. Rows of the split, with a limited share of missing pixels and a unique id
    rows = read_catalog(spec, root, file_names=file_names)
    choose = spec.splits.chooser(root)
    in_split = rows if split == "all" else [event for event in rows if choose(event.id, event.time) == split]
    chosen = [event for event in in_split if has_few_missing(event.percent_missing, max_percent_missing)]
    counts = Counter(event.id for event in chosen)  # SEVIR repeats some ids; the public loader drops all of them
    events = sorted((event for event in chosen if counts[event.id] == 1), key=lambda event: event.id)
    # 2. Skipped events, which must not be skipped silently
    repeated = [name for name, count in counts.items() if count > 1]
    unknown = [event.id for event in in_split if math.isnan(event.percent_missing)]
    unknown = unknown if len(chosen) < len(in_split) else []
    skipped = [
        f"{len(names)} {what}, the first is {names[0]}"
        for names, what in (
            (repeated, "ids occur more than once, whose events are skipped as in the public loader"),
            (unknown, "events without pct_missing are skipped because of max_percent_missing"),
        )
        if names
    ]
    if not events:
        splits = ["" if split == "all" else choose(event.id, event.time) for event in rows]
        lost = [
            *_other_rows(root / CATALOG, spec, file_names),
            (len(rows) - len(in_split), in_other_splits(splits, [event.seconds for event in rows], wanted=split)),
            *too_many_missing([event.percent_missing for event in in_split], max_percent_missing),
            (len(chosen), f"have an id that occurs more than once, the first is {next(iter(repeated), '')}"),
        ]
        others = sum(count for count, _ in lost[:2])
        raise empty_split(spec, str(root / CATALOG), split, len(rows) + others, lost)
    for reason in skipped:
        logger.warning("%s, split %s: %s", root / CATALOG, split, reason)
    # 3. Times of the frames
    for event in events:
        problem = cadence_problem(spec, event)
        if problem is not None:
            raise DataError(f"{root / CATALOG}, event {event.id}: {problem.message}")
    return events


def has_few_missing(percent: float, limit: float | None) -> bool:
    """Return whether an event has at most ``limit`` % missing pixels; an unknown (NaN) share is at most 100 %."""
    return limit is None or limit >= 100 or percent <= limit


def _other_rows(catalog: Path, spec: DatasetSpec, file_names: Collection[str] | None) -> list[tuple[int, str]]:
    """Return number and reason of the rows of other image types, and of those of other files."""
    reader = csv.DictReader(io.StringIO(read_text_file(catalog, error=DataError, what="the catalog"), newline=""))
    rows = [(row["img_type"], row["file_name"]) for row in reader]
    types = Counter(image_type for image_type, _ in rows if image_type != spec.image_type)
    shown = ", ".join(f"{name!r} {count}" for name, count in types.most_common(10))
    own = [name for image_type, name in rows if image_type == spec.image_type]
    others = [] if file_names is None else [name for name in own if name not in file_names]
    return [
        (
            sum(types.values()),
            f"are of other types than {spec.image_type!r}: {shown} (`image_type` of the description)",
        ),
        (len(others), f"are in other files than {list(file_names or ())} (data.file_names)"),
    ]


def repeated_ids(events: Sequence[Event]) -> list[DataProblem]:
    """Return a problem for each repeated id of ``events``."""
    return repeated_ids_of([event.id for event in events])


def repeated_ids_of(ids: Sequence[str]) -> list[DataProblem]:
    """Return a problem for each repeated id."""
    counts = Counter(ids)
    return [
        DataProblem("repeated-id", CATALOG, name, f"occurs {times} times; it is not used, as in the public loader")
        for name, times in counts.items()
        if times > 1
    ]


def cadence_problem(spec: DatasetSpec, event: Event) -> DataProblem | None:
    """Return the problem of the frame times of an event in the catalog, or None."""
    if not event.offsets:
        return None
    message = _offsets_problem(event.offsets, spec.step_minutes, spec.frames_per_event)
    if message is None:
        return None
    return DataProblem("unsorted-times" if "ascending" in message else "cadence", CATALOG, event.id, message)


@lru_cache(maxsize=1024)
def _offsets_problem(text: str, step_minutes: float, frames: int | None) -> str | None:
    try:
        offsets = parse_offsets(text)
    except ValueError:
        return f"minute_offsets {text[:40]!r} are not numbers"
    steps = [later - earlier for earlier, later in pairwise(offsets)]
    if any(step <= 0 for step in steps):
        return f"minute_offsets {text[:40]!r}... are not ascending"
    kept = _kept_offsets(len(offsets), frames)
    if any(abs(step * kept - step_minutes) > step_minutes / 2 for step in steps):
        worst = max(steps, key=lambda step: abs(step * kept - step_minutes))
        return f"frames are {worst * kept:g} minutes apart in minute_offsets; the dataset has {step_minutes:g}"
    return None


def offset_count_problem(event: Event, frames: int, frames_per_event: int | None) -> str:
    """Return why ``minute_offsets`` are not the times of ``frames`` frames of a file; empty if they are."""
    count = event.offsets.count(":") + 1
    if not event.offsets or -(-count // _kept_offsets(count, frames_per_event)) == frames:
        return ""
    return f"{CATALOG} has {count} minute_offsets for event {event.id}, and the file has {frames} frames"


def _kept_offsets(count: int, frames: int | None) -> int:
    """Return which n-th time has a frame: SEVIR-LR has the catalog of SEVIR, but only every second frame."""
    return 1 if frames is None or frames < 2 else max(1, (count - 1) // (frames - 1))


@lru_cache(maxsize=1024)
def parse_offsets(text: str) -> tuple[float, ...]:
    """Return ``minute_offsets`` as numbers.

    Raises:
        ValueError: a part is not a finite number.
    """
    offsets = tuple(float(part) for part in text.split(":"))
    if not all(map(math.isfinite, offsets)):
        raise ValueError(f"{text!r} contains a value that is not a finite number")
    return offsets


def _utc(text: str) -> datetime:
    """Return a UTC time without a time zone, as SEVIR writes it; a time with a zone is converted to UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
