"""Ranges of elements are read from checkpoints of any layout, also those of the first release; shares are balanced."""

import json

import pytest
import torch
from safetensors.torch import save_file

from simcast_hpc.distributed.partitions import balanced_owners
from simcast_hpc.train.checkpoint_files import Checkpoint, CheckpointError

# Ranges of a parameter of 10 elements as stored by ZeRO 1 (unequal), ZeRO 3 (the last one is shorter), and one rank.
LAYOUTS = {
    "slices": [{"slices": {"w": [0, 7]}}, {"slices": {"w": [7, 3]}}],
    "partitions": [{"partition": [rank, 4]} for rank in range(4)],
    "whole": [{"slices": {"w": [0, 10]}}],
}


def _stored(folder, layout: str) -> Checkpoint:
    """Write a checkpoint of one parameter, 2 x 5, of kind ``param`` 0 to 9 and kind ``ema`` 100 to 109."""
    ranges = {"slices": [(0, 7), (7, 10)], "partitions": [(0, 3), (3, 6), (6, 9), (9, 10)], "whole": [(0, 10)]}
    notes = []
    for number, (note, (start, stop)) in enumerate(zip(LAYOUTS[layout], ranges[layout], strict=True)):
        values = torch.arange(start, stop, dtype=torch.float32)
        save_file({"param/w": values, "ema/w": 100 + values}, folder / f"{number}.safetensors")
        notes.append({**note, "file": f"{number}.safetensors", "sha256": ""})
    manifest = {"step": 1, "identity": {}, "files": notes, "kinds": ["param", "ema"], "parameters": {"w": [2, 5]}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Checkpoint(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_range_of_elements_is_read_from_any_layout(tmp_path, layout):
    stored = _stored(tmp_path, layout)
    for start in range(10):
        for stop in range(start + 1, 11):
            assert stored.read("param", "w", start, stop - start).tolist() == list(range(start, stop))
    assert stored.weights()["w"].tolist() == [[100.0, 101, 102, 103, 104], [105, 106, 107, 108, 109]]
    assert stored.opened == len(LAYOUTS[layout]), "each file once"


def test_only_the_requested_elements_are_read(tmp_path):
    stored = _stored(tmp_path, "partitions")
    stored.read("param", "w", 4, 3)
    assert (stored.opened, stored.bytes_read) == (2, 12)


@pytest.mark.parametrize("note", [{"slices": {"w": [0, 0], "s": [0, 1]}}, {"partition": [0, 1]}])
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_a_parameter_without_elements_and_a_scalar_are_read(tmp_path, note, shape):
    save_file({"param/w": torch.empty(0), "param/s": torch.tensor([7.0])}, tmp_path / "0.safetensors")
    manifest = {"step": 1, "identity": {}, "kinds": ["param"], "parameters": {"w": list(shape), "s": []}}
    manifest["files"] = [{**note, "file": "0.safetensors", "sha256": ""}]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    stored = Checkpoint(tmp_path)
    assert stored.read("param", "w", 0, 0).shape == (0,)
    assert stored.weights()["w"].shape == shape and stored.weights()["s"].item() == 7.0
    with pytest.raises(CheckpointError, match="0 of 0 elements of exp_avg/w"):
        stored.read("exp_avg", "w", 0, 0)


def test_reads_a_complete_tensor_without_elements(tmp_path):
    save_file({"param/w": torch.empty(4, 0)}, tmp_path / "0.safetensors")
    note = {"file": "0.safetensors", "sha256": "", "tensors": ["param/w"]}
    manifest = {"step": 1, "identity": {}, "files": [note]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert Checkpoint(tmp_path).read("param", "w", 0, 0).shape == (0,)
    assert Checkpoint(tmp_path).weights()["w"].shape == (4, 0)


def test_missing_elements_are_an_error(tmp_path):
    stored = _stored(tmp_path, "slices")
    for name, start, length in (("w", 8, 5), ("v", 0, 1), ("w", 10, 1)):
        with pytest.raises(CheckpointError, match="elements of param/"):
            stored.read("param", name, start, length)
    with pytest.raises(CheckpointError, match="0 of 2 elements of exp_avg/w"):
        stored.read("exp_avg", "w", 0, 2)


def test_reads_ranges_of_a_checkpoint_of_the_first_release(tmp_path):
    """It contains complete tensors, each in the file of one rank, whose entries list their names."""
    whole = {"param/w": torch.arange(12.0).view(3, 2, 2), "param/b": torch.tensor(7.0)}
    save_file(whole, tmp_path / "rank-00000.safetensors")
    note = {"file": "rank-00000.safetensors", "sha256": "", "tensors": sorted(whole)}
    manifest = {"step": 1, "samples_seen": 8, "identity": {}, "ranks": 1, "files": [note]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    stored = Checkpoint(tmp_path)
    for start in range(12):
        for stop in range(start + 1, 13):
            assert stored.read("param", "w", start, stop - start).tolist() == list(range(start, stop))
    assert stored.read("param", "b", 0, 1).tolist() == [7.0]
    assert stored.weights()["w"].shape == (3, 2, 2) and set(stored.weights()) == {"w", "b"}


def test_shares_are_balanced_by_size():
    weights_and_biases = [size for number in range(20) for size in (1000 + number, 10)]
    for writers in (1, 2, 8):
        owners = balanced_owners(weights_and_biases, writers=writers)
        loads = [sum(s for s, o in zip(weights_and_biases, owners, strict=True) if o == one) for one in range(writers)]
        assert max(loads) - min(loads) < 1020 and all(loads)
    assert balanced_owners([5, 5], writers=4) == [0, 1], "fewer tensors than writers"
