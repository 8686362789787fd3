"""Rain statistics of prepared frames: values, file, and what readers reject."""

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.encoding import rain_rate_from_reflectivity
from simcast_hpc.data.sampling_statistics import COLUMNS, STATISTICS, EventStatistics, rates, read_statistics
from simcast_hpc.data.shards.shard_format import read_index, read_manifest
from simcast_hpc.data.window_table import write_window_table
from tests.archives import Row, make_archive, random_codes
from tests.data.shards import prepared


@pytest.mark.parametrize("dataset", ["knmi", "fmi", "sevir"])
def test_statistics_equal_those_of_the_decoded_frames(dataset):
    spec = read_spec(dataset)
    frames = random_codes(1, 4, missing=0.2)[0]
    frames[2], frames[3] = 255, 0
    statistics = EventStatistics.of_frames(spec, frames)
    values = spec.encoding.decode(frames).astype(np.float64)
    values = rain_rate_from_reflectivity(values) if dataset == "fmi" else values
    wet = np.where(frames == 255, np.nan, frames >= spec.threshold_codes()[0])
    valid = [0, 1, 3]
    np.testing.assert_allclose(statistics.mean_rate[0, valid], np.nanmean(values[valid], axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(statistics.wet_share[0, valid], np.nanmean(wet[valid], axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(statistics.missing_share[0], (frames == 255).mean(axis=(1, 2)), rtol=1e-6)
    assert np.isnan(statistics.mean_rate[0, 2]) and np.isnan(statistics.wet_share[0, 2])
    assert statistics.mean_rate[0, 3] == 0 and rates(spec).min() >= 0


def test_preparation_writes_one_row_per_row_of_the_index(tmp_path):
    codes = random_codes(5, 6, missing=0.1)
    rows = [Row(f"E{n}", n) for n in range(5)] + [Row("absent", 0, file_name="vil/2018/other.h5")]
    root = prepared(make_archive(tmp_path / "raw", codes, rows=rows), tmp_path / "out", skip=("absent-file",))
    manifest = read_manifest(root)
    index = read_index(root, manifest)
    read = read_statistics(root, index_sha256=manifest.index.sha256, events=len(index), frames=6)
    assert read is not None and len(read) == len(index) == 6
    expected = EventStatistics.concatenate(
        [EventStatistics.of_frames(read_spec("synthetic"), event) for event in codes]
    )
    for name in COLUMNS:
        stored = getattr(read, name)
        np.testing.assert_array_equal(stored[index.shard >= 0], getattr(expected, name))
        assert np.isnan(stored[index.shard < 0]).all()


def test_rejects_what_does_not_belong_to_the_index(tmp_path):
    root = prepared(make_archive(tmp_path / "raw", random_codes(2, 6)), tmp_path / "out")
    manifest = read_manifest(root)

    def read(**changed):
        return read_statistics(
            root, **({"index_sha256": manifest.index.sha256, "events": 2, "frames": 6} | changed)
        )  # fmt: skip

    for changed, message in (
        ({"index_sha256": "0" * 64}, "belongs to another index"),
        ({"events": 3}, r"mean_rate is float32 \[2, 6\]; it must be float32 \[3, 6\]"),
    ):
        with pytest.raises(DataError, match=message):
            read(**changed)
    with h5py.File(root / STATISTICS, "r+") as file:
        file["wet_share"][1, 1] = 0.5
    with pytest.raises(DataError, match="its values do not match their hash"):
        read()
    (root / STATISTICS).write_bytes((root / STATISTICS).read_bytes()[:200])
    with pytest.raises(DataError, match="is damaged"):
        read()
    (root / STATISTICS).unlink()
    assert read() is None


def test_table_of_windows_contains_the_statistics_of_their_frames(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    codes = random_codes(2, 6)
    root = prepared(make_archive(tmp_path / "raw", codes), tmp_path / "out")
    path = tmp_path / "windows.parquet"
    assert write_window_table(root, path, frames=4, step_minutes=5.0) == 6
    table = parquet.read_table(path).to_pydict()
    assert table["event"] == ["E000"] * 3 + ["E001"] * 3 and table["start"] == [0, 1, 2] * 2
    assert [second - first for first, second in zip(table["t"], table["t"][1:], strict=False)] == [1, 1, -2, 1, 1]
    expected = EventStatistics.of_frames(read_spec("synthetic"), codes[1, 1:5]).mean_rate.mean()
    assert table["mean"][4] == pytest.approx(float(expected), rel=1e-6) and set(table["split"]) == {"train"}
    with pytest.raises(DataError, match=r"windows of 7 frames do not fit in events of 6 frames"):
        write_window_table(root, path, frames=7, step_minutes=5.0)
