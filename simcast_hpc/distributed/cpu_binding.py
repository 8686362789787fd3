"""Bind each rank to CPUs of its own, near its GPU, if the launcher has not.

A rank that may run on all CPUs of a node moves between NUMA nodes, away from the memory that it allocated and from its
GPU. ``srun --cpu-bind``, Open MPI and ``torchrun --numa-binding`` bind ranks; ``deepspeed``, ``torchrun`` and MPICH do
not by default. Loader workers and other child processes inherit the binding.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from .ranks import LauncherError, RankInfo

logger = logging.getLogger(__name__)
CPU_BINDING = "SIMCAST_CPU_BINDING"
_CHOICES = ("auto", "off")
_SYSTEM = Path("/sys")
_FEWEST_CPUS = 2  # for the rank and its loader workers; with fewer the operating system balances better


class CpuShare(NamedTuple):
    """CPUs of a rank, the number of their physical cores, how they were chosen, and the CPUs of the smallest share."""

    cpus: list[int]
    cores: int
    choice: str
    fewest: int


def read_cpu_binding(environ: Mapping[str, str]) -> str:
    """Return ``SIMCAST_CPU_BINDING``: ``auto`` or ``off``.

    Raises:
        LauncherError: it has another value.
    """
    value = environ.get(CPU_BINDING, "auto")
    if value not in _CHOICES:
        raise LauncherError(f"{CPU_BINDING}={value!r} is invalid; choose {' or '.join(_CHOICES)}, or unset it")
    return value


def bind_rank(rank_info: RankInfo, device: torch.device, *, local_ranks: int, environ: Mapping[str, str]) -> str:
    """Bind this process to its share of the CPUs of the node, and return a description of its binding.

    The process is left as it is if the launcher has bound it, which is assumed if it may not use all CPUs of the node;
    if it is the only rank of the node; and if there are fewer than two CPUs per rank. The number of threads of torch
    is limited to the physical cores of the share unless ``OMP_NUM_THREADS`` is set.

    Args:
        rank_info: this rank.
        device: of this rank.
        local_ranks: number of ranks on this node.
        environ: of the process.

    Raises:
        LauncherError: ``SIMCAST_CPU_BINDING`` is invalid.
    """
    allowed, online = os.sched_getaffinity(0), _online()
    if read_cpu_binding(environ) == "off":
        return f"not bound, {CPU_BINDING}=off"
    if not allowed >= online:
        return f"CPUs {format_cpus(allowed)} of {len(online)}, bound before the start"
    if local_ranks == 1:
        return "not bound, one rank on this node"
    share = cpu_share(rank_info.local_rank, local_ranks, allowed, gpu=_pci_address(device))
    if share.fewest < _FEWEST_CPUS:
        return f"not bound, {len(allowed)} CPUs for {local_ranks} ranks"
    try:
        _bind_all_threads(share.cpus)
    except OSError as error:
        return f"not bound, the system does not permit it ({error})"
    if "OMP_NUM_THREADS" not in environ and torch.get_num_threads() > share.cores:
        torch.set_num_threads(share.cores)
    binding = f"CPUs {format_cpus(share.cpus)}, {share.choice}"
    logger.info("rank %d is bound to %s (%s=off disables it)", rank_info.rank, binding, CPU_BINDING)
    return binding


def cpu_share(
    local_rank: int, local_ranks: int, allowed: Collection[int], *, gpu: str | None = None, system: Path | None = None
) -> CpuShare:
    """Return the CPUs of a rank: whole physical cores, disjoint from those of the other ranks of the node.

    With a GPU these are the cores of the NUMA node of the GPU, divided by the GPUs there, whether or not this job uses
    all of them, so that two jobs on one node have different cores. Without a GPU, or if the system reports no NUMA
    node for it, all cores in the order of the NUMA nodes are divided by the ranks.

    Args:
        local_rank: of the rank, from 0.
        local_ranks: number of ranks on the node.
        allowed: CPUs that the process may use.
        gpu: PCI address of the GPU, such as ``0000:3b:00.0``, or None.
        system: root of the kernel's description of the node; ``/sys`` by default.
    """
    system = _SYSTEM if system is None else system
    nodes = _numa_nodes(system)
    node = None if gpu is None else _read_integer(_pci_devices(system) / gpu / "numa_node")
    if gpu is not None and node in nodes:
        gpus = _gpus_of_node(system, gpu, node)
        cores = _cores(system, set(nodes[node]) & set(allowed))
        index, parts = gpus.index(gpu), len(gpus)
        choice = f"part {index + 1} of {parts} of NUMA node {node}, to which GPU {gpu} is connected"
    else:
        known = {cpu for cpus in nodes.values() for cpu in cpus}
        groups = [set(nodes[number]) & set(allowed) for number in sorted(nodes)] + [set(allowed) - known]
        cores = [core for group in groups for core in _cores(system, group)]
        index, parts = local_rank, local_ranks
        choice = f"part {index + 1} of {parts} of the node"
    shares = [cores[len(cores) * part // parts : len(cores) * (part + 1) // parts] for part in range(parts)]
    own, fewest = shares[index], min(sum(map(len, share)) for share in shares)
    return CpuShare(sorted(cpu for core in own for cpu in core), len(own), choice, fewest)


def format_cpus(cpus: Collection[int]) -> str:
    """Return a list in the notation of the kernel, such as ``0-3,8``."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _bind_all_threads(cpus: Sequence[int]) -> None:
    """Bind the threads of libraries too, which exist already; new threads inherit the binding."""
    os.sched_setaffinity(0, cpus)
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread), cpus)


