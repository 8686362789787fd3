"""Prepared shards: windows and fingerprint equal those of the archive, and damage is detected."""

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataConfig, DataError
from simcast_hpc.data.archive_windows import ArchiveSource
from simcast_hpc.data.dataset_spec import Split, read_spec
from simcast_hpc.data.hdf5_files import MAX_OPEN_FILES, OpenFiles
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.shards.shard_reader import ShardSource
from simcast_hpc.data.window_source import WindowSource
from tests.archives import Row, make_archive, open_archive, random_codes
from tests.data.shards import prepared
from tests.shared_data import shared


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    rows = [Row(name, place) for place, name in enumerate(("C", "A", "F", "B", "G"))]
    rows += [Row("late", 5, time_utc="2019-03-01"), Row("holes", 6, pct_missing="1.5"), Row("F", 0, pct_missing="9")]
    return make_archive(tmp_path_factory.mktemp("archive"), random_codes(7, 11, missing=0.01), rows=rows)


@pytest.fixture(scope="module")
def shards(archive, tmp_path_factory) -> Path:
    return prepared(archive, tmp_path_factory.mktemp("prepared") / "shards")


def open_shards(root: Path, *, dataset: str = "synthetic", **options) -> ShardSource:
    return ShardSource(
        read_spec(dataset), root, **({"split": "train", "frames": 5, "window_stride": 2} | options)
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"frames": 3, "window_stride": 1, "frame_stride": 3},
        {"frames": 2, "window_stride": 1, "frame_stride": 2},
        {"split": "val"},
        {"split": "all", "max_percent_missing": None},
        {"max_percent_missing": 2.0},
        {"file_names": ["vil/2018/storms.h5"]},
    ],
    ids=str,
)
def test_shards_give_the_windows_of_the_archive(archive, shards, options):
    one, other = open_archive(archive, **options), open_shards(shards, **options)
    assert isinstance(other, WindowSource)
    assert len(one) == len(other) and one.grid == other.grid and one.dates == other.dates
    for index in range(len(one)):
        assert one.key(index) == other.key(index)
        window = other.read(index)
        assert window.dtype == np.uint8 and window.flags.c_contiguous
        np.testing.assert_array_equal(window, one.read(index))
    assert one.fingerprint == other.fingerprint


def test_repeated_id_is_used_if_only_one_row_passes_the_filter(shards):
    def events(**options) -> set[str]:
        source = open_shards(shards, **options)
        return {source.key(index).event for index in range(len(source))}

    assert "F" in events() and "F" not in events(max_percent_missing=None)


def test_data_root_may_be_shards_or_an_archive(archive, shards):
    data = DataConfig(dataset="synthetic", root=archive, window_stride=2)
    one = open_windows(data, split="train", frames=5)
    other = open_windows(data.model_copy(update={"root": shards}), split="train", frames=5)
    assert isinstance(other, ShardSource) and one.fingerprint == other.fingerprint


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_shards_of_the_golden_archive_equal_the_public_loader(split: Split, golden_shards):
    expected = json.loads((shared("golden/sevir_archive") / "expected_samples.json").read_text())[split]
    source = open_shards(golden_shards, dataset="sevir", split=split, frames=25, window_stride=12)
    assert len(source) == len(expected)
    for index, sample in enumerate(expected):
        assert source.key(index) == (sample["event"], sample["start_frame"])
        assert hashlib.sha256(source.read(index).tobytes()).hexdigest() == sample["sha256"]
    archive = ArchiveSource(read_spec("sevir"), shared("golden/sevir_archive"), split=split, frames=25)
    assert source.fingerprint == archive.fingerprint


@pytest.fixture(scope="module")
def golden_shards(tmp_path_factory) -> Path:
    into = tmp_path_factory.mktemp("golden") / "shards"
    return prepared(shared("golden/sevir_archive"), into, dataset="sevir", codec="zstd")


@pytest.fixture
def damaged(shards, tmp_path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "damaged"))


def test_rejects_a_missing_shard_only_if_the_split_needs_it(damaged):
    (damaged / "shard-00000.h5").unlink()
    with pytest.raises(DataError, match=r"shard .*shard-00000\.h5 with 3 events is missing"):
        open_shards(damaged)
    assert len(open_shards(damaged, split="val")) == 4


def test_rejects_a_truncated_shard(damaged):
    path = damaged / "shard-00001.h5"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"shard-00001\.h5 has \d+ bytes, not \d+ as in manifest\.json"):
        open_shards(damaged)


def test_rejects_missing_chunks(damaged):
    """HDF5 returns its fill value for a missing chunk, which a sparse copy of a file can have."""
    path = damaged / "shard-00000.h5"
    size = path.stat().st_size
    with h5py.File(path, "w") as file:
        file.create_dataset("codes", (3, 11, 16, 16), np.uint8, chunks=(1, 11, 16, 16), **hdf5plugin.LZ4())
    with path.open("r+b") as file:
        file.truncate(size)
    source = open_shards(damaged)
    with pytest.raises(DataError, match=r"shard-00000\.h5: event A cannot be read: 0 of 3 chunks exist"):
        source.read(0)


def test_rejects_a_sparse_file(damaged):
    path = damaged / "shard-00000.h5"
    size = path.stat().st_size
    path.unlink()
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=r"shard-00000\.h5: event A cannot be read"):
        open_shards(damaged).read(0)


def test_rejects_unfinished_shards_and_a_changed_index(damaged):
    index = damaged / "index.h5"
    index.write_bytes(index.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"index\.h5 does not match its manifest"):
        open_shards(damaged)
    (damaged / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"the preparation is unfinished; run it again"):
        open_windows(DataConfig(dataset="synthetic", root=damaged), split="train", frames=5)


def test_rejects_another_description(shards):
    with pytest.raises(DataError, match=r"prepared as synthetic, with a description that differs from mch"):
        open_shards(shards, dataset="mch")


def test_rejects_windows_longer_than_events_and_empty_splits(shards):
    with pytest.raises(DataError, match=r"windows of 12 frames do not fit in events of 11 frames"):
        open_shards(shards, frames=12)
    with pytest.raises(DataError, match=r"split 'test' of .* is empty .*: train 7 \(.*\), val 1 \(2019-03-01\)"):
        open_shards(shards, split="test")


def test_raw_data_of_another_layout_must_be_prepared(tmp_path):
    with pytest.raises(ConfigError, match=r"must be prepared before use: run `simcast data prepare"):
        open_windows(DataConfig(dataset="hko7", root=tmp_path), split="train", frames=20)


def test_open_files_are_limited_and_not_pickled(tmp_path):
    import pickle

    files = OpenFiles()
    for number in range(MAX_OPEN_FILES + 5):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["x"] = [number]
        files.get(tmp_path / f"{number}.h5")
    assert len(files) == MAX_OPEN_FILES
    assert tmp_path / "0.h5" not in files and tmp_path / f"{MAX_OPEN_FILES + 4}.h5" in files
    assert len(pickle.loads(pickle.dumps(files))) == 0
