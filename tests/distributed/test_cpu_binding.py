"""CPU binding of ranks: shares by NUMA node and GPU from a fake `/sys`, and the binding of real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simcast_hpc.distributed import cpu_binding
from simcast_hpc.distributed.cpu_binding import bind_rank, cpu_share, format_cpus
from simcast_hpc.distributed.health.rank_checks import RankReport, describe_binding
from simcast_hpc.distributed.ranks import LauncherError, RankInfo

_CPU = torch.device("cpu")
_GPU = ("0x10de", "0x030200")
_NETWORK = ("0x15b3", "0x020700")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="ascii")


def two_sockets(root: Path, *, devices: dict[str, tuple[int, tuple[str, str]]] | None = None) -> Path:
    """Two NUMA nodes with eight cores of two hardware threads each: CPUs 0-7 and 16-23, and 8-15 and 24-31."""
    for node, cpus in enumerate(("0-7,16-23", "8-15,24-31")):
        write(root / f"devices/system/node/node{node}/cpulist", cpus)
    write(root / "devices/system/node/node2/cpulist", "")  # memory without CPUs
    write(root / "devices/system/cpu/online", "0-31")
    for cpu in range(32):
        write(root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 16},{cpu % 16 + 16}")
    for address, (node, kind) in (devices or {}).items():
        for name, text in zip(("numa_node", "vendor", "class"), (str(node), *kind), strict=True):
            write(root / "bus/pci/devices" / address / name, text)
    return root


def shares(root: Path, ranks: int, allowed: range = range(32)) -> list[str]:
    return [format_cpus(cpu_share(rank, ranks, allowed, system=root).cpus) for rank in range(ranks)]


def test_ranks_without_a_gpu_divide_the_physical_cores_of_the_numa_nodes(tmp_path):
    root = two_sockets(tmp_path)
    assert shares(root, 4) == ["0-3,16-19", "4-7,20-23", "8-11,24-27", "12-15,28-31"]
    assert shares(root, 2) == ["0-7,16-23", "8-15,24-31"]
    three = [cpu_share(rank, 3, range(32), system=root) for rank in range(3)]
    assert sorted(cpu for share in three for cpu in share.cpus) == list(range(32)), "disjoint, and all are used"
    assert [share.cores for share in three] == [5, 5, 6]


def test_a_rank_stays_near_its_gpu(tmp_path):
    """GPUs in the order of CUDA are on the sockets 1, 0, 1; one of them is used by another job."""
    addresses = {"0000:81:00.0": (1, _GPU), "0000:3b:00.0": (0, _GPU), "0000:c1:00.0": (1, _GPU)}
    root = two_sockets(tmp_path, devices={**addresses, "0000:82:00.0": (1, _NETWORK)})
    found = [cpu_share(rank, 2, range(32), gpu=gpu, system=root) for rank, gpu in enumerate(addresses)]
    assert [format_cpus(share.cpus) for share in found] == ["8-11,24-27", "0-7,16-23", "12-15,28-31"]
    assert found[2].choice == "part 2 of 2 of NUMA node 1, to which GPU 0000:c1:00.0 is connected"


def test_a_gpu_without_a_numa_node_counts_as_none(tmp_path):
    root = two_sockets(tmp_path, devices={"0000:3b:00.0": (-1, _GPU)})
    share = cpu_share(1, 2, range(32), gpu="0000:3b:00.0", system=root)
    assert (format_cpus(share.cpus), share.choice) == ("8-15,24-31", "part 2 of 2 of the node")
    assert cpu_share(1, 2, range(4), gpu="0000:99:00.0", system=tmp_path / "absent").cpus == [2, 3]


@pytest.mark.parametrize(
    ("allowed", "local_ranks", "environ", "says"),
    [
        (range(8), 4, {}, "CPUs 0-7 of 32, bound before the start"),
        (range(32), 1, {}, "not bound, one rank on this node"),
        (range(32), 32, {}, "not bound, 32 CPUs for 32 ranks"),  # rank 0 would get no core
        (range(32), 16, {}, "CPUs 1,17, part 2 of 16 of the node"),
        (range(32), 4, {"SIMCAST_CPU_BINDING": "off"}, "not bound, SIMCAST_CPU_BINDING=off"),
        (range(32), 4, {"OMP_NUM_THREADS": "1"}, "CPUs 4-7,20-23, part 2 of 4 of the node"),
    ],
)
def test_only_ranks_that_nothing_has_bound_are_bound(tmp_path, monkeypatch, allowed, local_ranks, environ, says):
    bound: list[list[int]] = []
    monkeypatch.setattr(cpu_binding, "_SYSTEM", two_sockets(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed))
    monkeypatch.setattr(cpu_binding, "_bind_all_threads", bound.append)
    assert bind_rank(RankInfo(1, 64, 1, "x"), _CPU, local_ranks=local_ranks, environ=environ) == says
    assert len(bound) == ("part" in says)


def test_an_unknown_choice_is_an_error():
    with pytest.raises(LauncherError, match="SIMCAST_CPU_BINDING='numa' is invalid; choose auto or off, or unset it"):
        bind_rank(RankInfo(0, 2, 0, "x"), _CPU, local_ranks=2, environ={"SIMCAST_CPU_BINDING": "numa"})


_BIND = """
import os, sys, threading
import torch
from simcast_hpc.distributed import cpu_binding
from simcast_hpc.distributed.ranks import RankInfo
cpu_binding._FEWEST_CPUS = 1
torch.set_num_threads(4)
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
online = os.sched_getaffinity(0)
binding = cpu_binding.bind_rank(RankInfo(1, 2, 1, "x"), torch.device("cpu"), local_ranks=2, environ={})
older = os.sched_getaffinity(thread.native_id)
stop.set()
child = os.popen("grep Cpus_allowed_list /proc/self/status").read().split()[1]
own = cpu_binding.format_cpus(os.sched_getaffinity(0))
assert os.sched_getaffinity(0) == older and child == own, (older, child)
assert 0 < len(older) < len(online) and torch.get_num_threads() <= len(older)
print(binding, "|", own)
"""


@pytest.mark.skipif(
    os.cpu_count() == 1 or len(os.sched_getaffinity(0)) < (os.cpu_count() or 1), reason="needs all of several CPUs"
)
def test_threads_and_child_processes_of_a_rank_are_bound():
    """On this machine, by the system call: the second of two ranks gets the second part of the CPUs."""
    environ = {key: value for key, value in os.environ.items() if key != "SIMCAST_CPU_BINDING"}
    done = subprocess.run([sys.executable, "-c", _BIND], capture_output=True, text=True, timeout=120, env=environ)
    binding, _, own = done.stdout.strip().partition(" | ")
    assert done.returncode == 0, done.stderr
    assert binding == f"CPUs {own}, part 2 of 2 of the node"


def test_doctor_describes_nodes_with_the_same_binding_once():
    texts = ["CPUs 0-3, part 1 of 2 of the node", "CPUs 4-7, part 2 of 2 of the node"]
    reports = [RankReport(f"n{rank // 2}", rank, [], cpu_binding=texts[rank % 2]) for rank in range(8)]
    reports += [RankReport("n4", rank, [], cpu_binding="not bound, SIMCAST_CPU_BINDING=off") for rank in (8, 9)]
    assert describe_binding(reports).message == (
        f"n0 and 3 more nodes: local rank 0: {texts[0]}; local rank 1: {texts[1]}. "
        "n4: not bound, SIMCAST_CPU_BINDING=off"
    )
