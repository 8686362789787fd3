"""Read which split an event or a day belongs to, from tables and lists that users and other projects wrote."""

import csv
import io
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from simcast_hpc.config import DataError
from simcast_hpc.config.text_files import read_text_file

SPLITS = ("train", "val", "test")
_DAY = re.compile(r"([0-9]{4})([-/]?)([0-9]{2})\2([0-9]{2})")


def read_split_table(path: Path) -> dict[str, str]:
    """Return the split of each event in a CSV table with the columns ``id`` and ``split``; an empty split is no split.

    Raises:
        DataError: the table cannot be read, lacks a column, or a line (named) is truncated, has an unknown split, or
            assigns an event to a second split.
    """
    text = read_text_file(path, error=DataError, what="the split table")
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    splits: dict[str, str] = {}
    try:
        absent = [column for column in ("id", "split") if column not in (reader.fieldnames or ())]
        if absent:
            raise DataError(f"the split table {path} has no column {absent[0]!r}; it must have id and split")
        for row in reader:
            if row["id"] is None or row["split"] is None:
                raise DataError(f"the split table {path}, line {reader.line_num}: truncated; expected id and split")
            event, split = row["id"], row["split"].strip()
            if split and split not in SPLITS:
                raise DataError(
                    f"the split table {path}, line {reader.line_num}: split {split!r} of event {event} is unknown; "
                    f"choose {', '.join(SPLITS)}, or leave it empty"
                )
            if splits.setdefault(event, split) != split:
                raise DataError(
                    f"the split table {path}, line {reader.line_num}: event {event} is in split {split!r} and in "
                    f"{splits[event]!r}"
                )
    except csv.Error as error:
        raise DataError(f"the split table {path}, line {reader.line_num}: {error}") from error
    return splits


def read_day_list(path: Path, *, split: str) -> Iterator[tuple[int, str]]:
    """Yield line number and day, as ``YYYYMMDD``, of each line of a list that is neither empty nor a comment (``#``).

    A day is ``YYYYMMDD``, ``YYYY-MM-DD`` or ``YYYY/MM/DD``; text after a comma, semicolon, space or tab is ignored.

    Raises:
        DataError: the list cannot be read, or a line (named) does not begin with a day of the calendar, or has two.
    """
    text = read_text_file(path, error=DataError, what=f"the list of {split} days")
    for number, line in enumerate(text.splitlines(), start=1):
        words = [word for word in re.split(r"[,;\s]+", line.replace('"', " ").strip()) if word]
        if not words or words[0].startswith("#"):
            continue
        found = _DAY.fullmatch(words[0])
        if found is None:
            raise DataError(f"{path}, line {number}: {words[0]!r} is not a day; a day must be YYYYMMDD")
        try:
            day = date(int(found[1]), int(found[3]), int(found[4]))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {words[0]!r} is not a day of the calendar: {error}") from error
        if any(_DAY.fullmatch(word) for word in words[1:]):
            raise DataError(f"{path}, line {number}: {line.strip()!r} contains more than one day; write one per line")
        yield number, f"{day:%Y%m%d}"
