"""Staging of shards to a local disk: only those of the split, verified, copied once, skipped if they do not fit."""

import hashlib
import json
import os
import re
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
    assert (
        source.root.parent == tmp_path / "node" / "scratch" / f"simcast-{os.geteuid()}"
        and source.fingerprint == plain.fingerprint
    )
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


@pytest.fixture
def node(tmp_path) -> Path:
    """A disk that all users share."""
    folder = tmp_path / "node"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def stored(source: ShardSource) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in source.root.glob("*.h5")}


def test_copy_is_private(shards, node):
    source = open_staged(shards, node)
    assert [folder.stat().st_mode & 0o777 for folder in (source.root.parent, source.root)] == [0o700, 0o700]


def test_a_planted_shard_of_equal_size_is_replaced(shards, node):
    source = open_staged(shards, node)
    right = stored(source)
    shard = source.root / "shard-00000.h5"
    times = shard.stat()
    content = bytearray(right["shard-00000.h5"])
    content[-200] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stored(source) != right
    assert stored(open_staged(shards, node)) == right


def test_a_shard_is_hashed_once(shards, node, monkeypatch):
    root = open_staged(shards, node).root
    hashed: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: (hashed.append(file.name), digest(file, name))[1])
    open_staged(shards, node)
    assert [name for name in hashed if name.startswith(str(root))] == []
    (root / "shard-00001.h5").touch()
    open_staged(shards, node)
    assert [name for name in hashed if name.startswith(str(root))] == [str(root / "shard-00001.h5")]
    (root / ".verified.json").write_text("[]")
    open_staged(shards, node)
    assert len([name for name in hashed if name.startswith(str(root))]) == 4, "index and two shards again"


@pytest.mark.parametrize("name", ["shard-00000.h5", "manifest.json", ".verified.json"])
def test_links_in_the_copy_are_not_followed(shards, node, tmp_path, name):
    root = open_staged(shards, node).root
    victim = tmp_path / "victim"
    victim.write_bytes((root / name).read_bytes())
    before = victim.read_bytes()
    (root / name).unlink()
    (root / name).symlink_to(victim)
    source = open_staged(shards, node)
    assert not (source.root / name).is_symlink() and victim.read_bytes() == before
    source.read(0)


def test_a_planted_lock_link_is_an_error(shards, node, tmp_path):
    root = open_staged(shards, node).root
    victim = tmp_path / "victim"
    victim.write_text("keep")
    (root / ".lock").unlink()
    (root / ".lock").symlink_to(victim)
    with pytest.raises(DataError, match=r"data\.stage_to=.*node: .*symbolic links: .*\.lock"):
        open_staged(shards, node)
    assert victim.read_text() == "keep"


@pytest.mark.parametrize("planted", ["link", "writable"])
def test_a_planted_folder_is_rejected(shards, node, tmp_path, planted):
    folder = node / f"simcast-{os.geteuid()}"
    if planted == "link":
        (tmp_path / "theirs").mkdir()
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(DataError, match=rf"data\.stage_to=.*{folder.name} (is a symbolic link|has mode 0777)"):
        open_staged(shards, node)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner requires root")
def test_a_second_user_is_not_refused(shards, node):
    """The first user made the folder that both name, and the folder of the other in it."""
    (node / "stage" / "simcast-0").mkdir(parents=True)
    for path in (node / "stage", node / "stage" / "simcast-0"):
        os.chown(path, 4242, 4242)
    assert open_staged(shards, node / "stage").root.parent == node / "simcast-0"
    os.chown(node / "simcast-0", 4242, 4242)
    with pytest.raises(DataError, match=r"data\.stage_to=.*simcast-0 belongs to user 4242"):
        open_staged(shards, node / "stage")


@pytest.mark.parametrize(
    "name", ["../x.h5", "/x.h5", "a/b.h5", "..", "", ".lock", "shard-00001.h5", "shard-00000.h5\n"]
)
@pytest.mark.parametrize("of", ["shard", "index"])
def test_rejects_file_names_that_a_preparation_does_not_write(shards, node, name, of):
    path = shards / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    (manifest["shards"][0] if of == "shard" else manifest["index"])["name"] = name
    path.write_text(json.dumps(manifest), encoding="utf-8")
    expected = "shard-00000.h5" if of == "shard" else "index.h5"
    with pytest.raises(DataError, match=rf"manifest\.json is not .*{re.escape(repr(name))} is invalid.*'{expected}'"):
        open_staged(shards, node)
    assert list(node.iterdir()) == []


@pytest.mark.parametrize("value", ["", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_rejects_hashes_that_are_none(shards, node, value):
    path = shards / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["shards"][1]["sha256"] = value
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest\.json is not a manifest of format 1: shards\.1\.sha256"):
        open_staged(shards, node)


def test_rejects_a_manifest_that_is_no_text(shards, node):
    (shards / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"manifest\.json is not UTF-8 text"):
        open_staged(shards, node)
