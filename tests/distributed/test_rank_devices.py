"""Which device a rank takes, and which combinations of ranks and devices are rejected before a device is used."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simcast_hpc.distributed import process_group, rank_devices
from simcast_hpc.distributed.rank_devices import RankDevice, find_conflict, local_device
from simcast_hpc.distributed.ranks import LauncherError, RankInfo
from tests.multi_rank.runs import environment, free_port


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """The devices that became the current one; ``visible`` replaces the number of devices."""
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.append(torch.device(device).index))
    return devices


def _rank(local_rank: int, *, rank: int = 3, size: int = 4) -> RankInfo:
    return RankInfo(rank=rank, world_size=size, local_rank=local_rank, launcher="srun")


@pytest.mark.parametrize(("local_rank", "visible", "index"), [(0, 1, 0), (3, 1, 0), (0, 4, 0), (3, 4, 3)])
def test_device_is_the_only_one_or_that_of_the_local_rank(used, monkeypatch, local_rank, visible, index):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert local_device(_rank(local_rank)) == torch.device("cuda", index)
    assert used == [index]


def test_local_rank_beyond_several_devices_is_rejected_before_one_is_used(used, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LauncherError, match=r"rank 3 has local rank 2 on .*, where 2 CUDA devices are visible"):
        local_device(_rank(2))
    assert used == []


@pytest.mark.parametrize("open_mpi", [False, True])
def test_deepspeed_gets_the_number_of_the_device_as_local_rank(used, monkeypatch, open_mpi):
    """DeepSpeed's own code selects the device: third of four ranks, of which each sees one device."""
    import deepspeed.runtime.engine as deepspeed_engine

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if open_mpi:
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "3")
    monkeypatch.setattr(process_group, "compare_devices", lambda *_, **__: 1)
    monkeypatch.setattr(process_group, "open_store", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(process_group, "import_deepspeed", lambda: SimpleNamespace(init_distributed=lambda **_: None))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(process_group, "_joined_ranks", 1)
    assert process_group.join_process_group(timeout_minutes=1).device == torch.device("cuda", 0)
    engine: Any = SimpleNamespace(local_rank=None)
    deepspeed_engine.DeepSpeedEngine._configure_with_arguments(engine, None, None)
    assert engine.local_rank == 0


def _ranks(*devices: tuple[int, int, str | None], host: str = "n1") -> list[RankDevice]:
    return [RankDevice(rank, local, host, visible, uuid) for rank, (local, visible, uuid) in enumerate(devices)]


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        (_ranks((0, 0, None), (1, 0, None)), ""),
        (_ranks((0, 1, "A"), (1, 1, "B")), ""),
        (_ranks((0, 2, "A"), (1, 2, "B")), ""),
        (_ranks((0, 1, "A")) + _ranks((0, 1, "A"), host="n2"), ""),
        (_ranks((0, 1, None), (1, 1, None)), ""),
        (_ranks((0, 1, "A"), (1, 0, None)), "rank 1 on n1 sees no CUDA device, but rank 0 on n1 sees 1;"),
        (_ranks((0, 0, None), (1, 0, None), (2, 4, "C")), "rank 0 on n1 sees no CUDA device, but rank 2 on n1 sees 4;"),
        (_ranks((0, 1, "A"), (1, 1, "A")), "ranks 0 and 1 use the same CUDA device of n1 (local ranks 0 and 1, 1 vis"),
        (_ranks((0, 2, "A"), (1, 2, "B"), (2, 2, None)), "rank 2 has local rank 2 on n1, where 2 CUDA devices are vis"),
        # CUDA_VISIBLE_DEVICES=0,1 and 1,0
        (_ranks((0, 2, "A"), (1, 2, "A")), "ranks 0 and 1 use the same CUDA device of n1 (local ranks 0 and 1, 2 vis"),
    ],
)
def test_conflicts_name_the_ranks_and_the_numbers(reports, message):
    assert find_conflict(reports).startswith(message)
    assert bool(find_conflict(reports)) == bool(message)


_JOIN = """
import sys, torch
visible = int(sys.argv[1])
torch.cuda.is_available, torch.cuda.device_count = (lambda: visible > 0), (lambda: visible)
def used(*_):
    raise SystemExit("a device was used")
torch.cuda.set_device = torch.cuda.init = used
torch.cuda.get_device_properties = lambda index: type("Properties", (), {"uuid": sys.argv[2]})
from simcast_hpc.distributed.process_group import join_process_group
try:
    join_process_group(timeout_minutes=1)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.multi
def test_every_rank_reports_the_conflict_at_once():
    """Rank 1 has no device: NCCL and gloo would wait for each other."""
    port = str(free_port())
    begin = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _JOIN, *arguments],
            env={**environment(), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, arguments in enumerate([("1", "A"), ("0", "")])
    ]  # fmt: skip
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [output.startswith("rank 1 on ") for output, _ in outputs] == [True, True], json.dumps(outputs)
    assert time.monotonic() - begin < 30, "not the timeout of a collective"


@pytest.mark.parametrize(("build", "warned"), [("13.0", True), (None, False)])
def test_a_cuda_build_without_a_visible_device_warns_that_it_runs_on_the_cpu(monkeypatch, caplog, build, warned):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(rank_devices.logger, "propagate", True)
    assert local_device(_rank(0, rank=0)) == torch.device("cpu")
    assert local_device(_rank(1, rank=1)) == torch.device("cpu")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["torch finds no CUDA device (CUDA_VISIBLE_DEVICES=''); running on the CPU"] * warned
