"""Rollouts by several processes: equal bytes for any number, and blocks of a killed process are taken over."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from simcast_hpc.config import to_yaml
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.train.precompute_rollouts import fill_rollouts
from tests.archives import tiny_config, write_trained
from tests.multi_rank.runs import command, environment, overrides, simcast

pytestmark = pytest.mark.multi
_BLOCKS = 5


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a student with a finished teacher: 280 windows, five blocks."""
    folder = tmp_path_factory.mktemp("student")
    write_archive(folder / "storms", seed=3, events={"train": 40, "val": 1, "test": 1}, size=16, frames_per_event=13)
    torch.manual_seed(0)
    data = {"dataset": "synthetic", "root": str(folder / "storms"), "window_stride": 1}
    write_trained(tiny_config(folder / "teacher", stage="teacher", data=data))
    section = {"teacher": str(folder / "teacher"), "rollouts": "cached", "lease_seconds": 1.0}
    batch = {"global_size": 4, "micro_size": 1}
    config = tiny_config(folder / "run", stage="student", data=data, student=section, batch=batch)
    (folder / "student.yaml").write_text(to_yaml(config), encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as for ranks of launchers: more threads sum in another order
    fill_rollouts(config)
    torch.set_num_threads(threads)
    return folder / "student.yaml"


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("claim")}


def _killed_at_work(student: Path, run_dir: Path) -> subprocess.Popen[str]:
    """Start two rollouts, kill the first while it computes a block, and return the other."""
    line = [*command("python", 1), "rollout", str(student), *overrides(run_dir=run_dir)]
    both = [
        subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first, other = both
    deadline = time.monotonic() + 120
    while not any(f'"process": {first.pid},' in _read(path) for path in (run_dir / "rollouts").glob("block-*.lease")):
        assert first.poll() is None and time.monotonic() < deadline, "no block was started"
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    return other


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def test_the_block_of_a_killed_process_is_taken_over(student, tmp_path):
    alone = student.parent / "run" / "rollouts"
    assert len(list(alone.glob("block-*.npy"))) == _BLOCKS
    other = _killed_at_work(student, tmp_path / "run")
    _, output = other.communicate(timeout=120)
    assert other.returncode == 0, output
    assert "no heartbeat from" in output and "takes over block-" in output
    assert _bytes(tmp_path / "run" / "rollouts") == _bytes(alone), "bitwise equal, and nothing else is left"


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "ranks"), [("torchrun", 4), ("mpiexec", 2)])
def test_blocks_are_independent_of_ranks(launcher, ranks, student, tmp_path):
    simcast(launcher, ranks, ["rollout", str(student), *overrides(run_dir=tmp_path / "run")])
    assert _bytes(tmp_path / "run" / "rollouts") == _bytes(student.parent / "run" / "rollouts")


@pytest.mark.slow
def test_the_next_start_takes_over_the_blocks_of_a_lost_launch(student, tmp_path):
    """All ranks are killed at once, as with a node; their leases become stale, and the next start takes over."""
    run_dir = tmp_path / "run"
    line = [*command("torchrun", 2), "rollout", str(student), *overrides(run_dir=run_dir)]
    launched = subprocess.Popen(line, env=environment(), stderr=subprocess.DEVNULL)
    while not list((run_dir / "rollouts").glob("block-*.lease")):
        assert launched.poll() is None
        time.sleep(0.002)
    for process in (psutil.Process(launched.pid), *psutil.Process(launched.pid).children(recursive=True)):
        process.send_signal(signal.SIGKILL)
    launched.wait()
    assert '"complete": false' in (run_dir / "rollouts" / "manifest.json").read_text()
    assert list((run_dir / "rollouts").glob("block-*.lease")), "ranks owned blocks"
    simcast("torchrun", 2, ["rollout", str(student), *overrides(run_dir=run_dir)])
    assert _bytes(run_dir / "rollouts") == _bytes(student.parent / "run" / "rollouts")
