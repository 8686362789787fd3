"""Training samples of the stage diffusion, its stored latents, and the runs and data that it accepts."""

import numpy as np
import pytest
import torch

from simcast_hpc.config import ConfigError, DataError, TrainConfig
from simcast_hpc.data.loader import MicroBatch
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.diffusion import clean_from_prediction
from simcast_hpc.storage import block_store
from simcast_hpc.train.stages.diffusion_stage import DiffusionStage
from simcast_hpc.train.trainer import plan
from tests.generative_runs import OneRank, diffusion_config, make_runs, randomize

CPU = torch.device("cpu")


def diffusion_stage(config: TrainConfig) -> DiffusionStage:
    stage = plan(config).stage
    assert isinstance(stage, DiffusionStage)
    return stage


def prepare(stage: DiffusionStage) -> WindowSource:
    return stage.prepare(OneRank())  # pyright: ignore[reportArgumentType]


def batch_of(stage: DiffusionStage, positions: list[int]) -> MicroBatch:
    latents = prepare(stage)
    indices = [position % len(latents) for position in positions]
    return MicroBatch(torch.stack([torch.from_numpy(latents.read(i)) for i in indices]), positions, indices, None)


@pytest.mark.parametrize(
    ("observations", "prediction", "zero"),
    [(False, "epsilon", False), (True, "v", False), (False, "v", True), (True, "sample", True)],
)
def test_sample_is_the_forward_process_of_the_latents(tmp_path, root, runs, observations, prediction, zero):
    over = {"prediction": prediction, "condition_dropout": 0.0, "zero_terminal_snr": zero}
    config = diffusion_config(tmp_path / "run", runs, root, **over)
    casformer = config.diffusion.casformer.model_copy(update={"observations": observations})
    config = config.model_copy(update={"diffusion": config.diffusion.model_copy(update={"casformer": casformer})})
    stage = diffusion_stage(config)
    batch = batch_of(stage, [3, 8])
    sample = stage.sample(batch)
    assert [part.shape for part in stage.example_sample(2, CPU)] == [part.shape for part in sample]
    noisy, timesteps, condition, target, *observed = sample
    assert noisy.shape == condition.shape == target.shape == (2, 4, 2, 8, 8)
    assert len(observed) == observations

    windows = torch.stack([torch.from_numpy(stage.source.read(index)) for index in batch.indices])
    forecast = stage.conditions.student.forecast(windows[:, :3], frames_out=4)
    scale = stage.autoencoder.scale
    torch.testing.assert_close(condition, stage.autoencoder.moments(forecast)[0] * scale, atol=3e-3, rtol=2e-3)
    clean = clean_from_prediction(stage.schedule, prediction, noisy.double(), target.double(), timesteps)
    frames = torch.where(windows[:, 3:] == 255, 0, windows[:, 3:]) / 255.0
    mean, log_variance = stage.autoencoder.moments(frames)
    deviations = (clean / scale - mean) / torch.exp(log_variance / 2)
    assert abs(deviations.mean()) < 0.2 and 0.85 < deviations.std() < 1.15, "a sample of the posterior"
    loss = stage.module()(*sample)
    torch.testing.assert_close(loss, target.square().mean())  # a fresh denoiser predicts zeros


def test_sample_depends_on_its_position_only(tmp_path, root, runs):
    stage = diffusion_stage(diffusion_config(tmp_path / "run", runs, root, condition_dropout=0.5))
    three = stage.sample(batch_of(stage, [1, 2, 7]))
    one = stage.sample(batch_of(stage, [7]))
    assert all(torch.equal(a[2:], b) for a, b in zip(three, one, strict=True))
    epoch_later = stage.sample(batch_of(stage, [7 + len(stage.source)]))
    assert not torch.equal(epoch_later[0], one[0]), "the same window gets other noise in another epoch"


def test_conditions_are_dropped_per_sample(tmp_path, root, runs):
    stage = diffusion_stage(diffusion_config(tmp_path / "run", runs, root, condition_dropout=0.5))
    condition = stage.sample(batch_of(stage, list(range(40))))[2]
    dropped = (condition == 0).flatten(1).all(dim=1)
    assert 8 < int(dropped.sum()) < 32
    assert not (condition[~dropped] == 0).any()


