"""Names of files that give times, and the files of a source."""

import os
from datetime import UTC, datetime

import pytest

from simcast_hpc.config import ConfigError
from simcast_hpc.data.ingest.source_files import list_source
from simcast_hpc.data.ingest.time_patterns import Period, TimePattern, parse_limit


def utc(*numbers: int) -> datetime:
    return datetime(*numbers, tzinfo=UTC)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("pattern", "name", "period"),
    [
        (
            "/a/%Y/%m/%d/R_%Y%m%d%H%M.h5",
            "2024/02/29/R_202402292355.h5",
            (utc(2024, 2, 29, 23, 55), utc(2024, 2, 29, 23, 56)),
        ),
        ("/a/%Y/%m/%d/R_%Y%m%d%H%M.h5", "2024/02", (utc(2024, 2, 1), utc(2024, 3, 1))),
        ("/a/%Y/%m/%d/R_%Y%m%d%H%M.h5", "2024/02/30", None),
        ("/a/%Y/%m/%d/R_%Y%m%d%H%M.h5", "2024/02/29/R_202402282355.h5", None),
        ("/a/%Y%j.nc", "2024366.nc", (utc(2024, 12, 31), utc(2025, 1, 1))),
        ("/a/%Y%j.nc", "2023366.nc", None),
        ("/a/AQC%y%j%H%M*.gif", "AQC151351545F_00005.gif", (utc(2015, 5, 15, 15, 45), utc(2015, 5, 15, 15, 46))),
        ("/a/50%%_%Y.?c", "50%_1998.nc", (utc(1998, 1, 1), utc(1999, 1, 1))),
        ("/a/x/%Y12", "x/201912", None),
        ("/a/*/%Y12", "x/201912", (utc(2019, 1, 1), utc(2020, 1, 1))),
        ("/a/*/%Y12", "x", (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))),
        ("/a/%Y-%d.h5", "2019-17.h5", (utc(2019, 1, 1), utc(2020, 1, 1))),
        ("/a/%Y.h5", "0000.h5", None),
    ],
)  # fmt: skip
def test_a_name_gives_a_period(pattern, name, period):
    assert TimePattern(pattern).period(name) == (None if period is None else Period(*period))


@pytest.mark.parametrize("pattern", ["/a/%m%d.h5", "/a/%Y%B.h5", "/a/%Y%", "/a/b"])
def test_an_invalid_pattern_is_an_error(pattern):
    with pytest.raises(ConfigError, match="pattern"):
        TimePattern(pattern)


def test_files_outside_the_limits_are_not_listed(tmp_path):
    for name in (
        "2019/12/31/R2355.h5",
        "2020/01/01/R0000.h5",
        "2020/01/01/R0005.h5",
        "2020/01/02/R0000.h5",
        "2020/x.h5",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    limits = {"since": utc(2020, 1, 1), "until": parse_limit("2020-01-01", option="--to", is_end=True)}
    closed = tmp_path / "2019"
    closed.chmod(0)  # a folder outside the limits is not even opened
    for sources, pattern in (([f"{tmp_path}/%Y/%m/%d/R%H%M.h5"], "*"), ([str(tmp_path)], "%Y/%m/%d/R%H%M.h5")):
        found = list_source(sources, pattern=pattern, **limits)
        assert [file.path[-6:] for file in found] == ["000.h5", "005.h5"]
    closed.chmod(0o755)
    assert len(list_source([str(tmp_path)])) == 5
    assert len(list_source([str(tmp_path)], pattern="x*")) == 1
    with pytest.raises(ConfigError, match="--pattern"):
        list_source([str(tmp_path)], pattern="*.nc")


def test_links_stores_and_hidden_files(tmp_path):
    (tmp_path / "day").mkdir()
    (tmp_path / "day/a.h5").write_bytes(b"1")
    (tmp_path / "day/.b.h5").write_bytes(b"1")
    (tmp_path / "latest.h5").symlink_to("day/a.h5")
    os.link(tmp_path / "day/a.h5", tmp_path / "day/c.h5")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "store.zarr/field").mkdir(parents=True)
    (tmp_path / "store.zarr/.zgroup").write_text("{}")
    (tmp_path / "store.zarr/field/0.0").write_bytes(b"1")
    found = list_source([str(tmp_path), str(tmp_path / "day")])
    assert [(file.path.removeprefix(str(tmp_path)), file.is_store) for file in found] == [
        ("/day/a.h5", False),
        ("/store.zarr", True),
    ]
    with pytest.raises(ConfigError, match="does not exist"):
        list_source([str(tmp_path / "absent")])


@pytest.mark.parametrize(
    ("text", "is_end", "time"),
    [
        ("2020-02-28", True, datetime(2020, 2, 28, 23, 59, 59, 999999, UTC)),
        ("20200228", True, datetime(2020, 2, 28, 23, 59, 59, 999999, UTC)),
        ("2020-02-28", False, utc(2020, 2, 28)),
        ("2020-02-28T12:05", True, utc(2020, 2, 28, 12, 5)),
        ("2020-02-28T12:05+02:00", True, utc(2020, 2, 28, 10, 5)),
    ],
)
def test_limits(text, is_end, time):
    assert parse_limit(text, option="--to", is_end=is_end) == time
    with pytest.raises(ConfigError, match="--to"):
        parse_limit("yesterday", option="--to", is_end=is_end)
