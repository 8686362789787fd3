"""Lists of days, split tables, catalogs and configurations in other encodings, and with invalid lines."""

import codecs
from datetime import datetime
from pathlib import Path

import pytest

from simcast_hpc.config import ConfigError, DataError, TrainConfig, read_config
from simcast_hpc.data.archive_catalog import read_catalog
from simcast_hpc.data.dataset_spec import DayListSplits, TableSplits, read_spec

ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with BOM": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16 of Windows": lambda text: codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le"),
    "utf-16 big-endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
    "carriage returns": lambda text: text.replace("\n", "\r").encode(),
}
DAY_LISTS = DayListSplits(kind="day_lists", train=Path("train.txt"), val=Path("val.txt"), test=Path("test.txt"))
TABLE = TableSplits(kind="table", file=Path("splits.csv"))
CATALOG_TEXT = "id,file_name,file_index,img_type,time_utc,pct_missing\nÉ1,a.h5,0,vil,2019-01-01 00:00:00,0\n"


def days_of(folder: Path, train: bytes) -> dict[str, str]:
    for name, content in {"train": train, "val": b"", "test": b"20150107\n"}.items():
        (folder / f"{name}.txt").write_bytes(content)
    return DAY_LISTS.days(folder)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_reads_text_of_every_encoding(encoding, tmp_path):
    days = days_of(tmp_path, ENCODINGS[encoding]("20090401, 1.5\n20090402, 2.25\n"))
    assert days == {"20090401": "train", "20090402": "train", "20150107": "test"}
    (tmp_path / "splits.csv").write_bytes(ENCODINGS[encoding]("id,split\nÉ1,train\nB,test\n"))
    choose = TABLE.chooser(tmp_path)
    assert [choose(event, datetime(2020, 1, 1)) for event in ("É1", "B")] == ["train", "test"]
    (tmp_path / "CATALOG.csv").write_bytes(ENCODINGS[encoding](CATALOG_TEXT))
    assert [event.id for event in read_catalog(read_spec("sevir"), tmp_path)] == ["É1"]
    (tmp_path / "run.yaml").write_bytes(ENCODINGS[encoding]("name: a\nrun_dir: runs/é\nstage: direct\n"))
    assert read_config(TrainConfig, tmp_path / "run.yaml").run_dir == Path("runs/é")


@pytest.mark.parametrize(
    "line", ["20120229", "2012-02-29", "2012/02/29", "20120229,1.234567", "20120229;3", "20120229\t3", '"20120229",3']
)
def test_reads_days_of_every_format(line, tmp_path):
    assert days_of(tmp_path, f"# rainy days\n\n  {line}  \n".encode()) == {"20120229": "train", "20150107": "test"}


INVALID_DAYS = {
    b"20090401\n20090229, 1\n": r"train\.txt, line 2: '20090229' is not a day of the calendar: day is out of range",
    b"20091301\n": r"train\.txt, line 1: '20091301' is not a day of the calendar: month must be in 1..12",
    b"00000101\n": r"line 1: '00000101' is not a day of the calendar",
    b"date,rain\n20090401,1\n": r"line 1: 'date' is not a day; a day must be YYYYMMDD",
    b"20090401\n01/04/2009\n": r"line 2: '01/04/2009' is not a day",
    b"2009-0401\n": r"line 1: '2009-0401' is not a day",
    b"2009041\n": r"line 1: '2009041' is not a day",
    "２００９０４０１\n".encode(): r"line 1: '２００９０４０１' is not a day",
    b"20090401 20090402\n": r"line 1: '20090401 20090402' contains more than one day",
    b"20090401\n20090402, \xe9\n": r"list of train days .*train\.txt is not UTF-8 text: byte 0xe9 in line 2",
    "20090401\n20090402".encode("utf-16-le"): r"train\.txt, line 1: contains a NUL character",
    codecs.BOM_UTF16_LE + b"2\x000": r"train\.txt is not UTF-16 text",
    b"20150107\n": r"test\.txt, line 1: day 20150107 is also on the list of train",
}


@pytest.mark.parametrize("content", INVALID_DAYS)
def test_names_file_and_line_of_an_invalid_day(content, tmp_path):
    with pytest.raises(DataError, match=INVALID_DAYS[content]):
        days_of(tmp_path, content)


INVALID_TABLES = {
    b"id,split\nA,train\nB,Train\n": r"splits\.csv, line 3: split 'Train' of event B is unknown; choose train, val",
    b"id,split\nA\n": r"splits\.csv, line 2: truncated; expected id and split",
    b"id,split\nA,train\nA,test\n": r"splits\.csv, line 3: event A is in split 'test' and in 'train'",
    b"id;split\nA;train\n": r"splits\.csv has no column 'id'",
    b"": r"splits\.csv has no column 'id'",
    b"id,split\nA,\xff\n": r"the split table .*splits\.csv is not UTF-8 text: byte 0xff in line 2",
}


@pytest.mark.parametrize("content", INVALID_TABLES)
def test_names_file_and_line_of_an_invalid_split_table(content, tmp_path):
    (tmp_path / "splits.csv").write_bytes(content)
    with pytest.raises(DataError, match=INVALID_TABLES[content]):
        TABLE.chooser(tmp_path)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("2019-02-29 00:00:00", r"CATALOG\.csv, line 2, event É1: day is out of range"),
        ("x", r"line 2, event É1: .*'x'"),
    ],
)
def test_names_the_line_of_an_impossible_time_in_a_catalog(time, message, tmp_path):
    (tmp_path / "CATALOG.csv").write_text(CATALOG_TEXT.replace("2019-01-01 00:00:00", time), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_catalog(read_spec("sevir"), tmp_path)


def test_names_the_line_of_an_impossible_date_in_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text("name: a\nstage: direct\nrun_dir: 2019-02-29\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"run\.yaml is not valid YAML: '2019-02-29' is not a valid timestamp: .* line 3,"
    ):
        read_config(TrainConfig, tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"--set name=2019-02-29: the value is not valid YAML"):
        read_config(TrainConfig, "teacher/sevir", ["name=2019-02-29"])
