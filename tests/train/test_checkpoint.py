"""Checkpoints on disk: complete or absent, at most K, verified, and rejected if they belong to another run."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from simcast_hpc.config import ConfigError
from simcast_hpc.distributed.named_tensors import MOMENTS
from simcast_hpc.storage import atomic_files
from simcast_hpc.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    latest,
    newest_intact,
    reject_another_run,
    visible,
)
from simcast_hpc.train.hooks import CheckpointClock, CheckpointHook, TimedCheckpointHook, WaitForWriterHook
from simcast_hpc.train.stage_engine import StageEngine
from simcast_hpc.train.step_status import StatusReduction
from tests.generative_runs import OneRank

IDENTITY = {"seed": 5, "loss.weights": (1.0, 10.0), "data fingerprint": "abcd"}
NAMES = ("model.head.weight", "model.head.bias")


def _engine(*names: str) -> SimpleNamespace:
    """Return a stand-in for an engine without ZeRO, with parameters of 2 x 3 elements."""
    module = torch.nn.Module()
    for name in names:
        owner = module
        *path, last = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(last, torch.nn.Parameter(torch.zeros(2, 3)))
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        optimizer.state[parameter] = {key: torch.zeros(2, 3) for key in MOMENTS}
    return SimpleNamespace(module=module, optimizer=optimizer)


def _live(engine: SimpleNamespace) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of an engine, which training changes."""
    named = engine.module.named_parameters()
    return {name: {"param": one.data, **engine.optimizer.state[one]} for name, one in named}


def _state(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {key: torch.full((2, 3), float(10 * step + number)) for number, key in enumerate(("param", *moments))}
        for name in NAMES
        for moments in [("exp_avg", "exp_avg_sq")]
    }


@pytest.fixture
def engine() -> SimpleNamespace:
    return _engine(*NAMES)


def _writer(folder, *, keep: int = 2) -> CheckpointWriter:
    return CheckpointWriter(folder, keep=keep, ranks=OneRank(), timeout_minutes=0.01)  # pyright: ignore[reportArgumentType]


def _save(writer: CheckpointWriter, engine, *steps: int) -> None:
    for step in steps:
        for name, tensors in _live(engine).items():
            for key, tensor in tensors.items():
                tensor.copy_(_state(step)[name][key])
        writer.save(engine, step=step, samples_seen=8 * step, identity=IDENTITY)
        for tensors in _live(engine).values():  # training continues while the thread writes
            for tensor in tensors.values():
                tensor.fill_(-1.0)
    writer.wait()


def test_checkpoint_contains_the_state_of_its_step_by_name(tmp_path, engine):
    _save(_writer(tmp_path), engine, 3)
    newest = latest(tmp_path)
    assert newest is not None and newest.step == 3
    assert newest.manifest["samples_seen"] == 24
    for name in NAMES:
        assert all(torch.equal(newest.tensors(name)[key], tensor) for key, tensor in _state(3)[name].items())
    assert list(newest.weights()) == sorted(NAMES)
    newest.require(IDENTITY)
    newest.verify()
    newest.check_names(engine)


