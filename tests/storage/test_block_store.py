"""Stored roll-outs: read by window, whole or absent, and refused where they were made of something else."""

import pickle

import numpy as np
import pytest

from simcast_hpc.config import ConfigError
from simcast_hpc.storage.block_store import (
    BLOCK,
    RolloutCache,
    block_path,
    cache_identity,
    read_manifest,
    standing_blocks,
    sweep,
    write_block,
    write_manifest,
)

IDENTITY = cache_identity(
    teacher="aa", source="bb", pseudo_dtype="uint8", frames_out=2, windows=BLOCK + 5, precision="fp32"
)


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (BLOCK + 5, 2, 4, 4), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, frames):
    for block in range(2):
        write_block(tmp_path, block, frames[block * BLOCK : (block + 1) * BLOCK])
    write_manifest(tmp_path, IDENTITY)
    return tmp_path


def test_windows_are_read_from_their_blocks(folder, frames):
    cache = RolloutCache(folder, identity=IDENTITY)
    for index in (0, 1, BLOCK - 1, BLOCK, BLOCK + 4):
        got = cache.read(index)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, frames[index])
        got[:] = 0  # what is handed out is a copy: the file must not change
        np.testing.assert_array_equal(cache.read(index), frames[index])


def test_a_cache_can_be_sent_to_a_worker(folder, frames):
    sent = pickle.loads(pickle.dumps(RolloutCache(folder, identity=IDENTITY)))
    np.testing.assert_array_equal(sent.read(BLOCK + 1), frames[BLOCK + 1])


def test_fp16_keeps_its_nan(tmp_path):
    frames = np.full((3, 2, 4, 4), 0.5, np.float16)
    frames[1, 0, 0, 0] = np.nan
    write_block(tmp_path, 0, frames)
    write_manifest(tmp_path, {})
    np.testing.assert_array_equal(RolloutCache(tmp_path, identity={}).read(1), frames[1])


@pytest.mark.parametrize("key", list(IDENTITY))
def test_a_cache_made_of_something_else_is_rejected_by_key_and_values(folder, key):
    other = {**IDENTITY, key: "cc"}
    with pytest.raises(ConfigError, match=f"made with {key}={IDENTITY[key]!r}, this run has 'cc'; roll out again"):
        RolloutCache(folder, identity=other)


def test_an_unfinished_cache_is_rejected(tmp_path, frames):
    write_block(tmp_path, 0, frames[:BLOCK])
    assert read_manifest(tmp_path) is None
    with pytest.raises(ConfigError, match="holds no finished roll-out; run `simcast rollout` first"):
        RolloutCache(tmp_path, identity=IDENTITY)
    with pytest.raises(ConfigError, match="absent holds no finished roll-out"):
        RolloutCache(tmp_path / "absent", identity=IDENTITY)


def test_a_block_that_fails_midway_leaves_the_one_before(folder, frames, monkeypatch):
    def fail(*_args):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="no space"):
        write_block(folder, 1, frames[:1])
    monkeypatch.undo()
    np.testing.assert_array_equal(np.load(block_path(folder, 1)), frames[BLOCK:])
    with pytest.raises(FileNotFoundError):
        np.load(block_path(folder, 2))


def test_two_writers_of_a_block_do_not_disturb_each_other(folder, frames, monkeypatch):
    """The slower one of a lease that was taken over finds the block standing and its own partial file swept up."""
    save = np.save

    def save_slowly(file, array):
        save(file, array)
        (folder / "block-000001.lease").touch()
        sweep(folder)

    monkeypatch.setattr(np, "save", save_slowly)
    write_block(folder, 1, frames[BLOCK:])
    assert sorted(path.name for path in folder.iterdir()) == ["block-000000.npy", "block-000001.npy", "manifest.json"]
    assert standing_blocks(folder) == {0, 1}
    with pytest.raises(FileNotFoundError):
        write_block(folder, 2, frames[:1])


def test_the_manifest_says_what_it_was_given(folder):
    assert read_manifest(folder) == IDENTITY
