"""A resumed run equals an uninterrupted one: bitwise at the same ranks and stage, within 1e-5 at others."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from simcast_hpc.config import ConfigError, TrainConfig, read_config
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.train import trainer
from simcast_hpc.train.checkpoint import visible
from tests.multi_rank.runs import command, environment, losses, overrides, simcast, weights

pytestmark = pytest.mark.multi
_STEPS = 40


def _equal_to_the_bit(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _kill_in_mid_training(launcher: str, ranks: int, arguments: list[str], run_dir: Path) -> None:
    """Start a run and send SIGKILL to one of its ranks after the first checkpoint."""
    process = subprocess.Popen(
        [*command(launcher, ranks), *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not visible(run_dir / "checkpoints"):
            assert process.poll() is None, "the run ended before its first checkpoint"
            assert time.monotonic() < deadline, "no checkpoint after two minutes"
            time.sleep(0.005)
        children = psutil.Process(process.pid).children() if ranks > 1 else []
        psutil.Process(children[-1].pid if children else process.pid).send_signal(signal.SIGKILL)
        process.wait(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()


@pytest.mark.parametrize(
    ("launcher", "ranks", "stage", "precision", "decay"),
    [
        ("python", 1, 1, "fp32", "null"),
        pytest.param("python", 1, 0, "fp32", "0.9", marks=pytest.mark.slow),
        pytest.param("torchrun", 2, 1, "fp32", "null", marks=pytest.mark.slow),
        pytest.param("torchrun", 2, 2, "bf16", "0.9", marks=pytest.mark.slow),
        pytest.param("torchrun", 2, 3, "fp32", "0.9", marks=pytest.mark.slow),
        pytest.param("torchrun", 2, 3, "bf16", "null", marks=pytest.mark.slow),
    ],
)
def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    launcher, ranks, stage, precision, decay, teacher_config, tmp_path
):
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    same = {"max_steps": _STEPS, "engine__zero_stage": stage, "engine__precision": precision, "ema__decay": decay}
    simcast(launcher, ranks, ["train", str(teacher_config), *overrides(run_dir=reference, **same)])
    arguments = ["train", str(teacher_config), *overrides(run_dir=killed, **same)]
    _kill_in_mid_training(launcher, ranks, arguments, killed)
    assert not (killed / "DONE.json").exists(), "the run was over before it was killed; raise its steps"
    simcast(launcher, ranks, arguments)
    assert [line for line in losses(killed)] == losses(reference), (
        "each step is logged once, as if nothing had happened"
    )
    assert _equal_to_the_bit(reference, killed)


@pytest.mark.slow
def test_killed_run_of_a_network_with_noise_ends_with_the_weights_of_an_uninterrupted_one(teacher_config, tmp_path):
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    loss = {"model__noise_channels": 2, "loss__mse_weight": 0, "loss__crps_weight": 1, "loss__members": 3}
    same = {"stage": "direct", "max_steps": _STEPS, **loss}
    simcast("python", 1, ["train", str(teacher_config), *overrides(run_dir=reference, **same)])
    arguments = ["train", str(teacher_config), *overrides(run_dir=killed, **same)]
    _kill_in_mid_training("python", 1, arguments, killed)
    assert not (killed / "DONE.json").exists(), "the run was over before it was killed; raise its steps"
    simcast("python", 1, arguments)
    assert losses(killed) == losses(reference) and _equal_to_the_bit(reference, killed)
    two_ranks = tmp_path / "two_ranks"
    simcast("torchrun", 2, ["train", str(teacher_config), *overrides(run_dir=two_ranks, **same)])
    assert losses(two_ranks)[:5] == pytest.approx(losses(reference)[:5], rel=1e-4), "the noise is that of the samples"


@pytest.mark.parametrize(
    ("saved_by", "resumed_by"),
    [
        ((2, 3), (1, 0)),
        pytest.param((1, 0), (2, 3), marks=pytest.mark.slow),
        pytest.param((1, 1), (2, 2), marks=pytest.mark.slow),
        pytest.param((2, 2), (2, 3), marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_with_another_world_size_and_stage(saved_by, resumed_by, teacher_config, one_rank, tmp_path):
    """The first half runs with one layout, the second with another; the losses are those of one rank."""
    run_dir = tmp_path / "run"
    for ranks, stage in (saved_by, resumed_by):
        simcast(
            "torchrun", ranks, ["train", str(teacher_config), *overrides(run_dir=run_dir, engine__zero_stage=stage)]
        )
        if (ranks, stage) == saved_by:
            (run_dir / "DONE.json").unlink()
            shutil.rmtree(run_dir / "checkpoints" / "step-00000006")
    assert losses(run_dir) == pytest.approx(losses(one_rank), abs=1e-5)


def _config(run_dir: Path, **changes: float) -> TrainConfig:
    config = read_config(TrainConfig, run_dir / "config.yaml")
    optimizer = config.optimizer.model_copy(update=changes)
    return config.model_copy(update={"run_dir": run_dir, "optimizer": optimizer})


def test_a_finished_run_is_not_started_again(one_rank, monkeypatch):
    before = (one_rank / "DONE.json").stat().st_mtime_ns
    monkeypatch.setattr(trainer, "join_process_group", lambda **_: pytest.fail("the run started"))
    trainer.run(_config(one_rank))
    assert (one_rank / "DONE.json").stat().st_mtime_ns == before


def test_a_checkpoint_of_another_configuration_is_rejected(one_rank, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(one_rank, run_dir)
    config = (run_dir / "config.yaml").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate was 0\.005, is 0\.001"):
        trainer.run(_config(run_dir, learning_rate=1e-3))
    assert (run_dir / "config.yaml").read_text(encoding="utf-8") == config, "the rejected run does not replace it"
    assert (run_dir / "DONE.json").exists()


def test_truncated_weights_and_a_damaged_checkpoint_are_replaced(teacher_config, one_rank, tmp_path):
    """What a power cut can leave: the run resumes from the checkpoint before and is finished again."""
    run_dir = tmp_path / "run"
    shutil.copytree(one_rank, run_dir)
    exported = run_dir / "weights" / "model.safetensors"
    exported.write_bytes(exported.read_bytes()[: exported.stat().st_size // 2])
    damaged = run_dir / "checkpoints" / "step-00000006" / "rank-00000.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    result = simcast("python", 1, ["train", str(teacher_config), *overrides(run_dir=run_dir, engine__zero_stage=0)])
    assert f"{exported} is missing or damaged: the run is finished again" in result.stderr
    assert f"{damaged} is missing or damaged" in result.stderr
    assert losses(run_dir) == losses(one_rank) and _equal_to_the_bit(one_rank, run_dir)
    assert load_trained(run_dir).weights_hash == load_trained(one_rank).weights_hash
