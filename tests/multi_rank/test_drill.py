"""Ranks killed at random moments (seeded and printed), also while a checkpoint is written (``make drill``)."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch

from simcast_hpc.monitoring.metrics import read_metrics
from simcast_hpc.train.checkpoint import Checkpoint, visible
from tests.multi_rank.runs import command, environment, losses, overrides, simcast, weights

pytestmark = [pytest.mark.multi, pytest.mark.slow]
_KILLS, _RANKS, _INTERVAL, _STEPS, _SEED = 20, 2, 10, 300, 20261124
_STARTING_SECONDS = 6.0  # approximate time from the launcher to the first step
# Of ten kills, one is during the start (joining, reading the checkpoint), five during training, four during a write.
_MOMENTS = ("start", *["training"] * 5, *["writing"] * 4)


class Kill(NamedTuple):
    """A kill, and the state of the run directory after it."""

    rank: int
    moment: str
    logged: int
    saved: int
    cut_short: bool

    @property
    def lost(self) -> int:
        """Completed optimizer steps after the newest complete checkpoint."""
        return self.logged - self.saved


def _ranks(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        found = psutil.Process(process.pid).children(recursive=True)
        return [one for one in found if one.cmdline()[:1] == [sys.executable] and "simcast_hpc" in one.cmdline()]
    except psutil.NoSuchProcess:
        return []


def _logged(run_dir: Path) -> int:
    """Return the last step in the run's log; a step is logged before its checkpoint is started."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def _saved(run_dir: Path) -> int:
    found = visible(run_dir / "checkpoints")
    return Checkpoint(found[-1]).step if found else 0


def _wait(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while process.poll() is None and not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _wait_for_moment(moment: str, process: subprocess.Popen[bytes], run_dir: Path, dice: random.Random) -> None:
    if moment == "start":
        until = time.monotonic() + dice.uniform(0.0, _STARTING_SECONDS)
        _wait(process, lambda: time.monotonic() > until)
        return
    log = run_dir / "metrics.jsonl"
    before = log.stat().st_ino if log.exists() else None
    first, further = _saved(run_dir), dice.randrange(1, 3 * _INTERVAL)
    _wait(process, lambda: log.exists() and log.stat().st_ino != before)  # a start replaces what the last one left
    if moment == "training":
        _wait(process, lambda: _logged(run_dir) >= first + further)
    else:
        _wait(process, lambda: _logged(run_dir) >= first + further // 2)
        _wait(process, lambda: any((run_dir / "checkpoints").glob(".step-*.partial/*")))


def _start_and_kill(arguments: list[str], run_dir: Path, dice: random.Random, moment: str) -> Kill | None:
    """Start the run and kill a random rank at a random moment; None where it was over before that."""
    left = _partial(run_dir)
    process = subprocess.Popen(
        [*command("mpiexec", _RANKS), *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_moment(moment, process, run_dir, dice)
        _wait(process, lambda: len(_ranks(process)) == _RANKS)
        ranks = _ranks(process)
        if len(ranks) < _RANKS:
            process.wait(timeout=120)
            assert process.returncode == 0, "the run failed by itself"
            return None
        rank = dice.randrange(_RANKS)
        with suppress(psutil.NoSuchProcess):
            ranks[rank].send_signal(signal.SIGKILL)
        if process.wait(timeout=120) == 0:
            return None
    finally:
        if process.poll() is None:
            process.kill()
    return Kill(rank, moment, _logged(run_dir), _saved(run_dir), cut_short=bool(_partial(run_dir) - left))


def _partial(run_dir: Path) -> set[int]:
    """Return the inodes of incomplete checkpoints."""
    return {path.stat().st_ino for path in (run_dir / "checkpoints").glob(".*.partial")}


@pytest.mark.parametrize("ahead", [0, 4])
def test_weights_after_twenty_kills_equal_those_of_an_uninterrupted_run(ahead, teacher_config, tmp_path):
    """A kill costs at most one interval plus ``ahead_steps``; never a complete checkpoint."""
    dice = random.Random(_SEED + ahead)
    same = overrides(
        max_steps=_STEPS, checkpoint__every_steps=_INTERVAL, checkpoint__ahead_steps=ahead, engine__zero_stage=1
    )
    simcast("mpiexec", _RANKS, ["train", str(teacher_config), *same, *overrides(run_dir=tmp_path / "reference")])
    kills: list[Kill] = []
    finished = 0
    print(f"\nseed {_SEED + ahead}, checkpoint every {_INTERVAL} steps, {ahead} steps ahead of a writer at most")
    while len(kills) < _KILLS or not finished:
        run_dir = tmp_path / f"run-{finished}"
        arguments = ["train", str(teacher_config), *same, *overrides(run_dir=run_dir)]
        if len(kills) < _KILLS:
            kill = _start_and_kill(arguments, run_dir, dice, dice.choice(_MOMENTS))
            for path in visible(run_dir / "checkpoints"):
                Checkpoint(path).verify()
            if kill is not None:
                kills.append(kill)
                print(f"kill {len(kills)}: {kill}, {kill.lost} steps lost", flush=True)
                assert 0 <= kill.lost <= _INTERVAL + ahead, kill
                continue
        else:
            simcast("mpiexec", _RANKS, arguments)
        assert losses(run_dir) == losses(tmp_path / "reference")
        assert all(
            torch.equal(tensor, weights(tmp_path / "reference")[name]) for name, tensor in weights(run_dir).items()
        )
        finished += 1
    lost, cut_short = [kill.lost for kill in kills], sum(kill.cut_short for kill in kills)
    print(f"{cut_short} of {_KILLS} kills cut a checkpoint short, {finished} runs finished; steps lost: {sorted(lost)}")
    assert cut_short >= 3, "too few kills interrupted a writer for a conclusion"