def _cores(system: Path, cpus: Collection[int]) -> list[list[int]]:
    """Return the CPUs by physical core, whose hardware threads stay together."""
    cores: dict[tuple[int, ...], list[int]] = {}
    for cpu in sorted(cpus):
        siblings = _read_cpus(system / "devices/system/cpu" / f"cpu{cpu}" / "topology/thread_siblings_list")
        cores.setdefault(tuple(siblings or [cpu]), []).append(cpu)
    return list(cores.values())


def _numa_nodes(system: Path) -> dict[int, list[int]]:
    folders = (system / "devices/system/node").glob("node[0-9]*")
    nodes = {int(folder.name.removeprefix("node")): _read_cpus(folder / "cpulist") for folder in folders}
    return {number: cpus for number, cpus in nodes.items() if cpus}  # some nodes contain memory only


def _gpus_of_node(system: Path, gpu: str, node: int) -> list[str]:
    """Return the PCI addresses of all devices of a NUMA node of the same vendor and class as a GPU."""
    devices = _pci_devices(system)
    kind = [_read(devices / gpu / name) for name in ("vendor", "class")]
    found = {
        device.name
        for device in devices.iterdir()
        if [_read(device / name) for name in ("vendor", "class")] == kind
        and _read_integer(device / "numa_node") == node
    }
    return sorted(found | {gpu})


def _pci_address(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    numbers = [getattr(properties, f"pci_{name}_id", None) for name in ("domain", "bus", "device")]
    if None in numbers:
        return None
    return "{:04x}:{:02x}:{:02x}.0".format(*numbers)


def _pci_devices(system: Path) -> Path:
    return system / "bus/pci/devices"


def _online() -> set[int]:
    return set(_read_cpus(_SYSTEM / "devices/system/cpu/online") or range(os.cpu_count() or 1))


def _read_cpus(path: Path) -> list[int]:
    """Return the CPUs of a list such as ``0-3,8``; empty if the file is missing or has another form."""
    cpus: list[int] = []
    try:
        for part in filter(None, _read(path).split(",")):
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        return []
    return cpus


def _read_integer(path: Path) -> int | None:
    try:
        return int(_read(path))
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
