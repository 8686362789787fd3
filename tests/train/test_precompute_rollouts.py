"""Stored roll-outs: the student learns from the same bits as online, and a cut-short roll-out goes on."""

import os
import signal
from itertools import islice

import pytest
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.loader import micro_batches
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.storage import block_store as cache
from simcast_hpc.storage.leases import Leases
from simcast_hpc.train import precompute_rollouts as fill
from simcast_hpc.train.preemption import PausedError, StoppedError
from simcast_hpc.train.stages.student_stage import extend
from simcast_hpc.train.trainer import plan
from tests.archives import make_archive, random_codes, tiny_config, write_trained
from tests.generative_runs import OneRank


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(fill, "BLOCK", 4)
    monkeypatch.setattr(cache, "BLOCK", 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("fill"), random_codes(5, 11, missing=0.002))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(1)
    return write_trained(tiny_config(tmp_path_factory.mktemp("teacher") / "run", stage="teacher"))


def _config(tmp_path, root, teacher, *, augment: bool = False, **student) -> TrainConfig:
    data = {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None}
    told = {"teacher": str(teacher), "rollouts": str(tmp_path / "rollouts")} | student
    return tiny_config(tmp_path / "run", stage="student", data=data | {"augment": augment}, student=told)


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
    assert fill.fill_cache(stored) == tmp_path / "rollouts"
    online = _config(tmp_path, root, teacher, pseudo_dtype=pseudo_dtype, augment=augment, rollouts="online")
    for one, other in zip(_samples(stored), _samples(online), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_blocks_hold_all_windows_once(tmp_path, root, teacher):
    config = _config(tmp_path, root, teacher)
    folder = fill.fill_cache(config)
    windows = len(open_windows(config.data, split="train", frames=7))
    assert windows % 4, "the last block is not full"
    blocks = sorted(folder.glob("block-*.npy"))
    assert [path.name for path in blocks] == [cache.block_path(folder, i).name for i in range(windows // 4 + 1)]


def test_a_cut_short_roll_out_goes_on_and_a_finished_one_is_kept(tmp_path, root, teacher, monkeypatch):
    config = _config(tmp_path, root, teacher)
    written: list[int] = []

    def write_until_killed(folder, block, frames):
        if len(written) == 2:
            raise KeyboardInterrupt
        cache.write_block(folder, block, frames)
        written.append(block)

    monkeypatch.setattr(fill, "write_block", write_until_killed)
    with pytest.raises(KeyboardInterrupt):
        fill.fill_cache(config)
    with pytest.raises(ConfigError, match="no finished roll-out"):
        _samples(config)
    monkeypatch.setattr(fill, "write_block", lambda *told: written.append(told[1]) or cache.write_block(*told))
    fill.fill_cache(config)
    assert written == [0, 1, 2, 3]
    fill.fill_cache(config)
    assert written == [0, 1, 2, 3]


def test_stored_frames_of_another_teacher_are_rejected_and_rolled_out_again(tmp_path, root, teacher):
    config = _config(tmp_path, root, teacher)
    before = cache.block_path(fill.fill_cache(config), 0).read_bytes()
    torch.manual_seed(2)
    other = _config(tmp_path, root, write_trained(tiny_config(tmp_path / "other", stage="teacher")))
    with pytest.raises(ConfigError, match=r"was made with teacher=.*roll out again into another folder"):
        _samples(other)
    folder = fill.fill_cache(other)
    assert cache.block_path(folder, 0).read_bytes() != before
    _samples(other)


@pytest.mark.parametrize(
    ("student", "key"), [({"pseudo_dtype": "uint8"}, "pseudo_dtype"), ({}, "source")], ids=["dtype", "data"]
)
def test_stored_frames_of_other_making_are_rejected(tmp_path, root, teacher, student, key):
    fill.fill_cache(_config(tmp_path, root, teacher))
    archive = root if student else make_archive(tmp_path / "other", random_codes(5, 11, seed=3))
    with pytest.raises(ConfigError, match=f"was made with {key}="):
        _samples(_config(tmp_path, archive, teacher, **student))


def test_a_folder_of_something_else_is_not_cleared(tmp_path, root, teacher):
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "thesis.tex").write_text("ten years of work")
    with pytest.raises(ConfigError, match=r"rollouts holds thesis\.tex and is no roll-out folder"):
        fill.fill_cache(_config(tmp_path, root, teacher))
    assert (tmp_path / "rollouts" / "thesis.tex").is_file()


def test_nothing_is_stored_for_an_online_student(tmp_path, root, teacher):
    with pytest.raises(ConfigError, match=r"student\.rollouts is 'online'; .*--set student\.rollouts=cached"):
        fill.fill_cache(_config(tmp_path, root, teacher, rollouts="online"))


def _at_work(folder, name: str = "block-000000") -> Leases:
    """Leave a fresh lease of another process in a folder."""
    folder.mkdir(exist_ok=True)
    leases = Leases(folder, rank=7, stale_seconds=60.0)
    assert leases._take(name) is not None
    return leases


def test_a_folder_that_others_fill_with_something_else_is_not_cleared(tmp_path, root, teacher):
    config = _config(tmp_path, root, teacher)
    other = _at_work(tmp_path / "rollouts")
    with pytest.raises(ConfigError, match=r"rollouts is being filled from another teacher .* by rank 7, process"):
        fill.fill_cache(config)
    assert other.owners() == [other.owner], "its lease stands, and ours on the claim is given back"


def test_a_folder_claimed_for_something_else_meanwhile_gets_no_block(tmp_path, root, teacher, monkeypatch):
    config = _config(tmp_path, root, teacher)
    claim = tmp_path / "rollouts" / "claim.json"
    monkeypatch.setattr(fill, "extend", lambda *told: claim.write_text("{}") and extend(*told))
    with pytest.raises(ConfigError, match="claimed for another teacher or other data meanwhile"):
        fill.fill_cache(config)
    assert cache.standing_blocks(tmp_path / "rollouts") == set()


def test_a_block_that_was_taken_over_is_left_to_the_other(tmp_path, root, teacher, monkeypatch):
    """A process that was stopped for long finds its block in other hands; it goes on with the next."""
    config = _config(tmp_path, root, teacher, lease_seconds=1.0)
    beats = iter([True, False])
    monkeypatch.setattr(fill.Lease, "renew", lambda _: next(beats, True))
    written: list[int] = []
    monkeypatch.setattr(fill, "write_block", lambda *told: written.append(told[1]) or cache.write_block(*told))
    fill.fill_cache(config)
    assert sorted(written) == [0, 1, 2, 3] and written[-1] == 0, "block 0 was given up, and made at the end"


def test_a_signal_frees_what_a_roll_out_holds(tmp_path, root, teacher, monkeypatch):
    config = _config(tmp_path, root, teacher)
    folder = tmp_path / "rollouts"

    def interrupted(*told):
        if cache.standing_blocks(folder):
            os.kill(os.getpid(), signal.SIGUSR2)
        return extend(*told)

    monkeypatch.setattr(fill, "extend", interrupted)
    with pytest.raises(PausedError, match="SIGUSR2: finished blocks are kept") as caught:
        fill.fill_cache(config)
    assert caught.value.exit_status == 85
    assert cache.standing_blocks(folder) == {0} and not list(folder.glob("*.lease"))
    monkeypatch.undo()


def test_a_stop_file_keeps_a_roll_out_from_starting(tmp_path, root, teacher):
    (tmp_path / "STOP").touch()
    with pytest.raises(StoppedError, match="STOP exists"):
        fill.fill_cache(_config(tmp_path, root, teacher))
    assert not (tmp_path / "rollouts").exists()
