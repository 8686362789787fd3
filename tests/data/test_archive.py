"""Archive reader: windows equal those of the public loader, strides, fingerprint, and errors for damaged data."""

import hashlib
import json
import os
import pickle
import shutil

import h5py
import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataConfig, DataError
from simcast_hpc.data.archive_windows import ArchiveSource
from simcast_hpc.data.dataset_spec import Split, read_spec
from simcast_hpc.data.open_windows import open_windows, step_minutes, target_spec
from simcast_hpc.data.window_source import WindowKey, WindowSource
from tests.archives import COLUMNS, FILE, Row, make_archive, open_archive, random_codes, write_catalog, write_file
from tests.shared_data import shared

SEVIR_EVENTS = {  # events of each split of the golden catalog after filtering, determined by hand
    "train": "R00765057003 R01074078792 R02813861435 R06457383650 S749283 S755728 S757888 S798113 S798752",
    "val": "R01812765974 R07260939945 S705109 S751673 S772776",
    "test": "R00307588731 R00737471171",
}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_windows_equal_those_of_the_public_loader(split: Split):
    root = shared("golden/sevir_archive")
    expected = json.loads((root / "expected_samples.json").read_text())[split]
    source = open_windows(DataConfig(dataset="sevir", root=root), split=split, frames=25)
    assert len(source) == len(expected)
    for index, sample in enumerate(expected):
        assert source.key(index) == (sample["event"], sample["start_frame"])
        window = source.read(index)
        assert window.dtype == np.uint8 and window.shape == (25, *source.grid) and window.flags.c_contiguous
        assert hashlib.sha256(window.tobytes()).hexdigest() == sample["sha256"]
    assert list(dict.fromkeys(source.key(index).event for index in range(len(source)))) == SEVIR_EVENTS[split].split()


def test_splits_are_disjoint_and_all_is_their_union():
    root = shared("golden/sevir_archive")
    events = {
        split: {event.id for event in ArchiveSource(read_spec("sevir"), root, split=split, frames=25).events}
        for split in ("train", "val", "test", "all")
    }
    assert events["all"] == events["train"] | events["val"] | events["test"]
    assert len(events["all"]) == sum(len(events[split]) for split in ("train", "val", "test")) == 16


def test_mrms_tiles_with_table_splits_and_frame_stride():
    root = shared("data/radar")
    data = DataConfig(dataset="mrms-4km", root=root, frame_stride=2, window_stride=3, max_percent_missing=None)
    assert step_minutes(data) == 4
    assert target_spec(data).name == "mrms-4km"
    events_of: dict[Split, int] = {"train": 24, "val": 3, "test": 10}
    for split, events in events_of.items():
        source = open_windows(data, split=split, frames=12)
        assert len(source) == 3 * events
        assert [source.key(index).start for index in range(6)] == [0, 3, 6, 0, 3, 6]
        assert source.grid == (96, 96)
        assert source.dates == ("2019-06-10",)
    all_frames = open_windows(data.model_copy(update={"frame_stride": 1}), split="test", frames=36)
    windows = open_windows(data, split="test", frames=12)
    event_frames = all_frames.read(1)
    for index, start in ((3, 0), (4, 3), (5, 6)):
        assert windows.key(index).event == all_frames.key(1).event
        np.testing.assert_array_equal(windows.read(index), event_frames[2 * start : 2 * start + 24 : 2])


@pytest.fixture
def codes() -> np.ndarray:
    return random_codes(4, 11)


@pytest.fixture
def root(tmp_path, codes):
    return make_archive(tmp_path / "archive", codes)


@pytest.mark.parametrize(
    ("frames", "window_stride", "frame_stride", "starts"),
    [
        (5, 2, 1, [0, 2, 4, 6]),
        (5, 4, 1, [0, 4]),
        (11, 1, 1, [0]),
        (5, 1, 2, [0, 1]),
        (6, 1, 2, [0]),
        (3, 1, 3, [0, 1]),
        (2, 1, 10, [0]),
        (1, 1, 20, [0]),
    ],
)
def test_window_stride_and_frame_stride(root, codes, frames, window_stride, frame_stride, starts):
    source = open_archive(root, frames=frames, window_stride=window_stride, frame_stride=frame_stride)
    assert [source.key(index) for index in range(len(source))] == [
        (f"E{event:03d}", start) for event in range(4) for start in starts
    ]
    for index in range(len(source)):
        event, start = divmod(index, len(starts))
        kept = codes[event, ::frame_stride]
        np.testing.assert_array_equal(source.read(index), kept[starts[start] : starts[start] + frames])
    assert isinstance(source, WindowSource) and source.frames == frames