def test_keeps_the_newest_k_checkpoints(tmp_path, engine):
    _save(_writer(tmp_path, keep=2), engine, 1, 2, 10)
    assert [path.name for path in visible(tmp_path)] == ["step-00000002", "step-00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
    newest = latest(tmp_path)
    assert newest is not None and newest.step == 10


def test_kill_during_removal_leaves_no_incomplete_checkpoint(tmp_path, engine, monkeypatch):
    """Any file may be removed first: here the weights, before the manifest, and then the power is cut."""
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
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"], "the next start removes the rest"


@pytest.mark.parametrize(("ahead", "waits_after"), [(0, [4]), (3, [7]), (10, [])])
def test_training_waits_for_the_writer_at_the_limit(tmp_path, engine, ahead, waits_after):
    """A checkpoint is started at step 4; steps up to 9 are trained."""
    writer, waited = _writer(tmp_path), []
    hook = WaitForWriterHook(writer, ahead_steps=ahead)
    for step in range(1, 10):
        if step == 4:
            writer.save(engine, step=step, samples_seen=0, identity=IDENTITY)
        before = writer.pending_step
        hook(step, None)  # pyright: ignore[reportArgumentType]
        if before is not None and writer.pending_step is None:
            waited.append(step)
            assert latest(tmp_path).step == 4, "it is complete"  # pyright: ignore[reportOptionalMemberAccess]
    writer.wait()
    assert waited == waits_after


def test_latest_is_none_without_checkpoints(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None


def test_failed_write_keeps_the_previous_checkpoint(tmp_path, engine, monkeypatch):
    writer = _writer(tmp_path)
    _save(writer, engine, 1)

    def fail(*_args, **_named):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(CheckpointError, match="could not be written: rank 0: no space left on device"):
        _save(writer, engine, 2)
    newest = latest(tmp_path)
    assert newest is not None and newest.step == 1
    newest.verify()
    monkeypatch.undo()


def test_incomplete_checkpoints_are_invisible_and_removed_by_the_next_run(tmp_path, engine):
    _save(_writer(tmp_path), engine, 1)
    partial = tmp_path / ".step-00000002.node7-4711-0.partial"
    partial.mkdir()
    (partial / "manifest.json").write_text("{}")
    (tmp_path / "step-00000003").mkdir()
    assert [path.name for path in visible(tmp_path)] == ["step-00000001"]
    _save(_writer(tmp_path), engine, 2)
    assert [path.name for path in visible(tmp_path)] == ["step-00000001", "step-00000002"]
    assert not partial.exists()


def test_existing_step_is_not_written_again(tmp_path, engine):
    _save(_writer(tmp_path), engine, 1)
    manifest = tmp_path / "step-00000001" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    _save(_writer(tmp_path), engine, 1)
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.parametrize("spoil", ["byte", "cut", "absent"])
def test_rejects_damaged_file(tmp_path, engine, spoil):
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
    newest = latest(tmp_path)
    assert newest is not None
    with pytest.raises(CheckpointError, match=r"step-00000001/rank-00000\.safetensors is missing or damaged"):
        newest.verify()


def test_reads_auxiliary_state_under_its_old_key_too(tmp_path, engine):
    """Checkpoints of earlier commits have ``beside/`` where later ones have ``auxiliary/``."""
    writer = _writer(tmp_path)
    tensors = {"param/layer.weight": torch.arange(3.0)}
    writer.save(engine, step=1, samples_seen=8, identity=IDENTITY, auxiliary=tensors)
    writer.wait()
    newest = latest(tmp_path)
    assert newest is not None and torch.equal(newest.auxiliary()["param/layer.weight"], tensors["param/layer.weight"])
    folder = newest.path
    stored = load_file(folder / "rank-00000.safetensors")
    renamed = {key.replace("auxiliary/", "beside/"): tensor for key, tensor in stored.items()}
    save_file(renamed, folder / "rank-00000.safetensors")
    manifest = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(manifest.replace("auxiliary/", "beside/"), encoding="utf-8")
    assert torch.equal(Checkpoint(folder).auxiliary()["param/layer.weight"], tensors["param/layer.weight"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1}'])
def test_rejects_invalid_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"seed": 6}, "seed was 5, is 6"),
        ({"loss.weights": (1.0, 5.0)}, r"loss\.weights was \[1\.0, 10\.0\], is \[1\.0, 5\.0\]"),
        ({"data fingerprint": "ef01"}, "data fingerprint was 'abcd', is 'ef01'"),
        ({"teacher": "ff"}, "teacher was not set, is 'ff'"),
    ],
)
def test_rejects_checkpoint_of_another_configuration_or_data(tmp_path, engine, over, message):
    _save(_writer(tmp_path), engine, 1)
    newest = latest(tmp_path)
    assert newest is not None
    with pytest.raises(
        ConfigError, match=rf"belongs to another run: {message}\. Restore the value or .*another run_dir"
    ):
        newest.require({**IDENTITY, **over})
    without_seed = {key: value for key, value in IDENTITY.items() if key != "seed"}
    with pytest.raises(ConfigError, match="seed was 5, is not set"):
        newest.require(without_seed)


def test_rejects_checkpoint_of_another_model(tmp_path, engine):
    _save(_writer(tmp_path), engine, 1)
    newest = latest(tmp_path)
    assert newest is not None
    engine = _engine("model.head.weight", "model.tail.weight")
    message = r"missing parameters \['model\.tail\.weight'\], unexpected \['model\.head\.bias'\]"
    with pytest.raises(CheckpointError, match=message):
        newest.check_names(engine)
    with pytest.raises(CheckpointError, match=r"contains no param/model\.tail\.weight"):
        newest.tensors("model.tail.weight")


