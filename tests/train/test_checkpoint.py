"""Checkpoints on disk: whole or absent, at most K, verified, and refused where they belong to another run."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from simcast_hpc.config import ConfigError
from simcast_hpc.storage import atomic_files
from simcast_hpc.train import checkpoint
from simcast_hpc.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    latest,
    newest_whole,
    reject_another_run,
    visible,
)
from simcast_hpc.train.hooks import WaitForWriterHook
from tests.generative_runs import OneRank

IDENTITY = {"seed": 5, "loss.weights": (1.0, 10.0), "data fingerprint": "abcd"}
NAMES = ("model.head.weight", "model.head.bias")


def _state(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {key: torch.full((2, 3), float(10 * step + place)) for place, key in enumerate(("param", *moments))}
        for name in NAMES
        for moments in [("exp_avg", "exp_avg_sq")]
    }


@pytest.fixture
def engine(monkeypatch):
    """What stands for an engine: its state is what ``_state`` says of ``engine.step``, in live tensors."""
    made = SimpleNamespace(state=_state(0))
    monkeypatch.setattr(checkpoint, "read_state", lambda engine: iter(engine.state.items()))
    monkeypatch.setattr(checkpoint, "parameter_names", lambda engine: list(engine.state))
    return made


def _writer(folder, *, keep: int = 2) -> CheckpointWriter:
    return CheckpointWriter(folder, keep=keep, ranks=OneRank(), timeout_minutes=0.01)  # pyright: ignore[reportArgumentType]


def _save(writer: CheckpointWriter, engine, *steps: int) -> None:
    for step in steps:
        engine.state = _state(step)
        writer.save(engine, step=step, samples_seen=8 * step, identity=IDENTITY)
        for tensors in engine.state.values():  # training goes on while the thread writes
            for tensor in tensors.values():
                tensor.fill_(-1.0)
    writer.wait()


def test_a_checkpoint_holds_the_state_at_its_step_by_name(tmp_path, engine):
    _save(_writer(tmp_path), engine, 3)
    found = latest(tmp_path)
    assert found is not None and found.step == 3
    assert found.manifest["samples_seen"] == 24
    for name in NAMES:
        assert all(torch.equal(found.tensors(name)[key], tensor) for key, tensor in _state(3)[name].items())
    assert list(found.weights()) == sorted(NAMES)
    found.require(IDENTITY)
    found.verify()
    found.check_names(engine)


def test_at_most_k_are_kept_and_the_newest_is_the_latest(tmp_path, engine):
    _save(_writer(tmp_path, keep=2), engine, 1, 2, 10)
    assert [path.name for path in visible(tmp_path)] == ["step-00000002", "step-00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
    found = latest(tmp_path)
    assert found is not None and found.step == 10


def test_a_kill_while_one_is_removed_leaves_none_that_is_visible_and_not_whole(tmp_path, engine, monkeypatch):
    """The first file to go may be any: here it is the weights, the manifest stays, and then the power is cut."""
    writer = _writer(tmp_path, keep=1)
    _save(writer, engine, 1)

    def cut_short(path, **_named):
        (path / "rank-00000.safetensors").unlink()
        raise OSError("no further")

    monkeypatch.setattr(atomic_files.shutil, "rmtree", cut_short)
    with pytest.raises(CheckpointError, match="no further"):
        _save(writer, engine, 2)
    for path in visible(tmp_path):
        Checkpoint(path).verify()
    assert [path.name for path in visible(tmp_path)] == ["step-00000002"]
    monkeypatch.undo()
    _writer(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"], "the next start clears what is left"


@pytest.mark.parametrize(("ahead", "waits_after"), [(0, [4]), (3, [7]), (10, [])])
def test_training_waits_for_the_writer_once_it_is_so_far_ahead(tmp_path, engine, ahead, waits_after):
    """A checkpoint is begun at step 4; steps up to 9 are trained."""
    writer, waited = _writer(tmp_path), []
    hook = WaitForWriterHook(writer, ahead_steps=ahead)
    for step in range(1, 10):
        if step == 4:
            writer.save(engine, step=step, samples_seen=0, identity=IDENTITY)
        before = writer.under_way
        hook(step, None)  # pyright: ignore[reportArgumentType]
        if before is not None and writer.under_way is None:
            waited.append(step)
            assert latest(tmp_path).step == 4, "it stands whole"  # pyright: ignore[reportOptionalMemberAccess]
    writer.wait()
    assert waited == waits_after


def test_no_checkpoint_is_none(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None


def test_a_failure_while_writing_leaves_the_one_before_and_is_told(tmp_path, engine, monkeypatch):
    writer = _writer(tmp_path)
    _save(writer, engine, 1)

    def fail(*_args, **_named):
        raise OSError("no space left on device")

    monkeypatch.setattr(atomic_files, "save_file", fail)
    with pytest.raises(CheckpointError, match="could not be written: no space left on device"):
        _save(writer, engine, 2)
    found = latest(tmp_path)
    assert found is not None and found.step == 1
    found.verify()
    monkeypatch.undo()


def test_what_a_kill_left_is_not_seen_and_is_cleared_by_the_next_run(tmp_path, engine):
    _save(_writer(tmp_path), engine, 1)
    partial = tmp_path / ".step-00000002.node7-4711-0.partial"
    partial.mkdir()
    (partial / "manifest.json").write_text("{}")
    (tmp_path / "step-00000003").mkdir()
    assert [path.name for path in visible(tmp_path)] == ["step-00000001"]
    _save(_writer(tmp_path), engine, 2)
    assert [path.name for path in visible(tmp_path)] == ["step-00000001", "step-00000002"]
    assert not partial.exists()


def test_a_step_that_stands_is_not_written_again(tmp_path, engine):
    _save(_writer(tmp_path), engine, 1)
    manifest = tmp_path / "step-00000001" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    _save(_writer(tmp_path), engine, 1)
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.parametrize("spoil", ["byte", "cut", "absent"])
def test_a_damaged_file_is_rejected_by_name(tmp_path, engine, spoil):
    _save(_writer(tmp_path), engine, 1)
    path = tmp_path / "step-00000001" / "rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    if spoil == "byte":
        content[-1] ^= 1
        path.write_bytes(content)
    elif spoil == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    found = latest(tmp_path)
    assert found is not None
    with pytest.raises(CheckpointError, match=r"step-00000001/rank-00000\.safetensors is absent or damaged"):
        found.verify()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1}'])
def test_a_manifest_that_is_none_is_rejected(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"seed": 6}, "seed was 5, is 6"),
        ({"loss.weights": (1.0, 5.0)}, r"loss\.weights was \[1\.0, 10\.0\], is \[1\.0, 5\.0\]"),
        ({"data fingerprint": "ef01"}, "data fingerprint was 'abcd', is 'ef01'"),
        ({"teacher": "ff"}, "teacher was None, is 'ff'"),
    ],
)
def test_a_checkpoint_of_another_configuration_or_data_is_rejected(tmp_path, engine, over, says):
    _save(_writer(tmp_path), engine, 1)
    found = latest(tmp_path)
    assert found is not None
    with pytest.raises(ConfigError, match=rf"belongs to another run: {says}\. Restore the value or .*another run_dir"):
        found.require({**IDENTITY, **over})
    gone = dict(IDENTITY)
    del gone["seed"]
    with pytest.raises(ConfigError, match="seed was 5, is None"):
        found.require(gone)


def test_a_checkpoint_of_another_model_is_rejected(tmp_path, engine):
    _save(_writer(tmp_path), engine, 1)
    found = latest(tmp_path)
    assert found is not None
    engine.state = {"model.head.weight": {}, "model.tail.weight": {}}
    with pytest.raises(CheckpointError, match=r"lacks \['model\.tail\.weight'\], .*unknown \['model\.head\.bias'\]"):
        found.check_names(engine)
    with pytest.raises(CheckpointError, match=r"holds no param/model\.tail\.weight"):
        found.tensors("model.tail.weight")


def test_a_rank_that_never_wrote_its_share_is_missed(tmp_path, engine):
    writer = _writer(tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "rank-00000.json").write_text(json.dumps({"file": "x", "sha256": "", "tensors": []}))
    with pytest.raises(CheckpointError, match=r"1 of 2 ranks wrote their share in 0\.6 s"):
        writer._collect(tmp_path / "p", 2)
    (tmp_path / "p" / "rank-00001.failed").touch()
    with pytest.raises(CheckpointError, match="another rank could not write its share"):
        writer._collect(tmp_path / "p", 2)


@pytest.mark.parametrize("spoil", ["weights", "manifest"])
def test_a_damaged_checkpoint_is_set_aside_by_name_and_the_one_before_serves(tmp_path, engine, caplog, spoil):
    _save(_writer(tmp_path), engine, 1, 2)
    name = "rank-00000.safetensors" if spoil == "weights" else "manifest.json"
    path = tmp_path / "step-00000002" / name
    path.write_bytes(path.read_bytes()[:-1])
    reject_another_run(tmp_path, IDENTITY)
    with caplog.at_level("WARNING", logger="simcast_hpc"):
        logging.getLogger("simcast_hpc").propagate = True
        found = newest_whole(tmp_path, OneRank())  # pyright: ignore[reportArgumentType]
    assert found is not None and found.step == 1
    assert "step-00000002" in caplog.text
    assert [path.name for path in visible(tmp_path)] == ["step-00000001"]
    assert (tmp_path / "step-00000002.damaged").is_dir(), "what is left of it is not thrown away"


def test_where_none_is_whole_the_run_does_not_begin_anew(tmp_path, engine):
    assert newest_whole(tmp_path, OneRank()) is None  # pyright: ignore[reportArgumentType]
    _save(_writer(tmp_path), engine, 1)
    (tmp_path / "step-00000001" / "rank-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole; .*step-00000001"):
        newest_whole(tmp_path, OneRank())  # pyright: ignore[reportArgumentType]


def test_a_full_disk_is_told_and_frees_what_it_had_taken(tmp_path, engine, monkeypatch):
    writer = _writer(tmp_path)
    _save(writer, engine, 1)

    def half(_tensors, path, **_named):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_files, "save_file", half)
    with pytest.raises(CheckpointError, match="No space left on device"):
        _save(writer, engine, 2)
    assert not [path for path in tmp_path.rglob("*.safetensors*") if "step-00000001" not in str(path)]
    found = newest_whole(tmp_path, OneRank())  # pyright: ignore[reportArgumentType]
    assert found is not None and found.step == 1