def test_index_out_of_range_raises_index_error(root):
    source = open_archive(root)
    for index in (len(source), -len(source) - 1):
        with pytest.raises(IndexError):
            source.read(index)
        with pytest.raises(IndexError):
            source.key(index)
    assert source.key(-1) == source.key(len(source) - 1) == WindowKey("E003", 6)


def test_events_are_sorted_by_id_and_read_at_their_file_index(tmp_path, codes):
    rows = [Row("C", 0), Row("A", 2), Row("D", 3), Row("B", 1)]
    source = open_archive(make_archive(tmp_path, codes, rows=rows), frames=11)
    assert [source.key(index).event for index in range(4)] == ["A", "B", "C", "D"]
    for index, place in enumerate((2, 1, 0, 3)):
        np.testing.assert_array_equal(source.read(index), codes[place])


def test_skips_repeated_missing_other_type_and_other_split_rows(tmp_path, codes):
    rows = [
        Row("good", 0),
        Row("twice", 1),
        Row("twice", 2),
        Row("holes", 2, pct_missing="0.1"),
        Row("infrared", 1, img_type="ir107"),
        Row("late", 3, time_utc="2019-01-01 00:00:01"),
        Row("last", 3, time_utc="2019-01-01 00:00:00"),
    ]
    make_archive(tmp_path, codes, rows=rows)
    assert [event.id for event in open_archive(tmp_path).events] == ["good", "last"]
    assert [event.id for event in open_archive(tmp_path, split="val").events] == ["late"]
    assert [event.id for event in open_archive(tmp_path, max_percent_missing=None).events] == ["good", "holes", "last"]
    assert [event.id for event in open_archive(tmp_path, max_percent_missing=0.1).events] == ["good", "holes", "last"]


def test_id_counts_as_repeated_only_among_selected_rows(tmp_path, codes):
    rows = [Row("A", 0), Row("A", 1, img_type="ir107"), Row("A", 2, pct_missing="3.0")]
    assert [event.file_index for event in open_archive(make_archive(tmp_path, codes, rows=rows)).events] == [0]


def test_selects_events_of_given_files(tmp_path, codes):
    make_archive(tmp_path, codes, rows=[Row("A", 0), Row("B", 0, file_name="other.h5")])
    write_file(tmp_path / "data" / "other.h5", np.moveaxis(codes[:1], 1, -1))
    assert [event.id for event in open_archive(tmp_path, file_names=["other.h5"]).events] == ["B"]
    with pytest.raises(DataError, match=r"split 'train' .* is empty .* 2 are in other files than \['absent\.h5'\]"):
        open_archive(tmp_path, file_names=["absent.h5"])


def test_times_with_a_time_zone_are_converted_to_utc(tmp_path, codes):
    rows = [Row("A", 0, time_utc="2019-01-01T00:30:00+01:00"), Row("B", 1, time_utc="2018-12-31T23:30:00-01:00")]
    make_archive(tmp_path, codes, rows=rows)
    assert [event.id for event in open_archive(tmp_path).events] == ["A"]
    assert [event.id for event in open_archive(tmp_path, split="val").events] == ["B"]
    assert open_archive(tmp_path).dates == ("2018-12-31",)


def test_dates_are_distinct_and_sorted(tmp_path, codes):
    times = ("2018-05-02 23:59:00", "2018-05-01 00:00:00", "2018-05-02 00:00:00", "2018-04-01 12:00:00")
    make_archive(tmp_path, codes, rows=[Row(f"E{i}", i, time_utc=time) for i, time in enumerate(times)])
    assert open_archive(tmp_path).dates == ("2018-04-01", "2018-05-01", "2018-05-02")


