"""Validation of a denoiser in training: the scores of its ensembles by hand, the same each time, nothing disturbed."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.inference.ensemble import load_ensemble
from simcast_hpc.train.ensemble_validation import EnsembleValidation, ValidationHook
from simcast_hpc.train.loop import Every
from simcast_hpc.train.stages import make_stage, make_task
from simcast_hpc.train.stages.diffusion_stage import DiffusionTask
from tests.archives import Row, make_archive, random_codes
from tests.generative_runs import diffusion_config, make_runs


class OneRank:
    """A world of one rank that is joined to nobody."""

    is_first, device, rank, size = True, torch.device("cpu"), 0, 1

    @contextmanager
    def together(self):
        yield

    def gather(self, thing: Any) -> list[Any]:
        return [thing]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    rows = [Row(f"E{n}", n, time_utc="2018-06-01 12:00:00" if n < 3 else "2019-02-01 12:00:00") for n in range(5)]
    return make_archive(tmp_path_factory.mktemp("archive"), random_codes(5, 11, missing=0.002), rows=rows)


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"), root)


def begun(config: TrainConfig) -> DiffusionTask:
    stage = make_stage(config)
    task = make_task(config, stage, open_windows(config.data, split="train", frames=7))
    assert isinstance(task, DiffusionTask)
    return task


@pytest.fixture
def validation(root, runs, tmp_path) -> EnsembleValidation:
    chosen = {"every_steps": 2, "windows": 3, "members": 3}
    made = begun(diffusion_config(tmp_path / "run", runs, root, validation=chosen)).validation
    assert made is not None
    return made


def test_scores_are_those_of_the_ensembles_by_hand(validation, root, runs):
    trained = load_ensemble(runs / "diffusion")
    found = validation.scores(trained.network.state_dict(), OneRank())
    source = open_windows(trained.config.data, split="val", frames=7)
    assert len(source) == 6 and validation.indices == [0, 2, 4]
    ensemble = replace(trained, sampling=trained.sampling.model_copy(update={"members": 3}))
    windows = torch.stack([torch.from_numpy(source.read(index)) for index in validation.indices])
    members = ensemble.forecast(windows[:, :3], frames_out=4).double()
    seen = windows[:, 3:]
    valid = seen != 255
    observed = seen.double()[:, None] / 255
    error = (members - observed).abs().mean(1)
    apart = (members[:, :, None] - members[:, None]).abs().sum((1, 2)) / (2 * 3 * 2)
    assert found["crps"] == pytest.approx((error - apart)[valid].mean().item(), rel=1e-5)
    assert {"mae", "csi/mean", "csi/16", "spread_skill"} <= set(found)


def test_the_same_again_and_no_generator_moves(validation, runs):
    weights = load_ensemble(runs / "diffusion").network.state_dict()
    before = torch.get_rng_state()
    first = validation.scores(weights, OneRank())
    assert validation.scores(weights, OneRank()) == first
    assert torch.equal(torch.get_rng_state(), before)
    other = {name: tensor * 1.1 for name, tensor in weights.items()}
    assert validation.scores(other, OneRank())["crps"] != first["crps"]


def test_the_hook_scores_the_average_and_writes_it(validation, runs):
    weights = load_ensemble(runs / "diffusion").network.state_dict()
    held = {f"model.{name}": tensor for name, tensor in weights.items()}
    engine = SimpleNamespace(module=SimpleNamespace(named_parameters=lambda: held.items()))
    for tensor in held.values():
        tensor.requires_grad_()
    written = {}
    writer = SimpleNamespace(write=lambda step, numbers: written.update({step: numbers}))
    average = SimpleNamespace(tensors={name: 0.5 * tensor.detach() for name, tensor in held.items()})
    ValidationHook(validation, engine, OneRank(), average, writer)(7, None)  # pyright: ignore
    want = validation.scores({name: 0.5 * tensor.detach() for name, tensor in weights.items()}, OneRank())
    assert written == {7: {f"validation/{name}": value for name, value in want.items()}}


def test_none_by_default_and_every_so_many_where_asked(root, runs, tmp_path):
    plain, asked = (
        begun(diffusion_config(tmp_path / "run", runs, root, validation={"every_steps": steps})) for steps in (0, 5)
    )
    nothing: Any = None
    assert plain.hooks(nothing, nothing, None, None) == []
    (hook,) = asked.hooks(nothing, nothing, None, None)
    assert isinstance(hook, Every) and hook.steps == 5
    assert asked.config.science() == plain.config.science(), "a run may be resumed with another validation"


def test_a_split_without_windows_is_rejected(runs, tmp_path):
    root = make_archive(tmp_path / "archive", random_codes(2, 11))
    config = diffusion_config(tmp_path / "run", runs, root, validation={"every_steps": 5})
    with pytest.raises((ConfigError, ValueError), match="val"):
        begun(config)
