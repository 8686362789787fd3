"""Metrics of a step, slow ranks with their nodes, and loss spikes with their windows."""

import json
import logging
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simcast_hpc.config import WatchConfig, to_yaml
from simcast_hpc.distributed.process_group import set_flight_recorder
from simcast_hpc.monitoring.metrics import read_metrics
from simcast_hpc.monitoring.stop_request import StopReason
from simcast_hpc.planning.flops import forecaster_cost
from simcast_hpc.planning.training_cost import device_peak_flops
from simcast_hpc.train.loop import StepReport
from simcast_hpc.train.metrics_hook import ComputeRate, MetricsHook
from simcast_hpc.train.monitoring_hooks import compute_rate
from simcast_hpc.train.spike_hook import SpikeHook
from simcast_hpc.train.step_status import StepStatus
from simcast_hpc.train.step_timing import PARTS, StepTimer
from simcast_hpc.train.trainer import plan
from tests.archives import make_archive, random_codes, tiny_config
from tests.forked_stages import run_forked
from tests.train.conftest import data_section


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


class _Ranks:
    """Rank 0 of three; the others report given seconds."""

    rank, size, is_first = 0, 3, True

    def __init__(self, others: list[list[float]]):
        self.others = others
        self.rows: list[int] = []

    def table(self, row: list[float]) -> torch.Tensor:
        self.rows.append(len(row))
        if len(row) > 2:  # host names
            names = [socket.gethostname(), "n2", "n3.example.org"]
            return torch.tensor([list(name.encode().ljust(len(row), b"\0")) for name in names], dtype=torch.float32)
        return torch.tensor([row, *self.others])

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return value


def _metrics(others: list[list[float]], *, rate: ComputeRate | None = None) -> tuple[dict[str, Any], _Ranks]:
    config = tiny_config(Path("run"), log={"every_steps": 2}, batch={"global_size": 6})
    lines: list[dict[str, Any]] = []
    writer = SimpleNamespace(write=lambda step, metrics: lines.append({"step": step, **metrics}))
    timer, ranks = StepTimer(torch.device("cpu")), _Ranks(others)
    engine = SimpleNamespace(get_global_grad_norm=lambda: 0.5)
    hook = MetricsHook(config, ranks, writer, engine, timer, rate=rate)  # pyright: ignore[reportArgumentType]
    for step in (1, 2):
        with timer.part("reading"):
            time.sleep(0.001)
        hook(step, _report([1.0, 3.0]))
    (line,) = lines
    return line, ranks


def test_metrics_of_an_interval():
    line, ranks = _metrics([[0.0, 0.0]] * 2, rate=ComputeRate(flops_per_sample=2e9, peak_flops=4e12))
    assert (line["step"], line["loss"], line["world_size"], line["gradient_norm"]) == (2, 2.0, 3, 0.5)
    per_second = line["throughput/samples_per_second"]
    assert line["time/seconds_per_step"] * per_second == pytest.approx(6)
    assert line["throughput/tflops_per_gpu"] == pytest.approx(per_second * 2e9 / 3 / 1e12)
    assert line["throughput/mfu"] == pytest.approx(per_second * 2e9 / 3 / 4e12)
    assert 0.001 <= line["time/reading_seconds"] <= line["time/seconds_per_step"]
    assert line["time/data_wait_share"] == pytest.approx(line["time/reading_seconds"] / line["time/seconds_per_step"])
    assert line["memory/host_peak_gib"] > 0.01
    assert ranks.rows == [64, 2], "names of hosts once, two numbers per interval"


def test_no_mfu_without_a_known_peak():
    line, _ = _metrics([[0.0, 0.0]] * 2, rate=ComputeRate(flops_per_sample=2e9, peak_flops=None))
    assert "throughput/tflops_per_gpu" in line and "throughput/mfu" not in line


@pytest.mark.parametrize(("slow", "logged"), [(5.0, True), (0.15, False)])
def test_logs_a_slow_rank_with_its_node(slow, logged, caplog):
    line, _ = _metrics([[0.05, 0.05], [slow, 0.02]])
    assert ("rank 2 on n3.example.org" in caplog.text) == logged
    assert (line["slowest_rank"], line["slowest_rank/host"]) == (2, "n3.example.org")
    assert line["slowest_rank/ratio"] == pytest.approx((slow + 0.02) / 0.1, rel=1e-3)


def test_a_run_writes_metrics_and_the_profiler_changes_nothing(tmp_path):
    root, lines = make_archive(tmp_path / "archive", random_codes(5, 11)), []
    for name, options in (("plain", []), ("profiled", ["--profile", "2:3"])):
        config = tiny_config(tmp_path / name, data=data_section(root), log={"every_steps": 2})
        path = tmp_path / f"{name}.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        words = ["", "", "", "train", str(path), "--quiet", *options]
        assert run_forked(words, ranks=1, environment=dict(os.environ)) == 0
        lines.append(read_metrics(config.run_dir / "metrics.jsonl"))
    plain, profiled = lines
    assert [line["loss"] for line in plain] == [line["loss"] for line in profiled] and len(plain) == 2
    assert all(f"time/{part}_seconds" in plain[0] for part in PARTS) and "throughput/mfu" not in plain[0]
    assert {path.suffix for path in (tmp_path / "profiled" / "profile").iterdir()} == {".gz", ".txt"}


def test_the_flight_recorder_writes_to_the_run_directory_unless_the_user_chose(tmp_path, monkeypatch):
    chosen = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "50", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    monkeypatch.setattr("os.environ", environment := dict(chosen))
    set_flight_recorder(tmp_path)
    assert environment == chosen | {
        "TORCH_FR_BUFFER_SIZE": "50",
        "TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "nccl_trace_rank_"),
    }


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.0),
        ("NVIDIA H200", "bf16", 989.0),
        ("NVIDIA GH200 480GB", "fp32", 67.0),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312.0),
        ("AMD Instinct MI300X", "bf16", 1307.0),
        ("AMD Instinct MI250X", "bf16", 191.5),
        ("NVIDIA H100 PCIe", "bf16", None),
        ("NVIDIA H200 NVL", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
        ("NVIDIA B200", "bf16", None),
    ],
)
def test_peak_of_a_device(name, precision, tflops):
    assert device_peak_flops(name, precision) == (None if tflops is None else tflops * 1e12)


@pytest.mark.parametrize("stage", ["direct", "teacher"])
def test_the_compute_rate_counts_the_trained_network(stage, tmp_path, monkeypatch):
    root = make_archive(tmp_path / "archive", random_codes(5, 11))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    planned = plan(tiny_config(tmp_path / "run", stage=stage, data=data_section(root)))
    rate = compute_rate(planned.stage, torch.device("cuda"))
    config = planned.config
    cost = forecaster_cost(
        config.model,
        frames_in=3,
        frames_out=config.frames_out,
        grid=(16, 16),
        batch=2,
        dtype=torch.float32,
    )
    assert rate is not None and rate.flops_per_sample == cost.training_flops / 2 and rate.peak_flops == 67e12
    assert compute_rate(planned.stage, torch.device("cpu")) is None
