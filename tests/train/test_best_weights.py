"""The choice of the best weights: order of scores, files that a checkpoint refers to, damaged files, patience."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simcast_hpc.config import ConfigError, ValidationConfig
from simcast_hpc.train import best_weights
from simcast_hpc.train.best_weights import BestWeights
from simcast_hpc.train.checkpoint import Checkpoint, CheckpointError
from tests.generative_runs import OneRank

RANKS: Any = OneRank()
NAN = float("nan")


def _best(folder: Path, *, higher: bool = False, fingerprint: str = "f", **section: Any) -> BestWeights:
    folder.mkdir(exist_ok=True)
    return BestWeights(
        folder / "best",
        ValidationConfig.model_validate({"score": "csi/mean" if higher else "mse"} | section),
        higher_is_better=higher,
        checkpoints=folder / "checkpoints",
        fingerprint=fingerprint,
        ranks=RANKS,
    )


def _validate(best: BestWeights, *values: float, first: int = 1) -> list[int | None]:
    """Validate once per step; return the best step after each validation. The weights are the number of the step."""
    chosen = []
    for step, value in enumerate(values, start=first):
        scores = {} if value != value else {best.config.score: value}
        best.update(step, scores, {"w": torch.tensor([float(step)])})
        chosen.append(best.choice.step)
    return chosen


def _save(best: BestWeights, folder: Path, step: int) -> Checkpoint:
    """Write the manifest of a checkpoint with the current choice."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    manifest = {"step": step, "files": [], "identity": {}, "ranks": 1, "validation": best.state()}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Checkpoint(path)


def _files(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (folder / "best").iterdir())


@pytest.mark.parametrize(
    ("higher", "values", "chosen"),
    [
        (False, (3.0, 2.0, 2.0, 1.0, 5.0), [1, 2, 2, 4, 4]),
        (True, (0.3, 0.2, 0.3, 0.4), [1, 1, 1, 4]),
        (False, (NAN, 2.0, NAN, 3.0), [1, 2, 2, 2]),
        (True, (NAN, NAN, 0.0, 0.0), [1, 2, 3, 3]),
    ],
)
def test_only_a_better_score_replaces_the_choice(tmp_path, higher, values, chosen):
    best = _best(tmp_path, higher=higher)
    assert _validate(best, *values) == chosen
    assert best.weights()["w"].item() == chosen[-1]
    assert _files(tmp_path) == [chosen[-1]]


def test_weights_to_which_a_checkpoint_refers_are_kept(tmp_path):
    best = _best(tmp_path)
    _validate(best, 9.0)
    first = _save(best, tmp_path, 1)
    _validate(best, 8.0, 7.0, first=2)
    assert _files(tmp_path) == [1, 3], "nothing refers to step 2"
    best.state()  # a checkpoint that is being written refers to step 3
    _validate(best, 6.0, first=4)
    assert _files(tmp_path) == [1, 3, 4]
    resumed = _best(tmp_path)
    resumed.restore(first)
    assert resumed.choice.step == 1 and _files(tmp_path) == [1], "later steps are repeated"
    assert _validate(resumed, 8.0, 7.0, first=2) == [2, 3]


def test_a_run_without_a_checkpoint_starts_without_a_choice(tmp_path):
    _validate(_best(tmp_path), 1.0, 2.0)
    restarted = _best(tmp_path)
    restarted.restore(None)
    assert restarted.choice.step is None and _files(tmp_path) == []
    assert _validate(restarted, 5.0) == [1], "a score of the lost run is forgotten"


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_missing_or_damaged_weights_are_an_error(tmp_path, damage):
    best = _best(tmp_path)
    _validate(best, 1.0)
    checkpoint = _save(best, tmp_path, 1)
    path = tmp_path / "best" / "step-00000001.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    for use in (best.weights, lambda: _best(tmp_path).restore(checkpoint)):
        with pytest.raises(CheckpointError, match="weights of the best validation, are missing or damaged"):
            use()


def test_a_failed_write_is_an_error_and_keeps_the_previous_weights(tmp_path, monkeypatch):
    best = _best(tmp_path)
    _validate(best, 2.0)

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(best_weights, "write_tensors", full)
    with pytest.raises(CheckpointError, match=r"could not be written: .*No space left on device; the previous ones"):
        _validate(best, 1.0, first=2)
    assert best.choice.step == 1 and best.weights()["w"].item() == 1.0 and _files(tmp_path) == [1]


def test_other_validation_data_is_rejected(tmp_path):
    best = _best(tmp_path)
    _validate(best, 1.0)
    checkpoint = _save(best, tmp_path, 1)
    with pytest.raises(ConfigError, match="the split val has fingerprint g, but had f"):
        _best(tmp_path, fingerprint="g").restore(checkpoint)


def test_last_weights_are_exported_without_keeping_the_best(tmp_path):
    best = _best(tmp_path, export="last")
    assert _validate(best, 1.0, 2.0) == [1, 1]
    assert not (tmp_path / "best").exists()
    last: Any = SimpleNamespace(step=2, model_weights=lambda: {"w": torch.tensor([2.0])})
    assert best.exported(last)["w"].item() == 2.0
    assert best.description(last) == {
        "score": "mse", "best_step": 1, "best_value": 1.0, "export": "last", "exported_step": 2, "stopped_early": False,
    }  # fmt: skip


def test_patience_counts_validations_since_the_best_also_after_a_resume(tmp_path):
    best = _best(tmp_path, patience=3)
    _validate(best, 1.0, 2.0, 0.5, 2.0, 2.0)
    assert (best.choice.step, best.choice.since, best.stopped) == (3, 2, False)
    resumed = _best(tmp_path, patience=3)
    resumed.restore(_save(best, tmp_path, 5))
    _validate(resumed, NAN, first=6)
    assert resumed.stopped and resumed.choice.step == 3


def test_a_score_that_is_never_defined_warns_and_keeps_the_last_weights(tmp_path, caplog):
    best = _best(tmp_path, patience=3)
    assert _validate(best, NAN, NAN, NAN) == [1, 2, 3] and not best.stopped
    assert "mse is undefined at step 3: it selects no weights" in caplog.text
    assert best.weights()["w"].item() == 3 and _files(tmp_path) == [3]
    _validate(best, NAN, first=4)
    assert best.stopped


@pytest.mark.parametrize(
    ("section", "max_steps", "interval", "validations"),
    [
        ({}, 446_475, 22_324, 20),
        ({}, 400, 20, 20),
        ({}, 6, 20, 1),
        ({"every_steps": 7}, 20, 7, 3),
        ({"every_steps": 0, "export": "last"}, 20, 0, 0),
    ],
)
def test_interval(section, max_steps, interval, validations):
    config = ValidationConfig(**section)
    assert (config.interval(max_steps), config.validations(max_steps)) == (interval, validations)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"every_steps": 0}, "validation.export=best requires validation; set validation.export=last"),
        ({"every_steps": 0, "export": "last", "patience": 2}, "validation.patience=2 has no effect"),
    ],
)
def test_rejects_settings_without_effect(section, message):
    with pytest.raises(ValueError, match=message):
        ValidationConfig(**section)