def test_gradient_reaches_every_weight(tmp_path, root, runs):
    stage = diffusion_stage(diffusion_config(tmp_path / "run", runs, root))
    module = stage.module()
    randomize(module.model, seed=1)
    module(*stage.sample(batch_of(stage, [0, 1]))).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or p.grad.norm() == 0] == []


def test_latents_are_computed_once_and_interrupted_computation_resumes(tmp_path, root, runs, monkeypatch):
    monkeypatch.setattr(block_store, "BLOCK", 4)
    stage = diffusion_stage(diffusion_config(tmp_path / "run", runs, root))
    encoded = []
    encode = stage.encode
    monkeypatch.setattr(stage, "encode", lambda codes, events: encoded.append(len(codes)) or encode(codes, events))
    latents = prepare(stage)
    expected = [latents.read(index) for index in range(len(latents))]
    assert sum(encoded) == len(stage.source) > 8
    prepare(stage)
    assert sum(encoded) == len(stage.source), "stored latents are not recomputed"
    stage.latents._write_manifest(complete=False)
    stage.latents.path(1).unlink()
    resumed = prepare(stage)
    assert sum(encoded) == len(stage.source) + 4, "one block of four was missing"
    assert all(np.array_equal(resumed.read(index), expected[index]) for index in range(len(resumed)))


def test_rejects_latents_of_other_weights(tmp_path, root, runs):
    shared = str(tmp_path / "latents")
    prepare(diffusion_stage(diffusion_config(tmp_path / "one", runs, root, latents=shared)))
    diffusion_stage(diffusion_config(tmp_path / "two", runs, root, latents=shared))
    others = make_runs(tmp_path / "others", root, seed=7)
    with pytest.raises(ConfigError, match="was computed with student="):
        diffusion_stage(diffusion_config(tmp_path / "three", others, root, latents=shared))


def test_rejects_non_finite_latents(tmp_path, root, runs):
    stage = diffusion_stage(diffusion_config(tmp_path / "run", runs, root))
    latents = prepare(stage)
    path = stage.latents.path(0)
    stored = np.load(path)
    stored[1, 0, 0, 0, 0] = np.nan
    stage.latents.write(0, stored)
    latents.read(0)
    with pytest.raises(DataError, match=r"latents of window .* are not finite"):
        latents.read(1)


def test_leaves_folders_of_other_content_alone(tmp_path, root, runs):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    stage = diffusion_stage(diffusion_config(tmp_path / "run", runs, root, latents=str(tmp_path / "mine")))
    with pytest.raises(ConfigError, match=r"diffusion\.latents=.* contains thesis\.txt, which is not part of a store"):
        prepare(stage)


@pytest.mark.parametrize(
    ("section", "over", "message"),
    [
        ("diffusion", {"autoencoder": None}, r"diffusion\.autoencoder is not set"),
        ("diffusion", {"student": None}, r"diffusion\.student is not set"),
        ("diffusion", {"casformer": {"patch": 3}}, "the model does not fit"),
        ("data", {"augment": True}, r"data\.augment=True is invalid in stage diffusion: latents .* are cached"),
        ("data", {"crop": 8}, r"data\.crop=8"),
        ("data", {"block_mean": 2}, r"data\.block_mean=1, the diffusion needs 2"),
        ("sampling", {"steps": 1001}, r"could not be sampled: sampling: 1001 sampling steps"),
        ("sampling", {"sampler": "ddpm", "order": 3}, r"sampling: order=3 is invalid for sampler ddpm"),
        ("sequence", {"frames_out": 5}, r"sequence\.frames_out=4, the diffusion needs 5"),
    ],
)
def test_rejects_invalid_configurations(tmp_path, root, runs, section, over, message):
    config = diffusion_config(tmp_path / "run", runs, root, **(over if section == "diffusion" else {}))
    if section != "diffusion":
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=over)})
    with pytest.raises(ConfigError, match=message):
        diffusion_stage(config)
