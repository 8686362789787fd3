"""A disk that fills up while a checkpoint is written: an error, an intact previous checkpoint, and a resumed run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from simcast_hpc.train.checkpoint import Checkpoint, visible
from tests.multi_rank.runs import losses, overrides, simcast

pytestmark = pytest.mark.multi


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """Return a file system of 16 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_the_previous_checkpoint_and_the_run_resumes(teacher_config, one_rank, small_disk, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "checkpoints").symlink_to(small_disk)  # metrics stay on the large disk, as a quota for checkpoints would
    arguments = ["train", str(teacher_config), *overrides(run_dir=run_dir, engine__zero_stage=0)]
    one = sum(path.stat().st_size for path in (visible(one_rank / "checkpoints")[0]).iterdir())
    room = 16 * 2**20 - int(1.6 * one)
    (small_disk / "other").write_bytes(b"x" * room)
    result = simcast("python", 1, arguments, check=False)
    assert result.returncode == 1, result.stderr[-3000:]
    assert "a checkpoint in" in result.stderr and "could not be written" in result.stderr
    assert "No space left on device" in result.stderr, result.stderr[-3000:]
    (checkpoint,) = visible(run_dir / "checkpoints")
    Checkpoint(checkpoint).verify()
    assert checkpoint.name == "step-00000002"
    (small_disk / "other").unlink()
    simcast("python", 1, arguments)
    assert losses(run_dir) == losses(one_rank)
