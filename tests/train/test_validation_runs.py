"""Validation in whole runs: overfitting is caught, resumed runs choose the same weights, training is not changed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simcast_hpc.config import TrainConfig, read_config, to_yaml
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.train.checkpoint import latest, visible
from tests.archives import Row, make_archive, random_codes, tiny_config
from tests.forked_stages import run_forked
from tests.multi_rank.runs import losses, metrics, weights

pytestmark = pytest.mark.multi
_STEPS, _EVERY = 100, 10
_DATES = ("2018-06-01 12:00:00",) * 12 + ("2019-02-01 12:00:00",) * 4 + ("2019-07-01 12:00:00",) * 2


def _train(run_dir: Path, archive: Path, **changes: Any) -> Path:
    """Train on 12 events of noise, which can be memorized but not forecast: the validation error rises soon."""
    sections = {
        "max_steps": _STEPS,
        "data": {"dataset": "synthetic", "root": str(archive), "window_stride": 4},
        "model": {"hidden_spatial": 8, "hidden_temporal": 64, "temporal_blocks": 2, "inception_kernels": [3, 5]},
        "batch": {"global_size": 4, "micro_size": 4},
        "optimizer": {"learning_rate": 5e-3, "schedule": "constant", "warmup_fraction": 0.05},
        "engine": {"precision": "fp32", "zero_stage": 0},
        "loss": {"thresholds": [], "weights": [1.0]},
        "checkpoint": {"every_steps": 30, "keep": 9},
        "log": {"every_steps": 1},
        "validation": {"every_steps": _EVERY, "score": "mse"},
    }
    return _resume(tiny_config(run_dir, **sections | changes))


def _resume(config: TrainConfig) -> Path:
    path = config.run_dir.with_suffix(".yaml")
    path.write_text(to_yaml(config), encoding="utf-8")
    status = run_forked(["", "", "", "train", str(path), "--quiet"], ranks=1, environment=dict(os.environ))
    assert status == 0
    return config.run_dir


def _killed_after(run_dir: Path, step: int, copy: Path) -> TrainConfig:
    """Return the configuration of a copy as a kill leaves it: checkpoints to ``step``, later metrics and weights."""
    shutil.copytree(run_dir, copy)
    (copy / "DONE.json").unlink()
    (copy / "weights" / "model.safetensors").unlink()
    for path in visible(copy / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    # A better validation that was written after the checkpoint belongs to steps that are repeated.
    (copy / "best" / f"step-{step + 3:08d}.safetensors").write_bytes(b"not yet")
    return read_config(TrainConfig, copy / "config.yaml").model_copy(update={"run_dir": copy})


def _marker(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "DONE.json").read_text(encoding="utf-8"))


def _validated(run_dir: Path, score: str = "mse") -> dict[int, float]:
    key = f"validation/{score}"
    return {int(line["step"]): line[key] for line in metrics(run_dir) if key in line}


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    rows = [Row(f"E{number:02d}", number, time_utc=date) for number, date in enumerate(_DATES)]
    return make_archive(tmp_path_factory.mktemp("archive"), random_codes(len(rows), 7), rows=rows)


@pytest.fixture(scope="module")
def finished(archive, tmp_path_factory) -> Path:
    return _train(tmp_path_factory.mktemp("finished") / "run", archive)


def test_a_run_on_12_events_exports_the_best_weights_and_not_the_last(finished):
    by_step = _validated(finished)
    assert list(by_step) == list(range(_EVERY, _STEPS + 1, _EVERY))
    best = min(by_step, key=by_step.__getitem__)
    assert best <= 0.6 * _STEPS and by_step[_STEPS] > 1.01 * by_step[best], "the run does not overfit"
    assert losses(finished)[-1] < losses(finished)[best - 1]
    marker = _marker(finished)
    assert marker["steps"] == _STEPS
    assert marker["validation"] == {
        "score": "mse", "best_step": best, "best_value": by_step[best], "export": "best", "exported_step": best,
        "stopped_early": False,
    }  # fmt: skip
    last = latest(finished / "checkpoints")
    assert last is not None and not _equal(weights(finished), last.model_weights())
    assert _equal(weights(finished), load_file(finished / "best" / f"step-{best:08d}.safetensors"))


@pytest.mark.parametrize("step", [30, pytest.param(60, marks=pytest.mark.slow)])
def test_a_killed_run_makes_the_same_choice(finished, tmp_path, step):
    resumed = _resume(_killed_after(finished, step, tmp_path / "run"))
    assert _marker(resumed) == _marker(finished)
    assert _equal(weights(resumed), weights(finished))
    assert _validated(resumed) == _validated(finished)
    assert not (resumed / "best" / f"step-{step + 3:08d}.safetensors").exists()


@pytest.mark.slow
def test_a_run_on_12_synthetic_storms_exports_the_best_weights_also_if_it_was_killed(tmp_path):
    """The network memorizes the storms: its training loss falls to a fraction while the validation error does not."""
    archive = tmp_path / "archive"
    write_archive(archive, seed=5, events={"train": 12, "val": 12, "test": 1}, size=32, frames_per_event=8)
    finished = _train(
        tmp_path / "run",
        archive,
        max_steps=1200,
        model={"hidden_spatial": 16, "hidden_temporal": 128, "temporal_blocks": 2, "inception_kernels": [3, 5]},
        sequence={"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2},
        optimizer={"learning_rate": 5e-3},
        checkpoint={"every_steps": 300, "keep": 9},
        validation={"every_steps": 60, "score": "mse"},
    )
    by_step, trained = _validated(finished), losses(finished)
    best = min(by_step, key=by_step.__getitem__)
    assert best < 1200 and _marker(finished)["validation"]["exported_step"] == best
    assert trained[-1] < 0.5 * trained[best - 1] and by_step[1200] > by_step[best]
    resumed = _resume(_killed_after(finished, 600, tmp_path / "killed"))
    assert _marker(resumed) == _marker(finished) and _equal(weights(resumed), weights(finished))


def test_training_is_bitwise_equal_without_validation(finished, archive, tmp_path):
    run_dir = _train(tmp_path / "run", archive, validation={"every_steps": 0, "export": "last"})
    assert losses(run_dir) == losses(finished)
    last = latest(finished / "checkpoints")
    assert last is not None and _equal(weights(run_dir), last.model_weights())
    assert "validation" not in _marker(run_dir) and not (run_dir / "best").exists()


def test_early_stopping_finishes_the_run_also_if_it_was_killed(finished, archive, tmp_path):
    section = {"every_steps": _EVERY, "score": "mse", "patience": 2}
    run_dir = _train(tmp_path / "run", archive, validation=section)
    best = _marker(finished)["validation"]["best_step"]
    assert _marker(run_dir)["steps"] == best + 2 * _EVERY
    assert _marker(run_dir)["validation"] == _marker(finished)["validation"] | {"stopped_early": True}
    assert _equal(weights(run_dir), weights(finished))
    config = _killed_after(run_dir, best + 2 * _EVERY, tmp_path / "again")  # killed before the weights were exported
    assert _marker(_resume(config)) == _marker(run_dir) and _validated(config.run_dir) == _validated(run_dir)