def _truncate(root):
    path = root / "data" / FILE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace(stored, *, name="vil"):
    return lambda root: write_file(root / "data" / FILE, stored, name=name)


def _catalog(*rows, columns=COLUMNS):
    return lambda root: write_catalog(root, rows, columns=columns)


def _two_grids(root):
    write_file(root / "data" / "coarse.h5", np.zeros((1, 8, 8, 11), np.uint8))
    write_catalog(root, [Row("A"), Row("B", file_name="coarse.h5")])


BROKEN = {
    "truncated": (_truncate, r"storms\.h5: truncated or not an HDF5 file: .*download it again"),
    "not HDF5": (
        lambda root: (root / "data" / FILE).write_text("<html>404</html>"),
        r"storms\.h5: truncated or not an HDF5 file",
    ),
    "empty file": (lambda root: (root / "data" / FILE).write_bytes(b""), r"storms\.h5: truncated or not an HDF5"),
    "no data set": (
        _replace(np.zeros(3), name="ir107"),
        r"storms\.h5: it has no dataset 'vil'; it contains \['ir107'\]",
    ),
    "dtype": (
        _replace(np.zeros((4, 16, 16, 11), np.int16)),
        r"storms\.h5: 'vil' is int16 \(4, 16, 16, 11\); it must be uint8 \[events, H, W, frames\]",
    ),
    "axes": (_replace(np.zeros((4, 16, 16), np.uint8)), r"'vil' is uint8 \(4, 16, 16\); it must be uint8 \[events"),
    "no file": (
        lambda root: (root / "data" / FILE).unlink(),
        r"CATALOG\.csv lists event E000 in vil/2018/storms\.h5, but there is no file .*storms\.h5",
    ),
    "index beyond": (_catalog(Row("A", 4)), r"event A at index 4 of .*storms\.h5, which contains 4 events"),
    "index below": (_catalog(Row("A", -1)), r"event A at index -1 of .*storms\.h5, which contains 4 events"),
    "index no number": (_catalog(Row("A", "x")), r"CATALOG\.csv, line 2, event A: .*'x'"),
    "time no time": (_catalog(Row("A"), Row("B", time_utc="noon")), r"CATALOG\.csv, line 3, event B: .*'noon'"),
    "missing no number": (_catalog(Row("A", pct_missing="few")), r"CATALOG\.csv, line 2, event A: .*'few'"),
    "column": (
        _catalog(Row("A"), columns=[column for column in COLUMNS if column != "pct_missing"]),
        r"CATALOG\.csv has no column pct_missing; it has \['id'",
    ),
    "no rows": (_catalog(), r"split 'train' of synthetic is empty in .*CATALOG\.csv: of 0 events, there is no event"),
    "other split": (
        _catalog(Row("A", time_utc="2019-02-01")),
        r"of 1 events, 1 belong to other splits: val 1 \(2019-02-01\) \(`splits` of the description\)$",
    ),
    "no catalog": (
        lambda root: (root / "CATALOG.csv").unlink(),
        r"contains neither CATALOG\.csv nor prepared shards .*pass the folder",
    ),
    "cut catalog": (
        lambda root: (root / "CATALOG.csv").write_text(",".join(COLUMNS) + f"\nA,{FILE},0,vil"),
        r"CATALOG\.csv, line 2, event A: .*time_utc",
    ),
    "cut catalog, early": (
        lambda root: (root / "CATALOG.csv").write_text(",".join(COLUMNS) + "\nA,vil/20"),
        r"CATALOG\.csv, line 2, event A: truncated before column file_index",
    ),
    "catalog no text": (lambda root: (root / "CATALOG.csv").write_bytes(b"\x89HDF\xff"), r"CATALOG\.csv .*UTF-8"),
    "grids differ": (_two_grids, r"have different \[H, W, frames\]: .*coarse\.h5.*\(8, 8, 11\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_rejects_damaged_data_when_opened(root, case):
    damage, message = BROKEN[case]
    damage(root)
    with pytest.raises(DataError, match=message):
        open_archive(root)


def test_rejects_another_number_of_frames_per_event(root):
    with pytest.raises(DataError, match=r"storms\.h5: 'vil' has 11 frames per event; sevir has 49"):
        ArchiveSource(read_spec("sevir"), root, split="train", frames=5)


def test_rejects_windows_longer_than_events(root):
    with pytest.raises(DataError, match=r"windows of 12 frames do not fit in events of 11 frames.*sequence\.frames_in"):
        open_archive(root, frames=12)
    with pytest.raises(DataError, match=r"events of 6 frames \(11 in the file, data\.frame_stride=2\)"):
        open_archive(root, frames=7, frame_stride=2)


def test_names_a_file_that_is_damaged_after_opening(tmp_path, codes):
    root = make_archive(tmp_path, codes)
    source = open_archive(root)
    _truncate(root)
    with pytest.raises(DataError, match=r"storms\.h5: event E000 cannot be read"):
        source.read(0)


def test_requires_data_root():
    with pytest.raises(ConfigError, match=r"data\.root is not set; .*--set data\.root=DIR"):
        open_windows(DataConfig(), split="train", frames=25)


def test_fingerprint_depends_on_content_not_on_path(tmp_path, root):
    moved = tmp_path / "deep" / "elsewhere"
    shutil.copytree(root, moved)
    assert open_archive(moved).fingerprint == open_archive(root).fingerprint
    path = moved / "data" / FILE
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert open_archive(moved).fingerprint != open_archive(root).fingerprint


def test_fingerprint_does_not_depend_on_compression(tmp_path, codes, root):
    other = tmp_path / "compressed"
    shutil.copytree(root, other)
    with h5py.File(other / "data" / FILE, "w") as file:
        file.create_dataset("vil", data=np.moveaxis(codes, 1, -1), chunks=(1, 16, 16, 11), compression="gzip")
    assert open_archive(other).fingerprint == open_archive(root).fingerprint


def test_fingerprint_covers_first_and_last_event(tmp_path):
    codes = random_codes(40, 6, size=8)
    before = open_archive(make_archive(tmp_path / "a", codes)).fingerprint
    for number, event in enumerate((0, 39)):
        changed = codes.copy()
        changed[event, -1, -1, -1] ^= 1
        assert open_archive(make_archive(tmp_path / f"b{number}", changed)).fingerprint != before


@pytest.mark.parametrize(
    "over",
    [{"frames": 6}, {"window_stride": 1}, {"frame_stride": 2}, {"split": "all"}],
    ids=str,
)
def test_fingerprint_depends_on_the_selected_windows(tmp_path, codes, over):
    rows = [Row("A", 0), Row("B", 1, time_utc="2019-03-01")]
    root = make_archive(tmp_path, codes, rows=rows)
    assert open_archive(root, **over).fingerprint != open_archive(root).fingerprint


def test_fingerprint_is_16_hex_digits(root):
    assert len(open_archive(root).fingerprint) == 16
    int(open_archive(root).fingerprint, 16)


def test_source_can_be_pickled_after_reading(root):
    source = open_archive(root)
    window, fingerprint = source.read(2), source.fingerprint
    unpickled = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(unpickled.read(2), window)
    assert unpickled.fingerprint == fingerprint and unpickled.key(2) == source.key(2)


def test_forked_child_opens_its_own_files(root):
    source = open_archive(root)
    window = source.read(0)
    path = root / "data" / FILE
    opened = source._open.get(path)
    child = os.fork()
    if child == 0:  # the child reports by its exit status
        same = np.array_equal(source.read(0), window)
        os._exit(0 if same and source._open.get(path) is not opened else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(source.read(0), window)
    assert source._open.get(path) is opened


def test_filter_drops_events_with_unknown_missing_percentage(tmp_path):
    codes = random_codes(2, frames=4)
    rows = [Row("A", 0), Row("B", 1, pct_missing="")]
    make_archive(tmp_path, codes, rows=rows)
    assert [event.id for event in open_archive(tmp_path, frames=4, max_percent_missing=0.0).events] == ["A"]
    assert [event.id for event in open_archive(tmp_path, frames=4, max_percent_missing=None).events] == ["A", "B"]