def test_fails_if_a_rank_does_not_write_its_share(tmp_path, engine):
    writer = _writer(tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "rank-00000.json").write_text(json.dumps({"file": "x", "sha256": "", "tensors": []}))
    with pytest.raises(CheckpointError, match=r"1 of 2 ranks wrote their share in 0\.6 s"):
        writer._collect(tmp_path / "p", 2)
    (tmp_path / "p" / "rank-00001.failed").touch()
    with pytest.raises(CheckpointError, match="another rank could not write its share"):
        writer._collect(tmp_path / "p", 2)


@pytest.mark.parametrize("spoil", ["weights", "manifest", "no manifest"])
def test_damaged_checkpoint_is_renamed_and_the_one_before_is_used(tmp_path, engine, caplog, spoil):
    _save(_writer(tmp_path), engine, 1, 2)
    name = "rank-00000.safetensors" if spoil == "weights" else "manifest.json"
    path = tmp_path / "step-00000002" / name
    path.unlink() if spoil == "no manifest" else path.write_bytes(path.read_bytes()[:-1])
    reject_another_run(tmp_path, IDENTITY)
    with caplog.at_level("WARNING", logger="simcast_hpc"):
        logging.getLogger("simcast_hpc").propagate = True
        newest = newest_intact(tmp_path, OneRank())  # pyright: ignore[reportArgumentType]
    assert newest is not None and newest.step == 1
    assert "step-00000002" in caplog.text
    assert [path.name for path in visible(tmp_path)] == ["step-00000001"]
    assert (tmp_path / "step-00000002.damaged").is_dir(), "its files are kept"


@pytest.mark.parametrize("spoil", ["weights", "manifest", "link", "renamed"])
def test_no_start_begins_at_step_0_if_every_checkpoint_is_damaged(tmp_path, engine, spoil):
    assert newest_intact(tmp_path, OneRank()) is None  # pyright: ignore[reportArgumentType]
    _save(_writer(tmp_path), engine, 1, 2)
    for path in (tmp_path / "step-00000001", tmp_path / "step-00000002"):
        if spoil == "weights":
            (path / "rank-00000.safetensors").unlink()
        elif spoil == "manifest":
            (path / "manifest.json").unlink()
        elif spoil == "link":
            path.rename(tmp_path / f"copy-{path.name}")
            path.symlink_to(tmp_path / "purged")
        else:
            path.rename(f"{path}.damaged")
    names = sorted(path.name for path in tmp_path.iterdir())
    message = rf"every checkpoint in .* is damaged; .*step-00000001.*; restore one from a copy, or remove {tmp_path} to"
    for _start in range(2):
        with pytest.raises(CheckpointError, match=message):
            newest_intact(tmp_path, OneRank())  # pyright: ignore[reportArgumentType]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_full_disk_removes_the_incomplete_share(tmp_path, engine, monkeypatch):
    writer = _writer(tmp_path)
    _save(writer, engine, 1)

    def half(_tensors, path, **_named):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(CheckpointError, match="No space left on device"):
        _save(writer, engine, 2)
    assert not [path for path in tmp_path.rglob("*.safetensors*") if "step-00000001" not in str(path)]
    newest = newest_intact(tmp_path, OneRank())  # pyright: ignore[reportArgumentType]
    assert newest is not None and newest.step == 1


def test_the_clock_of_rank_0_asks_for_checkpoints(tmp_path, engine, monkeypatch):
    """Steps of 20 s and an interval of one minute: due at the third step; a regular checkpoint restarts the clock."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock, other = CheckpointClock(1.0, is_first=True), CheckpointClock(1.0, is_first=False)
    writer = _writer(tmp_path, keep=9)
    save = CheckpointHook(writer, StageEngine(engine), global_size=8, identity=IDENTITY, clock=clock)
    timed = TimedCheckpointHook(save)
    reduce_status = StatusReduction(torch.Tensor.tolist, save_due=clock.due)
    saved = []
    for step in range(1, 10):
        now[0] += 20.0
        assert not other.due()
        report = SimpleNamespace(status=reduce_status(torch.ones(1), torch.tensor(True)))
        if step == 5:
            save(step, report)  # pyright: ignore[reportArgumentType]
        timed(step, report)  # pyright: ignore[reportArgumentType]
        saved.append(writer.pending_step)
        monkeypatch.undo()
        writer.wait()
        monkeypatch.setattr("time.monotonic", lambda: now[0])
    assert saved == [None, None, 3, None, 5, None, None, 8, None]
    assert not CheckpointClock(None, is_first=True).due()
