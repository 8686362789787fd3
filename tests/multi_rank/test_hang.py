"""A rank that is stopped is reported by the others with their stacks, and the run ends within the configured time."""

import signal
import subprocess
import time

import psutil
import pytest

from tests.multi_rank.runs import command, environment, losses, overrides

pytestmark = pytest.mark.multi
_LIMIT_SECONDS = 6


def test_a_stopped_rank_is_named_and_the_run_ends_within_the_timeout(teacher_config, tmp_path):
    run_dir = tmp_path / "run"
    limits = overrides(run_dir=run_dir, max_steps=100_000, watch__hang_minutes=_LIMIT_SECONDS / 60)
    process = subprocess.Popen(
        [*command("mpiexec", 2), "train", str(teacher_config), *limits],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    everyone = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").is_file() or len(losses(run_dir)) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    ranks = [one for one in everyone.children(recursive=True) if "simcast_hpc" in one.cmdline() and not one.children()]
    ranks = [one for one in ranks if one.environ().get("PMI_RANK")]
    stopped = next(one for one in ranks if one.environ()["PMI_RANK"] == "1")
    stopped.send_signal(signal.SIGSTOP)
    since = time.monotonic()
    try:
        _, output = process.communicate(timeout=60)
    finally:
        if stopped.is_running():
            stopped.kill()
    assert process.returncode != 0
    assert time.monotonic() - since < 4 * _LIMIT_SECONDS, "the launcher ends with the rank that gave up"
    assert "no optimizer step for 6 s after step" in output and "no heartbeat from rank 1" in output, output[-3000:]
    stacks = (run_dir / "stacks" / "rank-00000.txt").read_text(encoding="utf-8")
    assert "most recent call first" in stacks and "in train" in stacks
