"""What the stage diffusion trains on, where its latents come from, and what it refuses to begin with."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from simcast_hpc.config import ConfigError, DataError, TrainConfig
from simcast_hpc.data.loader import MicroBatch
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.diffusion import clean_from_prediction
from simcast_hpc.storage.block_store import block_path, open_block
from simcast_hpc.train import precompute_latents as latents_module
from simcast_hpc.train.stages import make_stage, make_task
from simcast_hpc.train.stages.diffusion_stage import DiffusionModule, DiffusionStage, DiffusionTask
from tests.archives import make_archive, random_codes
from tests.generative_runs import diffusion_config, make_runs, randomised

CPU = torch.device("cpu")


class OneRank:
    """A world of one rank that is joined to nobody."""

    is_first, device, rank, size = True, CPU, 0, 1

    @contextmanager
    def together(self):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("latents"), random_codes(5, 11, missing=0.002))


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"), root)


def begun(config: TrainConfig) -> tuple[DiffusionStage, DiffusionTask]:
    stage = make_stage(config)
    assert isinstance(stage, DiffusionStage)
    source = open_windows(config.data, split="train", frames=stage.sequence_frames)
    task = make_task(config, stage, source)
    assert isinstance(task, DiffusionTask)
    stage.open(source, CPU)
    return stage, task


def batch_of(task: DiffusionTask, positions: list[int]) -> MicroBatch:
    latents = task.prepare(OneRank())  # pyright: ignore[reportArgumentType]
    indices = [position % len(latents) for position in positions]
    return MicroBatch(torch.stack([torch.from_numpy(latents.read(i)) for i in indices]), positions, indices, None)


@pytest.mark.parametrize("observations", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_sample_is_the_forward_process_of_the_windows_own_latents(tmp_path, root, runs, observations, prediction):
    over = {"prediction": prediction, "condition_dropout": 0.0}
    config = diffusion_config(tmp_path / "run", runs, root, **over)
    former = config.diffusion.casformer.model_copy(update={"observations": observations})
    config = config.model_copy(update={"diffusion": config.diffusion.model_copy(update={"casformer": former})})
    stage, task = begun(config)
    positions = [3, 8]
    batch = batch_of(task, positions)
    noisy, timesteps, condition, target, *more = stage.sample(batch, CPU)
    assert noisy.shape == condition.shape == target.shape == (2, 4, 2, 8, 8)
    assert len(more) == observations

    windows = torch.stack([torch.from_numpy(task.source.read(index)) for index in batch.indices])
    forecast = stage.conditions.student.forecast(windows[:, :3], frames_out=4)
    scale = stage.autoencoder.scale
    torch.testing.assert_close(condition, stage.autoencoder.moments(forecast)[0] * scale, atol=3e-3, rtol=2e-3)
    clean = clean_from_prediction(stage.schedule, prediction, noisy.double(), target.double(), timesteps)
    frames = torch.where(windows[:, 3:] == 255, 0, windows[:, 3:]) / 255.0
    mean, log_variance = stage.autoencoder.moments(frames)
    deviations = (clean / scale - mean) / torch.exp(log_variance / 2)
    assert abs(deviations.mean()) < 0.2 and 0.85 < deviations.std() < 1.15, "a sample of the posterior"
    loss = task.module()(noisy, timesteps, condition, target, *more)
    torch.testing.assert_close(loss, target.square().mean())  # a fresh denoiser predicts nothing


def test_a_sample_depends_on_its_position_alone(tmp_path, root, runs):
    stage, task = begun(diffusion_config(tmp_path / "run", runs, root, condition_dropout=0.5))
    together = stage.sample(batch_of(task, [1, 2, 7]), CPU)
    alone = stage.sample(batch_of(task, [7]), CPU)
    assert all(torch.equal(a[2:], b) for a, b in zip(together, alone, strict=True))
    epoch_later = stage.sample(batch_of(task, [7 + len(task.source)]), CPU)
    assert not torch.equal(epoch_later[0], alone[0]), "the same window meets other noise in another epoch"


def test_conditions_are_dropped_whole(tmp_path, root, runs):
    stage, task = begun(diffusion_config(tmp_path / "run", runs, root, condition_dropout=0.5))
    condition = stage.sample(batch_of(task, list(range(40))), CPU)[2]
    dropped = (condition == 0).flatten(1).all(dim=1)
    assert 8 < int(dropped.sum()) < 32
    assert not (condition[~dropped] == 0).any()


def test_latents_are_made_once_and_a_cut_short_making_goes_on(tmp_path, root, runs, monkeypatch):
    monkeypatch.setattr(latents_module, "BLOCK", 4)
    open_block.cache_clear()
    config = diffusion_config(tmp_path / "run", runs, root)
    stage, task = begun(config)
    made = []
    encode = stage.encode
    monkeypatch.setattr(stage, "encode", lambda codes, events: made.append(len(codes)) or encode(codes, events))
    whole = task.prepare(OneRank())  # pyright: ignore[reportArgumentType]
    kept = [whole.read(index) for index in range(len(whole))]
    assert sum(made) == len(task.source) > 8
    task.prepare(OneRank())  # pyright: ignore[reportArgumentType]
    assert sum(made) == len(task.source), "what stands is not made again"
    (task.folder / "manifest.json").unlink()
    block_path(task.folder, 1).unlink()
    open_block.cache_clear()
    again = task.prepare(OneRank())  # pyright: ignore[reportArgumentType]
    assert sum(made) == len(task.source) + 4, "one block of four was missing"
    assert all(np.array_equal(again.read(index), kept[index]) for index in range(len(again)))


def test_latents_of_another_making_are_rejected(tmp_path, root, runs):
    shared = str(tmp_path / "latents")
    config = diffusion_config(tmp_path / "one", runs, root, latents=shared)
    _, task = begun(config)
    task.prepare(OneRank())  # pyright: ignore[reportArgumentType]
    begun(diffusion_config(tmp_path / "two", runs, root, latents=shared))
    others = make_runs(tmp_path / "others", root)
    weights = others / "autoencoder"
    assert weights.is_dir()
    other = diffusion_config(tmp_path / "three", others, root, latents=shared)
    stage = make_stage(other)
    stage.inputs["student"] = "0" * 64
    with pytest.raises(ConfigError, match="were made with student="):
        make_task(other, stage, open_windows(other.data, split="train", frames=7))


def test_latents_that_are_not_finite_are_rejected(tmp_path, root, runs):
    open_block.cache_clear()
    _, task = begun(diffusion_config(tmp_path / "run", runs, root))
    latents = task.prepare(OneRank())  # pyright: ignore[reportArgumentType]
    path = block_path(task.folder, 0)
    stored = np.load(path)
    stored[1, 0, 0, 0, 0] = np.nan
    np.save(path, stored)
    open_block.cache_clear()
    latents.read(0)
    with pytest.raises(DataError, match=r"latents of window .* are not finite"):
        latents.read(1)


def test_a_folder_of_something_else_is_left_alone(tmp_path, root, runs):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    _, task = begun(diffusion_config(tmp_path / "run", runs, root, latents=str(tmp_path / "mine")))
    with pytest.raises(ConfigError, match=r"thesis\.txt, no latents"):
        task.prepare(OneRank())  # pyright: ignore[reportArgumentType]


def test_a_gradient_reaches_every_weight(tmp_path, root, runs):
    stage, task = begun(diffusion_config(tmp_path / "run", runs, root))
    module = task.module()
    randomised(module.model, seed=1)
    DiffusionModule.forward(module, *stage.sample(batch_of(task, [0, 1]), CPU)).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or p.grad.norm() == 0] == []


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"autoencoder": None}, r"diffusion\.autoencoder is not set"),
        ({"student": None}, r"diffusion\.student is not set"),
        ({"casformer": {"patch": 3}}, "the denoiser does not fit"),
    ],
)
def test_what_cannot_be_trained_is_rejected(tmp_path, root, runs, over, says):
    with pytest.raises(ConfigError, match=says):
        begun(diffusion_config(tmp_path / "run", runs, root, **over))


def test_turned_frames_and_other_data_are_rejected(tmp_path, root, runs):
    config = diffusion_config(tmp_path / "run", runs, root)
    for change, says in (
        ({"augment": True}, r"data\.augment=True: latents are stored once"),
        ({"crop": 8}, r"data\.crop=8"),
        ({"block_mean": 2}, r"data\.block_mean=1, the diffusion needs 2"),
    ):
        other = config.model_copy(update={"data": config.data.model_copy(update=change)})
        with pytest.raises(ConfigError, match=says):
            make_stage(other)
    longer = config.model_copy(update={"sequence": config.sequence.model_copy(update={"frames_out": 5})})
    with pytest.raises(ConfigError, match="frames of a forecast=4, the diffusion needs 5"):
        make_stage(longer)
