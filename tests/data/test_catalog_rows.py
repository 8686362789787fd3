"""Rows of a catalog that are skipped or contradict their file: reasons of an empty split, warnings and errors."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.inspection import inspect
from simcast_hpc.data.shards.shard_reader import ShardSource
from tests.archives import COLUMNS, Row, make_archive, open_archive, random_codes, write_catalog
from tests.data.shards import prepared

CODES = random_codes(3, 6)


@dataclass(frozen=True)
class TimedRow(Row):
    """A row with the times of its frames."""

    minute_offsets: str = ":".join(str(5 * frame) for frame in range(6))


def ids_of(root: Path, **options) -> list[str]:
    return [event.id for event in open_archive(root, **options).events]


def test_empty_split_names_the_types_of_the_catalog(tmp_path: Path):
    make_archive(
        tmp_path, CODES, rows=[Row("A", 0, img_type="VIL"), Row("B", 1, img_type="VIL"), Row("C", 2, "x", "DBZ")]
    )
    with pytest.raises(
        DataError, match=r"of 3 events, 3 are of other types than 'vil': 'VIL' 2, 'DBZ' 1 \(`image_type` of"
    ):
        open_archive(tmp_path)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([Row("A", 0), Row("A", 1)], "of 2 events, 2 have an id that occurs more than once, the first is A$"),
        (
            [Row("A", 0, pct_missing="")],
            r"of 1 events, 1 have an unknown share of missing pixels \(data\.max_percent_missing=0",
        ),
        (
            [Row("A", 0, pct_missing="0.5"), Row("B", 1, pct_missing="")],
            r"of 2 events, 1 have more missing pixels than the limit, at least 0\.5 % .*; 1 have an unknown share",
        ),
    ],
)
def test_empty_split_states_why_its_rows_are_skipped(tmp_path: Path, rows, reason: str):
    make_archive(tmp_path, CODES, rows=rows)
    with pytest.raises(DataError, match=reason):
        open_archive(tmp_path)


def test_skipped_rows_are_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [Row("A", 0), Row("B", 1), Row("A", 0), Row("C", 2, pct_missing="")]
    make_archive(tmp_path, CODES, rows=rows)
    with caplog.at_level(logging.WARNING):
        assert ids_of(tmp_path) == ["B"]
    repeated, unknown = caplog.messages
    assert "1 ids occur more than once" in repeated and repeated.endswith("the first is A")
    assert "1 events without pct_missing are skipped" in unknown and unknown.endswith("the first is C")
    assert ids_of(tmp_path, max_percent_missing=100) == ids_of(tmp_path, max_percent_missing=None) == ["B", "C"]


def test_shards_keep_an_unknown_percentage_under_a_limit_of_100(tmp_path: Path):
    archive = make_archive(tmp_path / "raw", CODES, rows=[Row("A", 0), Row("B", 1, pct_missing="")])
    spec = read_spec("synthetic")
    prepared(archive, tmp_path / "out")
    options = {"split": "train", "frames": 6}
    for limit, count in ((0.0, 1), (99.0, 1), (100, 2), (None, 2)):
        assert len(ShardSource(spec, tmp_path / "out", **options, max_percent_missing=limit)) == count


@pytest.mark.parametrize("percent", ["-5", "100.1", "inf", "nan", "-inf", " "])
def test_invalid_percentages_are_errors_of_their_line(tmp_path: Path, percent: str):
    make_archive(tmp_path, CODES, rows=[Row("A", 0), Row("B", 1, pct_missing=percent)])
    for limit in (0.0, 100, None):
        with pytest.raises(DataError, match=r"CATALOG\.csv, line 3, event B: .*"):
            open_archive(tmp_path, max_percent_missing=limit)


def test_minute_offsets_must_be_one_per_frame(tmp_path: Path):
    make_archive(tmp_path, CODES)
    columns = (*COLUMNS, "minute_offsets")
    write_catalog(tmp_path, [TimedRow("A", 0), TimedRow("B", 1)], columns=columns)
    assert ids_of(tmp_path) == ["A", "B"]
    for offsets, count in (("0:5:10:15:20", 5), ("0:5:10:15:20:25:30", 7), ("0", 1)):
        write_catalog(tmp_path, [TimedRow("A", 0), TimedRow("B", 1, minute_offsets=offsets)], columns=columns)
        message = rf"{count} minute_offsets for event B, and the file has 6 frames"
        with pytest.raises(DataError, match=message):
            open_archive(tmp_path)
        with pytest.raises(DataError, match=message):
            prepared(tmp_path, tmp_path / "out")
        assert [problem.kind for problem in inspect(read_spec("synthetic"), tmp_path).problems] == ["catalog"]


def test_two_ids_of_one_event_of_a_file_are_an_error(tmp_path: Path):
    make_archive(tmp_path, CODES, rows=[Row("A", 0), Row("B", 1), Row("C", 1)])
    with pytest.raises(DataError, match=r"events B and C at the same index 1 of storms\.h5"):
        open_archive(tmp_path)
    assert "catalog" in {problem.kind for problem in inspect(read_spec("synthetic"), tmp_path).problems}


def test_inspection_reports_an_empty_percentage(tmp_path: Path):
    codes = CODES.copy()
    codes[1, :, :8] = 255
    make_archive(tmp_path, codes, rows=[Row("A", 0), Row("B", 1, pct_missing="")])
    problems = inspect(read_spec("synthetic"), tmp_path).problems
    assert [(problem.kind, problem.event) for problem in problems] == [("missing-share", "B")]
    assert problems[0].message == "pct_missing is empty in the catalog; 50.00 % of the pixels are missing"
