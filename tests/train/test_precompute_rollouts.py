"""Stored rollouts: bitwise equal to online rollouts, and an interrupted rollout resumes."""

import os
import signal
from itertools import islice

import pytest
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.loader import micro_batches
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.storage import block_store
from simcast_hpc.train import precompute_rollouts
from simcast_hpc.train.precompute_rollouts import fill_rollouts
from simcast_hpc.train.stages.student_stage import extend
from simcast_hpc.train.stop_errors import PausedError, StoppedError
from simcast_hpc.train.trainer import plan
from tests.archives import make_archive, random_codes, tiny_config, write_trained
from tests.generative_runs import OneRank


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(block_store, "BLOCK", 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("fill"), random_codes(5, 11, missing=0.002))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(1)
    return write_trained(tiny_config(tmp_path_factory.mktemp("teacher") / "run", stage="teacher"))


def _config(tmp_path, root, teacher, *, augment: bool = False, **student) -> TrainConfig:
    data = {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None}
    section = {"teacher": str(teacher), "rollouts": str(tmp_path / "rollouts")} | student
    return tiny_config(tmp_path / "run", stage="student", data=data | {"augment": augment}, student=section)


def _samples(config: TrainConfig):
    stage = plan(config).stage
    batches = micro_batches(
        stage.prepare(OneRank()),  # pyright: ignore[reportArgumentType]
        seed=config.seed,
        first_step=0,
        global_size=config.batch.global_size,
        micro_size=config.batch.micro_size,
        rank=0,
        world_size=1,
        extension=stage.extension,
    )
    return [stage.sample(batch) for batch in islice(batches, 10)]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("pseudo_dtype", ["fp16", "uint8"])
def test_stored_and_online_pseudo_frames_are_equal_to_the_bit(tmp_path, root, teacher, pseudo_dtype, augment):
    stored = _config(tmp_path, root, teacher, pseudo_dtype=pseudo_dtype, augment=augment)
    assert fill_rollouts(stored) == tmp_path / "rollouts"
    online = _config(tmp_path, root, teacher, pseudo_dtype=pseudo_dtype, augment=augment, rollouts="online")
    for one, other in zip(_samples(stored), _samples(online), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def _blocks(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("block-*.npy"))


def test_every_window_is_stored_and_a_complete_store_is_kept(tmp_path, root, teacher, monkeypatch):
    config = _config(tmp_path, root, teacher)
    folder = fill_rollouts(config)
    windows = len(open_windows(config.data, split="train", frames=7))
    assert windows % 4, "the last block is not full"
    assert _blocks(folder) == [f"block-{block:06d}.npy" for block in range(windows // 4 + 1)]
    monkeypatch.setattr(precompute_rollouts, "extend", lambda *_: pytest.fail("computed again"))
    assert fill_rollouts(config) == folder


def test_an_incomplete_store_is_rejected(tmp_path, root, teacher):
    with pytest.raises(ConfigError, match=r"student\.rollouts=.* is not complete; run `simcast rollout` first"):
        _samples(_config(tmp_path, root, teacher))


def test_rollouts_of_another_teacher_are_rejected_and_replaced(tmp_path, root, teacher):
    folder = fill_rollouts(_config(tmp_path, root, teacher))
    before = (folder / "block-000000.npy").read_bytes()
    torch.manual_seed(2)
    other = _config(tmp_path, root, write_trained(tiny_config(tmp_path / "other", stage="teacher")))
    with pytest.raises(ConfigError, match=r"computed with teacher=.*choose another directory"):
        _samples(other)
    assert (fill_rollouts(other) / "block-000000.npy").read_bytes() != before
    _samples(other)


@pytest.mark.parametrize(
    ("student", "key"), [({"pseudo_dtype": "uint8"}, "pseudo_dtype"), ({}, "source")], ids=["dtype", "data"]
)
def test_rollouts_of_another_identity_are_rejected(tmp_path, root, teacher, student, key):
    fill_rollouts(_config(tmp_path, root, teacher))
    archive = root if student else make_archive(tmp_path / "other", random_codes(5, 11, seed=3))
    with pytest.raises(ConfigError, match=f"computed with {key}="):
        _samples(_config(tmp_path, archive, teacher, **student))


def test_nothing_is_stored_for_an_online_student(tmp_path, root, teacher):
    with pytest.raises(ConfigError, match=r"student\.rollouts=online .*--set student\.rollouts=cached"):
        fill_rollouts(_config(tmp_path, root, teacher, rollouts="online"))


def test_a_signal_ends_a_rollout_and_releases_its_leases(tmp_path, root, teacher, monkeypatch):
    config = _config(tmp_path, root, teacher)
    folder = tmp_path / "rollouts"

    def interrupted(*arguments):
        if _blocks(folder):
            os.kill(os.getpid(), signal.SIGUSR2)
        return extend(*arguments)

    monkeypatch.setattr(precompute_rollouts, "extend", interrupted)
    with pytest.raises(PausedError, match="SIGUSR2: the stored blocks are kept") as caught:
        fill_rollouts(config)
    assert caught.value.exit_status == 85
    assert _blocks(folder) == ["block-000000.npy"] and not list(folder.glob("*.lease"))


def test_a_stop_file_keeps_a_rollout_from_starting(tmp_path, root, teacher):
    (tmp_path / "STOP").touch()
    with pytest.raises(StoppedError, match="STOP exists"):
        fill_rollouts(_config(tmp_path, root, teacher))
    assert not (tmp_path / "rollouts").exists()
