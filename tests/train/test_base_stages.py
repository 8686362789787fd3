"""Training of models with a base forecast: inputs mark missing pixels, targets never reach the base, rollouts."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.loader import MicroBatch, micro_batches
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.distill.cut_windows import Frames, to_frames
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.models.advection import extrapolate
from simcast_hpc.storage import block_store
from simcast_hpc.train.precompute_rollouts import fill_rollouts
from simcast_hpc.train.stages import ForecastStage
from simcast_hpc.train.stages.student_stage import extend
from simcast_hpc.train.trainer import plan
from tests.archives import make_archive, random_codes, tiny_config, write_trained
from tests.generative_runs import OneRank
from tests.train.conftest import data_section

FRAMES_IN, FRAMES_OUT, SHORT = 3, 4, 2
MODEL = {"hidden_spatial": 4, "hidden_temporal": 8, "temporal_blocks": 2, "inception_kernels": [3, 5], "groups": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("stages"), random_codes(5, 11, missing=0.01))


@pytest.fixture(scope="module")
def teacher(root, tmp_path_factory) -> Path:
    """An untrained teacher: its forecast is the extrapolation."""
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    return write_trained(_config(run_dir, root, base="extrapolation", stage="teacher"))


def _config(run_dir: Path, root: Path, *, base: str, stage: str, **sections: Any) -> TrainConfig:
    data = data_section(root, **sections.pop("data", {}))
    return tiny_config(run_dir, stage=stage, data=data, model={**MODEL, "base": base}, **sections)


def _stage(config: TrainConfig) -> ForecastStage:
    stage = plan(config).stage
    assert isinstance(stage, ForecastStage)
    stage.prepare(OneRank())  # pyright: ignore[reportArgumentType]
    return stage


def _batch(config: TrainConfig, indices: range) -> MicroBatch:
    source = open_windows(config.data, split="train", frames=FRAMES_IN + FRAMES_OUT)
    windows = torch.stack([torch.from_numpy(source.read(index)) for index in indices])
    return MicroBatch(windows, list(indices), list(indices), None)


@pytest.mark.parametrize("stage", ["teacher", "direct", "student"])
def test_inputs_are_nan_where_missing_and_all_else_is_as_without_base(tmp_path, root, teacher, stage):
    student = {"student": {"teacher": str(teacher)}} if stage == "student" else {}
    data = {"crop": 12, "augment": True}
    with_base, without = (
        _stage(_config(tmp_path / base, root, base=base, stage=stage, data=data, **student))
        for base in ("persistence", "none")
    )
    batch = _batch(with_base.config, range(6))
    sample, expected = with_base.sample(batch), without.sample(batch)
    missing = torch.isnan(sample.inputs)
    assert 0 < missing.sum() < missing.numel() / 10
    assert torch.equal(torch.nan_to_num(sample.inputs), expected.inputs)
    assert (expected.inputs[missing] == 0).all()
    assert torch.equal(sample.target, expected.target) and torch.equal(sample.valid, expected.valid)
    assert sample.target.isfinite().all()
    loss = with_base.module()(*sample)
    assert loss.isfinite() and loss > 0


def test_targets_do_not_change_the_inputs_of_the_base(tmp_path, root):
    stage = _stage(_config(tmp_path, root, base="extrapolation", stage="direct"))
    batch = _batch(stage.config, range(4))
    other = batch.windows.clone()
    other[:, FRAMES_IN:] = other[:, FRAMES_IN:].flip(0)
    inputs, changed = (stage.sample(batch._replace(windows=windows)) for windows in (batch.windows, other))
    assert not torch.equal(inputs.target, changed.target)
    torch.testing.assert_close(inputs.inputs, changed.inputs, rtol=0, atol=0, equal_nan=True)
    model = stage.module().model
    assert torch.equal(model(inputs.inputs), model(changed.inputs))


def test_loss_before_training_is_that_of_the_extrapolation(tmp_path, root):
    stage = _stage(_config(tmp_path, root, base="extrapolation", stage="direct"))
    sample = stage.sample(_batch(stage.config, range(4)))
    observed = Frames(torch.nan_to_num(sample.inputs[:, :, 0]), ~torch.isnan(sample.inputs[:, :, 0]))
    baseline = extrapolate(observed.values, FRAMES_OUT, observed.valid)[:, :, None]
    assert torch.equal(stage.module()(*sample), stage.loss(baseline, sample.target, sample.valid))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rollout_of_an_untrained_teacher_chains_extrapolations(root, teacher, tmp_path, dtype):
    """Each pass starts from the last frames, forecast ones included; its base is fp32 in a bf16 teacher too."""
    config = _config(tmp_path, root, base="none", stage="student", student={"teacher": str(teacher)})
    trained = load_trained(teacher)
    trained.network.to(dtype)
    real = to_frames(_batch(config, range(4)).windows)
    pseudo = to_frames(extend(trained, real, config))

    values, valid = (part[:, -FRAMES_IN:] for part in real)
    for _ in range(FRAMES_OUT // SHORT):
        forecast = extrapolate(values[:, -FRAMES_IN:], SHORT, valid[:, -FRAMES_IN:])
        forecast_valid = valid[:, -FRAMES_IN:].all(dim=1, keepdim=True).expand_as(forecast)
        values = torch.cat([values, forecast.where(forecast_valid, 0.0)], dim=1)
        valid = torch.cat([valid, forecast_valid], dim=1)
    assert torch.equal(pseudo.valid, valid[:, FRAMES_IN:]) and not pseudo.valid.all()
    assert torch.equal(pseudo.values, values[:, FRAMES_IN:].half().float())


def test_stored_and_online_rollouts_are_equal_to_the_bit(tmp_path, root, teacher, monkeypatch):
    monkeypatch.setattr(block_store, "BLOCK", 4)
    samples = []
    for rollouts in (str(tmp_path / "rollouts"), "online"):
        student = {"teacher": str(teacher), "rollouts": rollouts}
        config = _config(tmp_path / "run", root, base="extrapolation", stage="student", student=student)
        if rollouts != "online":
            fill_rollouts(config)
        stage = plan(config).stage
        batches = micro_batches(
            stage.prepare(OneRank()),  # pyright: ignore[reportArgumentType]
            seed=config.seed, first_step=0, global_size=4, micro_size=2, rank=0, world_size=1,
            extension=stage.extension,
        )  # fmt: skip
        samples.append([stage.sample(batch) for batch in islice(batches, 6)])
    for one, other in zip(*samples, strict=True):
        for parts in zip(one, other, strict=True):
            torch.testing.assert_close(*parts, rtol=0, atol=0, equal_nan=True)


def test_rejects_initial_weights_of_a_teacher_with_another_base(tmp_path, root, teacher):
    student = {"teacher": str(teacher), "init": "teacher"}
    message = r"init=teacher requires the teacher's model\.base: .* has 'extrapolation', the student has 'none'"
    with pytest.raises(ConfigError, match=message):
        plan(_config(tmp_path, root, base="none", stage="student", student=student))
    same = plan(_config(tmp_path, root, base="extrapolation", stage="student", student=student)).stage
    assert same.inputs["teacher"] == load_trained(teacher).weights_hash


def test_base_is_part_of_the_identity_only_where_it_is_set(tmp_path, root):
    without, persistence = (
        plan(_config(tmp_path / base, root, base=base, stage="direct")).identity for base in ("none", "persistence")
    )
    assert "model.base" not in without, "runs of versions without the field resume"
    assert persistence["model.base"] == "persistence"
