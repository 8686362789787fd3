"""Validation of a denoiser during training: scores equal direct computation, repeat exactly, and disturb nothing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simcast_hpc.config import ConfigError
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.inference.trained_ensemble import load_ensemble
from simcast_hpc.train.ensemble_validation import EnsembleValidation
from simcast_hpc.train.validation import ValidationHook
from tests.archives import Row, make_archive, random_codes
from tests.generative_runs import OneRank, diffusion_config, make_runs
from tests.train.test_diffusion_stage import diffusion_stage

RANKS: Any = OneRank()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    rows = [Row(f"E{n}", n, time_utc="2018-06-01 12:00:00" if n < 3 else "2019-02-01 12:00:00") for n in range(5)]
    return make_archive(tmp_path_factory.mktemp("archive"), random_codes(5, 11, missing=0.002), rows=rows)


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"), root)


@pytest.fixture
def validation(root, runs, tmp_path) -> EnsembleValidation:
    section = {"every_steps": 2, "windows": 3, "members": 3}
    validation = diffusion_stage(diffusion_config(tmp_path / "run", runs, root, validation=section)).open_validation()
    assert validation is not None
    return validation


def test_scores_equal_those_computed_from_the_members(validation, root, runs):
    trained = load_ensemble(runs / "diffusion")
    scores = validation.scores(trained.network.state_dict(), RANKS)
    source = open_windows(trained.config.data, split="val", frames=7)
    assert len(source) == 6 and validation.indices == [0, 2, 4]
    ensemble = replace(trained, sampling=trained.sampling.model_copy(update={"members": 3}))
    windows = torch.stack([torch.from_numpy(source.read(index)) for index in validation.indices])
    members = ensemble.forecast(windows[:, :3], frames_out=4).double()
    future = windows[:, 3:]
    valid = future != 255
    observed = future.double()[:, None] / 255
    error = (members - observed).abs().mean(1)
    spread = (members[:, :, None] - members[:, None]).abs().sum((1, 2)) / (2 * 3 * 2)
    assert scores["crps"] == pytest.approx((error - spread)[valid].mean().item(), rel=1e-5)
    assert {"mae", "csi/mean", "csi/16", "spread_skill"} <= set(scores)


def test_scores_repeat_and_leave_the_random_generator_alone(validation, runs):
    weights = load_ensemble(runs / "diffusion").network.state_dict()
    state = torch.get_rng_state()
    scores = validation.scores(weights, RANKS)
    assert validation.scores(weights, RANKS) == scores
    assert torch.equal(torch.get_rng_state(), state)
    other = {name: tensor * 1.1 for name, tensor in weights.items()}
    assert validation.scores(other, RANKS)["crps"] != scores["crps"]


def test_hook_writes_the_scores_of_the_moving_average(validation, runs):
    weights = load_ensemble(runs / "diffusion").network.state_dict()
    parameters = {f"model.{name}": tensor.clone().requires_grad_() for name, tensor in weights.items()}
    engine = SimpleNamespace(module=SimpleNamespace(named_parameters=lambda: parameters.items()))
    metrics = {}
    writer: Any = SimpleNamespace(write=lambda step, values: metrics.update({step: values}))
    averages = {name: 0.5 * tensor.detach() for name, tensor in parameters.items()}
    ema: Any = SimpleNamespace(complete=lambda: iter(averages.items()))
    ValidationHook(validation, engine, RANKS, ema, writer)(7, None)
    expected = validation.scores({name: 0.5 * tensor for name, tensor in weights.items()}, RANKS)
    assert metrics[7].pop("time/validation_seconds") > 0
    assert metrics == {7: {f"validation/{name}": value for name, value in expected.items()}}


def test_validation_is_off_by_default_and_not_part_of_the_science(root, runs, tmp_path):
    off, on = (
        diffusion_stage(diffusion_config(tmp_path / "run", runs, root, validation={"every_steps": steps}))
        for steps in (0, 5)
    )
    validation = on.open_validation()
    assert off.open_validation() is None and validation is not None and validation.every_steps == 5
    assert on.config.science() == off.config.science(), "a run may be resumed with other validation settings"


def test_rejects_a_validation_split_without_windows(runs, tmp_path):
    root = make_archive(tmp_path / "archive", random_codes(2, 11))
    config = diffusion_config(tmp_path / "run", runs, root, validation={"every_steps": 5})
    with pytest.raises(ConfigError, match=r"split 'val' .*diffusion\.validation\.every_steps=0"):
        diffusion_stage(config).open_validation()
