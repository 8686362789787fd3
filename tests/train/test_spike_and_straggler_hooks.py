"""Loss spikes are logged with their windows, slow ranks with their nodes."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from simcast_hpc.config import WatchConfig
from simcast_hpc.monitoring.stop_request import StopReason
from simcast_hpc.train.loop import StepReport
from simcast_hpc.train.spike_and_straggler_hooks import SpikeHook, StragglerHook
from simcast_hpc.train.step_status import StepStatus
from simcast_hpc.train.step_timing import StepTimer


@pytest.fixture(autouse=True)
def _captured_log(caplog):
    logger = logging.getLogger("simcast_hpc")
    propagate, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.WARNING, logger="simcast_hpc"):
        yield
    logger.propagate = propagate


def _report(losses: list[float], highest: float | None = None) -> StepReport:
    names = [lambda number=number: [f"E{number}@0"] for number in range(len(losses))]
    status = StepStatus(False, False, False, StopReason.NONE, max(losses) if highest is None else highest)
    return StepReport(torch.tensor(losses), names, status)


def test_logs_a_spike_with_its_windows(tmp_path, caplog):
    path = tmp_path / "spikes.jsonl"
    hook = SpikeHook(WatchConfig(spike_factor=5.0), path)
    for step in range(1, 21):
        hook(step, _report([1.0, 1.5]))
    assert not path.exists()
    hook(21, _report([1.0, 8.0]))
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"step": 21, "loss": 8.0, "median": 1.5, "windows": ["E1@0"]}
    assert "step 21: 8" in caplog.text and "E1@0" in caplog.text and "E0@0" not in caplog.text


def test_only_the_rank_of_a_spike_logs_it(tmp_path):
    hook = SpikeHook(WatchConfig(spike_factor=5.0), tmp_path / "spikes.jsonl")
    for step in range(1, 21):
        hook(step, _report([1.0]))
    hook(21, _report([1.0], highest=50.0))
    assert not (tmp_path / "spikes.jsonl").exists()


def test_logs_no_spike_in_the_first_steps_or_when_disabled(tmp_path):
    for config in (WatchConfig(), WatchConfig(spike_factor=None)):
        hook = SpikeHook(config, tmp_path / "spikes.jsonl")
        for step, loss in enumerate([1.0, 500.0, 1.0] if config.spike_factor else [1.0] * 20 + [500.0]):
            hook(step, _report([loss]))
    assert not (tmp_path / "spikes.jsonl").exists()


@pytest.mark.parametrize(("slow", "logged"), [(0.5, True), (0.15, False)])
def test_logs_a_straggler_with_its_node(slow, logged, caplog):
    timings = [("n1", [0.05, 0.05]), ("n2", [0.05, 0.05]), ("n3", [slow, 0.02])]
    ranks = SimpleNamespace(is_first=True, rank=0, size=3, gather=lambda own: timings)
    StragglerHook(WatchConfig(), ranks, StepTimer(torch.device("cpu")))(40, None)  # pyright: ignore[reportArgumentType]
    assert ("rank 2 on n3" in caplog.text) == logged
