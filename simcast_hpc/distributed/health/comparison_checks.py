"""Comparison of the ranks: versions, matmul time, CPU cores, open files, and bandwidth of an all-reduce."""

import platform
import resource
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch.cuda import nccl

from simcast_hpc.version import __version__

from .finding import Finding

_MAX_NAMED = 8
_SLOW_FACTOR = 1.5  # of the median of a matmul
_FILES_PER_RANK = 3  # sockets of rank 0: two connections to the store, and one of a collective
_FILES_OF_A_PROCESS = 1024
_CPU_BYTES, _GPU_BYTES = 16 << 20, 256 << 20
_SECONDS = 5.0
_MAX_NODE_GROUPS = 64


class Place(NamedTuple):
    """What the checks compare of a rank: its number, host, versions, matmul time in s and CPU cores."""

    rank: int
    node: str
    versions: Mapping[str, str]
    matmul_seconds: float | None
    cores: Sequence[int]


def own_versions(device: torch.device) -> dict[str, str]:
    """Return the versions that must be equal on all ranks, and the model of the device."""
    versions = {"python": platform.python_version(), "simcast-hpc": __version__, "torch": torch.__version__}
    for package in ("deepspeed", "triton", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    if device.type == "cuda":
        versions["GPU"] = torch.cuda.get_device_name(device)
        versions["CUDA" if torch.version.cuda else "ROCm"] = str(torch.version.cuda or torch.version.hip)
        versions["NCCL"] = ".".join(map(str, nccl.version()))
        versions["driver"] = _driver()
    return versions


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip() or "unknown"


def check_versions(places: Sequence[Place]) -> list[Finding]:
    """Return an error for each version that differs between ranks, with the hosts of the rarer values."""
    findings = []
    for name in sorted({name for place in places for name in place.versions}):
        values = [place.versions.get(name, "absent") for place in places]
        common = Counter(values).most_common(1)[0][0]
        others = [f"{p.node} has {value}" for p, value in zip(places, values, strict=True) if value != common]
        if others:
            message = f"{name} differs: most ranks have {common}, {_named(list(dict.fromkeys(others)))}"
            severity = "warning" if name == "GPU" else "error"
            findings.append(
                Finding(
                    "versions of ranks", severity, message, "use one environment and one kind of node for all ranks"
                )
            )
    return findings or [Finding("versions of ranks", "ok", f"equal on {len(places)} ranks")]


def check_matmul_times(places: Sequence[Place]) -> list[Finding]:
    """Return a warning that names the ranks whose matmul takes 1.5 times the median or more."""
    times = {place.rank: place.matmul_seconds for place in places if place.matmul_seconds is not None}
    if len(times) < 2:
        return []
    median = statistics.median(times.values())
    slow = [place for place in places if times.get(place.rank, 0.0) > _SLOW_FACTOR * median]
    if not slow:
        return [Finding("speed of ranks", "ok", f"median matmul {median * 1e3:.3g} ms")]
    slow.sort(key=lambda place: -times[place.rank])
    named = _named([f"rank {one.rank} on {one.node} {times[one.rank] * 1e3:.3g} ms" for one in slow])
    message = f"the median matmul takes {median * 1e3:.3g} ms; slow: {named}"
    return [Finding("speed of ranks", "warning", message, "repeat the check; exclude a node that stays slow")]


def check_cores(places: Sequence[Place]) -> list[Finding]:
    """Return a warning for ranks of one node that share some cores only, and for ranks with one core."""
    findings = []
    single = [f"rank {place.rank} on {place.node}" for place in places if len(place.cores) == 1]
    if single:
        message = f"one CPU core for {_named(single)}: no core for loader workers, checkpoints and NCCL's threads"
        findings.append(Finding("CPU cores", "warning", message, "request more cores per task (--cpus-per-task)"))
    for node in dict.fromkeys(place.node for place in places):
        bindings = [frozenset(place.cores) for place in places if place.node == node]
        if len(set(bindings)) > 1 and len(frozenset().union(*bindings)) < sum(map(len, bindings)):
            message = f"{node}: the CPU bindings of its ranks overlap"
            findings.append(
                Finding("CPU cores", "warning", message, "bind each task to cores of its own (--cpu-bind=cores)")
            )
    fewest = min((len(place.cores) for place in places), default=0)
    return findings or [Finding("CPU cores", "ok", f"at least {fewest} per rank")]


def check_open_files(world_size: int, limit: int | None = None) -> list[Finding]:
    """Return an error if the limit of open files of rank 0, which all ranks connect to, is too low."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    needed = _FILES_OF_A_PROCESS + _FILES_PER_RANK * world_size
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return []
    message = f"open files limited to {limit} on rank 0; {world_size} ranks need {needed}"
    return [Finding("open files", "error", message, f"ulimit -n {needed}, or more")]


def measure_bandwidth(device: torch.device, nodes: Sequence[str], rank: int) -> list[Finding]:
    """Return the bandwidth of an all-reduce over all ranks, and within the nodes. A collective of seconds.

    Args:
        device: of this rank.
        nodes: host of each rank, equal on all ranks.
        rank: this rank.
    """
    if len(nodes) < 2:
        return []
    hosts = list(dict.fromkeys(nodes))
    within, name = None, "within one node" if len(hosts) == 1 else f"across {len(hosts)} nodes"
    if 1 < len(hosts) <= _MAX_NODE_GROUPS and len(nodes) > len(hosts):
        for host in hosts:  # every rank creates every group, which NCCL requires
            group = torch.distributed.new_group([number for number, one in enumerate(nodes) if one == host])
            within = group if host == nodes[rank] else within
    findings = [_bandwidth(device, None, name)]
    return [*findings, _bandwidth(device, within, "within each node")] if within is not None else findings


def _bandwidth(device: torch.device, group: Any, name: str) -> Finding:
    ranks = torch.distributed.get_world_size(group)
    size = _GPU_BYTES if device.type == "cuda" else _CPU_BYTES
    block = torch.ones(size // 4, device=device)
    torch.distributed.all_reduce(block, group=group)  # connects
    seconds = _time(block, group)
    # All ranks repeat equally often: as often as the slowest one can in the time.
    repeats = torch.tensor([max(1.0, min(20.0, _SECONDS / 2 / seconds))], device=device)
    torch.distributed.all_reduce(repeats, op=torch.distributed.ReduceOp.MIN)
    seconds = min([seconds, *(_time(block, group) for _ in range(int(repeats.item())))])
    slowest = torch.tensor([seconds], device=device)
    torch.distributed.all_reduce(slowest, op=torch.distributed.ReduceOp.MAX)
    gigabytes = 2 * (ranks - 1) / max(ranks, 1) * size / slowest.item() / 1e9
    message = (
        f"all-reduce of {size >> 20} MiB {name}: {slowest.item() * 1e3:.3g} ms, bus bandwidth {gigabytes:.3g} GB/s"
    )
    return Finding("bandwidth", "ok", message)


def _time(block: torch.Tensor, group: Any) -> float:
    block.fill_(1.0)
    if block.device.type == "cuda":
        torch.cuda.synchronize(block.device)
    start = time.perf_counter()
    torch.distributed.all_reduce(block, group=group)
    if block.device.type == "cuda":
        torch.cuda.synchronize(block.device)
    return time.perf_counter() - start


def _named(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MAX_NAMED} more" if len(texts) > _MAX_NAMED else ""
    return ", ".join(texts[:_MAX_NAMED]) + more
