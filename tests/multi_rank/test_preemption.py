"""A preempted run saves at once, on all ranks at one step, and its resumed run equals an uninterrupted one."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from simcast_hpc.train.checkpoint import visible
from tests.multi_rank.runs import command, environment, losses, overrides, simcast, weights

pytestmark = pytest.mark.multi
_STEPS = 60


def _start(launcher: str, ranks: int, arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command(launcher, ranks), *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_steps(run_dir: Path, process: subprocess.Popen[str], steps: int) -> None:
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").is_file() or len(losses(run_dir)) < steps:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def _ranks(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the training processes: those without children."""
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return [one for one in everyone if "simcast_hpc" in one.cmdline() and not one.children()]


@pytest.fixture(scope="module")
def uninterrupted(teacher_config, tmp_path_factory) -> tuple[Path, list[str]]:
    """Return the uninterrupted run, with one checkpoint at its end, and the arguments that started it."""
    reference = tmp_path_factory.mktemp("reference") / "run"
    same = overrides(max_steps=_STEPS, checkpoint__every_steps=0)
    simcast("python", 1, ["train", str(teacher_config), *same, *overrides(run_dir=reference)])
    return reference, ["train", str(teacher_config), *same]


@pytest.mark.parametrize(
    ("launcher", "ranks", "number", "status"),
    [
        ("python", 1, signal.SIGUSR2, 85),
        ("mpiexec", 2, signal.SIGTERM, 85),
        pytest.param("torchrun", 2, signal.SIGUSR2, 1, marks=pytest.mark.slow),  # torchrun makes every failure a 1
    ],
)
def test_a_signal_to_one_rank_saves_all_ranks_and_the_run_resumes(
    launcher, ranks, number, status, uninterrupted, tmp_path
):
    reference, arguments = uninterrupted
    run_dir = tmp_path / "run"
    process = _start(launcher, ranks, [*arguments, *overrides(run_dir=run_dir)])
    _wait_for_steps(run_dir, process, 3)
    _ranks(process)[-1].send_signal(number)
    _, output = process.communicate(timeout=120)
    assert process.returncode == status, output[-3000:]
    (saved,) = visible(run_dir / "checkpoints")
    at = int(saved.name.removeprefix("step-"))
    assert 3 <= at < _STEPS and f"saved at step {at}" in output
    assert len(losses(run_dir)) == at, "the step of the checkpoint was the last"
    simcast(launcher, ranks, [*arguments, *overrides(run_dir=run_dir)])
    if ranks == 1:
        assert losses(run_dir) == losses(reference)
        assert all(torch.equal(tensor, weights(reference)[name]) for name, tensor in weights(run_dir).items())
    assert losses(run_dir) == pytest.approx(losses(reference), abs=1e-5)


def test_a_stop_file_saves_and_ends_the_run_and_prevents_a_start(uninterrupted, tmp_path):
    _, arguments = uninterrupted
    run_dir = tmp_path / "run"
    arguments = [*arguments, *overrides(run_dir=run_dir, max_steps=100_000)]
    process = _start("python", 1, arguments)
    _wait_for_steps(run_dir, process, 2)
    (tmp_path / "STOP").touch()
    _, output = process.communicate(timeout=60)
    assert process.returncode == 75 and "STOP exists: saved at step" in output, output[-3000:]
    (saved,) = visible(run_dir / "checkpoints")
    assert json.loads((saved / "manifest.json").read_text(encoding="utf-8"))["samples_seen"] == 4 * len(losses(run_dir))
    again = simcast("python", 1, arguments, check=False)
    assert again.returncode == 75 and "STOP exists: nothing was started" in again.stderr
    assert visible(run_dir / "checkpoints") == [saved]
