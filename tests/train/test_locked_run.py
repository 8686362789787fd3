"""Processes in one run directory: the second is rejected, the first undisturbed, a killed one is replaced at once."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simcast_hpc.config import ConfigError, to_yaml
from simcast_hpc.inference.trained_model import load_trained
from tests.archives import make_archive, random_codes, tiny_config
from tests.forked_stages import PRELOADED
from tests.multi_rank.runs import environment, free_port
from tests.train.conftest import data_section

_STEPS = 20


def _simcast(arguments: list[str], log: Path, variables: dict[str, str]) -> None:
    """Run the command line in a forked process, with its output in a file."""
    from simcast_hpc import cli

    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.argv = ["simcast", *arguments]
    cli.main()


def _start(config: Path, run_dir: Path, log: Path, **variables: str) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    line = ["train", str(config), "--set", f"run_dir={run_dir}"]
    process = context.Process(target=_simcast, args=(line, log, environment() | variables))
    process.start()
    return process


def _end(process: BaseProcess) -> int | None:
    process.join(timeout=120)
    return process.exitcode


def _wait_for(path: Path, process: BaseProcess) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)


def _weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "weights" / "model.safetensors")


def _assert_equal(run_dir: Path, undisturbed: Path) -> None:
    expected, weights = _weights(undisturbed), _weights(run_dir)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert [path.name for path in run_dir.rglob(".*")] == [], "no lock and no temporary file remains"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("locked")
    root = make_archive(folder / "archive", random_codes(4, 12))
    own = {"name": "sevir-tiny", "max_steps": _STEPS, "checkpoint": {"every_steps": 2}, "log": {"every_steps": 1}}
    path = folder / "teacher.yaml"
    path.write_text(to_yaml(tiny_config(folder / "unset", data=data_section(root), **own)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert _end(_start(config, run_dir, run_dir.parent / "log")) == 0
    return run_dir


def test_a_second_run_is_rejected_and_the_first_is_undisturbed(config, undisturbed, tmp_path):
    run_dir, log = tmp_path / "run", tmp_path / "second.log"
    first = _start(config, run_dir, tmp_path / "first.log")
    _wait_for(run_dir / "metrics.jsonl", first)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)  # the second meets it at work, whatever the speed of this machine
    partial = sorted(path.name for path in (run_dir / "checkpoints").glob(".*"))
    try:
        assert _end(_start(config, run_dir, log)) == 2
        ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        logs = [tmp_path / f"rank-{rank}.log" for rank in range(2)]
        pair = [_start(config, run_dir, logs[rank], RANK=str(rank), LOCAL_RANK=str(rank), **ranks) for rank in range(2)]
        assert [_end(process) for process in pair] == [2, 2], "no rank waits for the other"
        assert sorted(path.name for path in (run_dir / "checkpoints").glob(".*")) == partial
    finally:
        os.kill(first.pid, signal.SIGCONT)
    for path in (log, *logs):
        text = path.read_text(encoding="utf-8")
        assert f"run_dir={run_dir} is locked by training (stage " in text, text
        assert f"process {first.pid} of user" in text and "Traceback" not in text
    assert _end(first) == 0
    _assert_equal(run_dir, undisturbed)


def test_a_killed_run_is_resumed_at_once(config, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    killed = _start(config, run_dir, tmp_path / "killed.log")
    _wait_for(run_dir / "metrics.jsonl", killed)
    killed.kill()
    assert _end(killed) == -signal.SIGKILL and (run_dir / ".simcast.lease").is_file()
    began = time.monotonic()
    assert _end(_start(config, run_dir, tmp_path / "log")) == 0
    assert time.monotonic() - began < 55, "no wait for the expiry of the lease"
    assert f"process {killed.pid} of user" in (tmp_path / "log").read_text(encoding="utf-8")
    _assert_equal(run_dir, undisturbed)


@pytest.mark.parametrize("damage", ["weights cut short", "weights of another run", "marker removed"])
def test_loading_and_training_agree_on_a_damaged_run(config, undisturbed, tmp_path, damage):
    """Loading names the command that repairs the run, and the command repairs it."""
    run_dir = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    weights, marker = run_dir / "weights" / "model.safetensors", run_dir / "DONE.json"
    content = weights.read_bytes()
    if damage == "weights cut short":
        weights.write_bytes(content[:-4])
    elif damage == "weights of another run":
        weights.write_bytes(content[:-4] + b"\0\0\0\0")
    else:
        marker.unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors does not match .*DONE\.json; run `simcast train` again"):
        load_trained(run_dir)
    assert _end(_start(config, run_dir, tmp_path / "log")) == 0
    assert weights.read_bytes() == content
    assert load_trained(run_dir).weights_hash == load_trained(undisturbed).weights_hash


def test_a_marker_that_was_cut_short_is_named_by_loading_and_training(config, undisturbed, tmp_path):
    run_dir = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    marker = run_dir / "DONE.json"
    marker.write_text(marker.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"DONE\.json is damaged .*; remove it to finish the run again"):
        load_trained(run_dir)
    assert _end(_start(config, run_dir, tmp_path / "log")) == 2
    assert "DONE.json is damaged" in (tmp_path / "log").read_text(encoding="utf-8")


def test_training_warns_about_the_name_of_another_data_set(undisturbed):
    log = (undisturbed.parent / "log").read_text(encoding="utf-8")
    assert "the run is named 'sevir-tiny', but its data set is 'synthetic', not 'sevir'" in log
