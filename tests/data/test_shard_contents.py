"""Prepared data whose hashes are right and whose content is not: an error that names the file, never another event."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.shards.shard_reader import ShardSource
from tests.archives import Row, make_archive, random_codes
from tests.data.shards import prepared


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contents")
    raw = make_archive(folder / "raw", random_codes(4, 6), rows=[Row(f"E{n}", n) for n in range(4)])
    return prepared(raw, folder / "shards", events_per_shard=2)


def read_all(root: Path) -> list[np.ndarray]:
    source = ShardSource(read_spec("synthetic"), root, split="train", frames=5, window_stride=1)
    return [source.read(index) for index in range(len(source))]


def changed(shards: Path, into: Path, name: str, change: Callable[[h5py.File], object]) -> Path:
    """Return a copy in which a file is changed and the manifest has its new size and hash."""
    shutil.copytree(shards, into)
    with h5py.File(into / name, "r+") as file:
        change(file)
    manifest = json.loads((into / "manifest.json").read_text(encoding="utf-8"))
    for entry in (manifest["index"], *manifest["shards"]):
        content = (into / entry["name"]).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (into / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return into


def test_unchanged_shards_are_read(shards, tmp_path):
    assert len(read_all(changed(shards, tmp_path / "copy", "index.h5", lambda file: None))) == 8


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("x", np.zeros(4), "column 'x' is unknown"),
        ("time", None, "column time is missing"),
        ("shard", np.array([0, 0, 1, 2], np.int32), r"column shard has numbers outside 0 \.\. 1"),
        ("split", np.array([1, 1, 1, 9], np.uint8), r"column split has numbers outside 0 \.\. 3"),
        ("file", np.array([0, 0, 0, -1], np.int32), r"column file has numbers outside 0 \.\. 0"),
        ("row", np.array([0, 1, 0, -1], np.int32), "column row has numbers that exceed the events of a shard"),
        ("row", np.array([0, 1, 0, 2], np.int32), "column row has numbers that exceed the events of a shard"),
        ("row", np.zeros(3, np.int32), r"column row is int32 \[3\] for 4 events"),
        ("shard", np.zeros(4), r"column shard is float64 \[4\] for 4 events"),
        ("time", np.zeros((4, 2), np.int64), r"column time is int64 \[4, 2\] for 4 events"),
        ("id", np.arange(4), r"column id is int64 \[4\] for 4 events"),
        ("id", np.array([b"E0", b"E1", b"E2", b"\xff"]), "column id is not UTF-8 text"),
        ("gaps", np.zeros((4, 9), np.uint8), "column gaps has 9 bytes for 6 frames"),
    ],
)
def test_rejects_an_index_of_other_columns(shards, tmp_path, column, values, says):
    def change(file: h5py.File) -> None:
        if column in file:
            del file[column]
        if values is not None:
            file[column] = values

    with pytest.raises(DataError, match=rf"index\.h5 is not an index of manifest\.json: {says}; prepare"):
        read_all(changed(shards, tmp_path / "copy", "index.h5", change))


def test_rejects_groups_and_links_in_the_index(shards, tmp_path):
    with pytest.raises(DataError, match=r"index\.h5 is damaged: it contains groups"):
        read_all(changed(shards, tmp_path / "group", "index.h5", lambda file: file.create_group("more")))

    def link(file: h5py.File) -> None:
        del file["row"]
        file["row"] = h5py.ExternalLink(str(shards / "index.h5"), "row")

    with pytest.raises(DataError, match=r"index\.h5: /row is a link to another file"):
        read_all(changed(shards, tmp_path / "link", "index.h5", link))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file, codes: None, "it contains no dataset 'codes'"),
        (lambda file, codes: file.create_group("codes"), "it contains no dataset 'codes'"),
        (lambda file, codes: file.create_dataset("codes", data=codes, chunks=(1, 6, 16, 16), dtype="f4"), "float32"),
        (lambda file, codes: file.create_dataset("codes", data=codes.astype("S3"), chunks=(1, 6, 16, 16)), r"\|S3"),
        (lambda file, codes: file.create_dataset("codes", data=codes[:1], chunks=(1, 6, 16, 16)), r"uint8 \[1, 6"),
        (lambda file, codes: file.create_dataset("codes", data=codes), "not uint8 .* in chunks"),
    ],
    ids=["absent", "group", "float", "text", "fewer", "contiguous"],
)
def test_rejects_a_shard_of_other_content(shards, tmp_path, make, says):
    def change(file: h5py.File) -> None:
        codes = file["codes"][:]
        del file["codes"]
        make(file, codes)

    with pytest.raises(DataError, match=rf"shard-00000\.h5: event E0 cannot be read: .*{says}"):
        read_all(changed(shards, tmp_path / "copy", "shard-00000.h5", change))
