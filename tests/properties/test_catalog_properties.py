"""Catalogs, split tables and day lists: any bytes are read or are an error of ours that names the file."""

from datetime import datetime

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simcast_hpc.config import DataError
from simcast_hpc.data.archive_catalog import choose_events, read_catalog, repeated_ids
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.split_lists import SPLITS, read_day_list, read_split_table

FIXED = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADER = "id,file_name,file_index,img_type,time_utc,pct_missing,minute_offsets\n"
CELLS = st.sampled_from(
    ["S1", "vil", "vil", "a.h5", "../a.h5", "/a", "0", "-1", "9" * 5000, "nan", "inf", "1e999", "", '"', '""', "x" * 50,
     "2019-06-01 00:00:00", "2019-02-29 00:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2019",
     "-60:0:60", "0:5:10", "::", "\0", "\ufeff", "\u2028", "\r", "\t", "é"]
)  # fmt: skip
ROWS = st.lists(st.lists(CELLS | st.text(max_size=5), min_size=1, max_size=8).map(",".join), max_size=4).map("\n".join)
CONTENT = st.binary(max_size=80) | st.builds(
    lambda head, rows, encoding: (head + rows).encode(encoding, errors="surrogatepass"),
    st.sampled_from(["", HEADER, "id,split\n", "id,id,split\n"]),
    ROWS,
    st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]),
)
VALID_ROW = f"{HEADER}S1,a.h5,0,vil,TIME,0,\n"


@settings(FIXED, max_examples=250)
@given(content=CONTENT)
@example(content=VALID_ROW.replace("TIME", "0001-01-01T00:00:00+14:00").encode())
@example(content=VALID_ROW.replace("TIME", "9999-12-31T23:59:59-12:00").encode())
@example(content=VALID_ROW.replace("TIME", "2019-02-29 00:00:00").encode())
def test_any_catalog_is_read_or_an_error(tmp_path, content):
    (tmp_path / "CATALOG.csv").write_bytes(content)
    spec = read_spec("sevir")
    try:
        events = read_catalog(spec, tmp_path)
        repeated_ids(events)
        assert all(isinstance(event.seconds, int) for event in events)
        choose_events(spec, tmp_path, "all", None, None)
    except DataError as error:
        assert "CATALOG.csv" in str(error)


@settings(FIXED, max_examples=150)
@given(content=CONTENT)
def test_any_split_table_is_read_or_an_error(tmp_path, content):
    (tmp_path / "splits.csv").write_bytes(content)
    try:
        assert set(read_split_table(tmp_path / "splits.csv").values()) <= {*SPLITS, ""}
    except DataError as error:
        assert "splits.csv" in str(error)


DAYS = st.sampled_from(
    ["20190228", "20190229", "2019-02-29", "2020/02/29", "00000101", "99999999", "20190101,20190102", "#"]
)


@settings(FIXED, max_examples=150)
@given(content=st.binary(max_size=40) | st.lists(DAYS | st.text(max_size=9), max_size=4).map("\n".join).map(str.encode))
def test_any_list_of_days_is_read_or_an_error(tmp_path, content):
    (tmp_path / "days.txt").write_bytes(content)
    try:
        for _, day in read_day_list(tmp_path / "days.txt", split="train"):
            assert f"{datetime.strptime(day, '%Y%m%d'):%Y%m%d}".zfill(8) == day
    except DataError as error:
        assert "days.txt" in str(error)
