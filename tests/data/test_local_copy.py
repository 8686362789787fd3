"""Staging of shards to a local disk: only those of the split, verified, copied once, skipped if they do not fit."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataConfig, DataError
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.shards import local_copy as staging
from simcast_hpc.data.shards.shard_reader import ShardSource
from tests.archives import Row, make_archive, random_codes
from tests.data.shards import prepared


@pytest.fixture
def shards(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(staging, "_SPARE_BYTES", 0)
    rows = [Row(f"E{n}", n, time_utc="2018-01-01" if n < 4 else "2019-02-01") for n in range(6)]
    raw = make_archive(tmp_path / "raw", random_codes(6, 6), rows=rows)
    return prepared(raw, tmp_path / "shards", events_per_shard=2)


def open_staged(shards: Path, into: Path | str) -> ShardSource:
    data = DataConfig(dataset="synthetic", root=shards, window_stride=1, stage_to=str(into))
    source = open_windows(data, split="train", frames=5)
    assert isinstance(source, ShardSource)
    return source


def test_windows_are_read_from_the_copy(shards, tmp_path, monkeypatch):
    plain = open_windows(DataConfig(dataset="synthetic", root=shards, window_stride=1), split="train", frames=5)
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    source = open_staged(shards, "$NODE_DISK/scratch")
    assert source.root.parent == tmp_path / "node" / "scratch" and source.fingerprint == plain.fingerprint
    assert sorted(path.name for path in source.root.glob("shard-*")) == ["shard-00000.h5", "shard-00001.h5"]
    before = [path.stat().st_mtime_ns for path in sorted(source.root.glob("*.h5"))]
    assert open_staged(shards, tmp_path / "node" / "scratch").root == source.root
    assert [path.stat().st_mtime_ns for path in sorted(source.root.glob("*.h5"))] == before, "copied once"
    shutil.rmtree(shards)
    for index in range(len(source)):
        assert source.read(index).shape == (5, 16, 16)
    np.testing.assert_array_equal(source.read(0), source.read(0))


def test_rejects_a_damaged_shard(shards, tmp_path):
    path = shards / "shard-00001.h5"
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"the SHA-256 of .*shard-00001\.h5 differs from that in its manifest"):
        open_staged(shards, tmp_path / "node")
    assert not list((tmp_path / "node").rglob("shard-00001*"))


def test_reads_in_place_if_the_disk_is_too_small(shards, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(staging, "_SPARE_BYTES", 10**18)
    with caplog.at_level("WARNING", logger="simcast_hpc"):
        assert open_staged(shards, tmp_path / "node").root == shards


def test_rejects_staging_of_an_archive(tmp_path):
    raw = make_archive(tmp_path / "raw", random_codes(2, 6))
    with pytest.raises(ConfigError, match=r"data\.stage_to=.* needs prepared shards; data\.root=.* contains none"):
        open_windows(DataConfig(dataset="synthetic", root=raw, stage_to=str(tmp_path)), split="train", frames=5)
