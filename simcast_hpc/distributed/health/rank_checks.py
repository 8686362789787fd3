"""All checks on every rank of the launcher, and the report of all nodes."""

import os
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from simcast_hpc.config import SimcastError
from simcast_hpc.distributed.process_group import TorchRanks, join_process_group
from simcast_hpc.distributed.ranks import LauncherError, RankInfo, find_rank

from .build_checks import check_builds
from .comparison_checks import (
    Place,
    check_cores,
    check_matmul_times,
    check_open_files,
    check_versions,
    measure_bandwidth,
    own_versions,
)
from .device_checks import check_clock, check_devices
from .disk_checks import check_space, free_gib
from .environment_checks import check_environment, check_mpi
from .finding import Finding
from .hdf5_checks import check_filters, check_locking

_SIZE = 512
_SKEW_SECONDS = 2.0
_SEVERITIES = ("error", "warning", "ok")


class HealthOptions(NamedTuple):
    """What to check: the run directory and its free space, a data folder (None: not checked), and the timeout."""

    run_dir: Path
    min_free_gib: float = 10.0
    data: Path | None = None
    timeout_minutes: float = 5.0


@dataclass
class RankReport:
    """Findings and measurements of one rank.

    Attributes:
        device: name of the GPU, or ``cpu``; None if the process group could not be joined, like the measurements.
        matmul_seconds: time of a 512 x 512 matmul.
        free_gib: free space for the run.
        threads: CPU threads of torch.
        cores: CPU cores that the process may use.
        cpu_binding: description of how they were chosen.
        versions: of Python, packages, driver and device.
    """

    node: str
    rank: int
    findings: list[Finding]
    device: str | None = None
    matmul_seconds: float | None = None
    free_gib: float | None = None
    threads: int = 0
    cores: list[int] = field(default_factory=list)
    cpu_binding: str = ""
    versions: dict[str, str] = field(default_factory=dict)


class HealthReport(NamedTuple):
    """The launcher, this rank, and the reports of all ranks; only of this one if the ranks could not connect."""

    launcher: str
    rank: int
    ranks: list[RankReport]

    @property
    def healthy(self) -> bool:
        """Whether no check found an error."""
        return not any(finding.severity == "error" for report in self.ranks for finding in report.findings)

    def by_node(self) -> dict[str, list[Finding]]:
        """Return the distinct findings of each node, errors first."""
        findings: dict[str, list[Finding]] = {}
        for report in self.ranks:
            of_node = findings.setdefault(report.node, [])
            of_node += [finding for finding in report.findings if finding not in of_node]
        return {
            node: sorted(those, key=lambda one: _SEVERITIES.index(one.severity)) for node, those in findings.items()
        }


def check_health(environ: Mapping[str, str], options: HealthOptions) -> HealthReport:
    """Run every check on this rank, and return the findings of all ranks on every rank.

    A process group that cannot be joined is a finding, not an exception.
    """
    node = environ.get("SLURMD_NODENAME") or socket.gethostname()
    try:
        rank_info = find_rank(environ)
    except LauncherError as error:
        remedy = "use one launcher, in a shell without the variables of another"
        report = RankReport(node, 0, [Finding("launcher", "error", str(error), remedy)])
        report.findings += check_node(environ, options)
        return HealthReport("unknown", 0, [report])
    report = RankReport(node, rank_info.rank, [*check_environment(environ, rank_info), check_mpi(rank_info)])
    if rank_info.local_rank == 0:
        report.findings += check_node(environ, options)
    critical = ("launcher", "MPI", "Slurm", "network")
    if any(finding.severity == "error" and finding.check in critical for finding in report.findings):
        return HealthReport(rank_info.launcher, rank_info.rank, [report])  # joining would wait until the timeout
    return HealthReport(rank_info.launcher, rank_info.rank, _join_and_check(rank_info, report, options))


def check_node(environ: Mapping[str, str], options: HealthOptions) -> list[Finding]:
    """Check what is equal for all ranks of a node: devices, caches, disks and HDF5."""
    run_dir, gib, temporary = options.run_dir, options.min_free_gib, Path(tempfile.gettempdir())
    run_remedy = "remove old runs, or choose another run directory (--run-dir, run_dir in the configuration)"
    shm_remedy = "data.workers=0, or more shared memory: docker run --ipc=host, or mount -o remount,size=8g /dev/shm"
    findings = [
        *check_devices(environ),
        *check_builds(environ),
        check_space("run directory", run_dir, want_gib=gib, severity="error", remedy=run_remedy),
        check_space("temporary files", temporary, want_gib=1.0, severity="warning", remedy="export TMPDIR=FOLDER"),
        check_filters(environ),
        check_locking(environ, run_dir, reading=False),
    ]
    shared = Path("/dev/shm")
    if shared.is_dir():
        findings.append(
            check_space("shared memory of workers", shared, want_gib=1.0, severity="warning", remedy=shm_remedy)
        )
    if options.data is not None:
        if os.access(options.data, os.R_OK | os.X_OK):
            findings.append(check_locking(environ, options.data, reading=True))
        else:
            message = f"{options.data} is not readable on this node"
            findings.append(Finding("data", "error", message, "mount it, or correct --data (data.root)"))
    return findings


def _join_and_check(rank_info: RankInfo, report: RankReport, options: HealthOptions) -> list[RankReport]:
    try:
        ranks = join_process_group(timeout_minutes=options.timeout_minutes)
    except (SimcastError, RuntimeError, OSError, ImportError) as error:
        message = f"rank {rank_info.rank}: the {rank_info.world_size} ranks did not connect: {error}"
        remedy = "check the output of the other ranks, MASTER_ADDR and MASTER_PORT, and firewalls between the nodes"
        report.findings.append(Finding("ranks", "error", message, remedy))
        return [report]
    try:
        _measure(ranks, report, options)
        reports = ranks.gather(report)
        ranks.barrier()
        clocks = ranks.gather(time.time())
        bandwidth = measure_bandwidth(ranks.device, [one.node for one in reports], ranks.rank)
        compared = [*check_threads(reports), describe_binding(reports), *compare_ranks(reports), *bandwidth]
        for finding in (_check_all_reduce(ranks), check_skew(clocks), *compared):
            if finding is not None:
                reports[0].findings.append(finding)
        return reports
    finally:
        ranks.leave()


def _measure(ranks: TorchRanks, report: RankReport, options: HealthOptions) -> None:
    device = ranks.device
    try:
        report.matmul_seconds = _time_matmul(device)
        report.findings += check_clock(device)
    except (RuntimeError, ArithmeticError) as error:
        remedy = "exclude this node: its device computes wrong results or none"
        report.findings.append(Finding("arithmetic", "error", f"rank {report.rank}: {error}", remedy))
    report.free_gib = free_gib(options.run_dir)
    report.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report.versions = own_versions(device)
    report.threads, report.cores = torch.get_num_threads(), sorted(os.sched_getaffinity(0))
    report.cpu_binding = ranks.cpu_binding


def _time_matmul(device: torch.device) -> float:
    """Return the seconds of the fastest of five matmuls of integers, whose result is exact in any order of summation.

    Raises:
        ArithmeticError: the result of the device is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-8, 9, (_SIZE, _SIZE), generator=generator) for _ in range(2))
    on_device = left.float().to(device), right.float().to(device)
    result = on_device[0] @ on_device[1]
    if not torch.equal(result.cpu().long(), left @ right):
        raise ArithmeticError(f"a matmul on {device} gives a wrong result")
    times = []
    for _ in range(5):  # the fastest, since other programs disturb a single one
        start = time.perf_counter()
        (on_device[0] @ on_device[1]).sum().item()
        times.append(time.perf_counter() - start)
    return min(times)


def _check_all_reduce(ranks: TorchRanks) -> Finding:
    size = ranks.size
    total = ranks.mean(torch.tensor(float(ranks.rank), device=ranks.device)).item() * size
    if round(total) != size * (size - 1) // 2:
        message = f"an all-reduce over {size} ranks gave {total} instead of {size * (size - 1) // 2}"
        return Finding("ranks", "error", message, "check the network and its library: set NCCL_DEBUG=INFO")
    return Finding("ranks", "ok", f"all-reduce over {size} ranks by {torch.distributed.get_backend()} is correct")


def compare_ranks(reports: list[RankReport]) -> list[Finding]:
    """Return what differs between the ranks, or exceeds a limit at their number."""
    places = [Place(one.rank, one.node, one.versions, one.matmul_seconds, tuple(one.cores)) for one in reports]
    return [*check_versions(places), *check_matmul_times(places), *check_cores(places), *check_open_files(len(reports))]


def check_skew(clocks: list[float]) -> Finding | None:
    """Return a warning if system clocks, in seconds and read after a barrier, differ by more than 2 s."""
    skew = max(clocks) - min(clocks)
    if skew <= _SKEW_SECONDS:
        return None
    message = f"system clocks differ by {skew:.1f} s; that of rank {clocks.index(min(clocks))} is behind"
    remedy = "synchronize the clocks of the nodes (chrony, ntp): logs and files carry their times"
    return Finding("system clock", "warning", message, remedy)


def check_threads(reports: list[RankReport]) -> list[Finding]:
    """Return a warning for each node whose ranks use more CPU threads than they have cores."""
    findings = []
    for node in dict.fromkeys(report.node for report in reports):
        of_node = [report for report in reports if report.node == node]
        threads, cores = sum(one.threads for one in of_node), len({core for one in of_node for core in one.cores})
        if len(of_node) > 1 and threads > cores:
            message = f"{node}: {len(of_node)} ranks use {threads} threads on {cores} cores"
            remedy = f"export OMP_NUM_THREADS={max(1, cores // len(of_node))}"
            findings.append(Finding("threads", "warning", message, remedy))
    return findings


def describe_binding(reports: list[RankReport]) -> Finding:
    """Return the CPUs of each rank by node; nodes with the same binding share one text."""
    nodes: dict[str, list[str]] = {}
    for node in dict.fromkeys(report.node for report in reports):
        of_node = [report for report in reports if report.node == node]
        texts = [report.cpu_binding for report in of_node]
        if len(set(texts)) > 1:
            texts = [f"local rank {index}: {text}" for index, text in enumerate(texts)]
        nodes.setdefault("; ".join(dict.fromkeys(texts)), []).append(node)
    message = ". ".join(
        f"{names[0]}{f' and {len(names) - 1} more nodes' if len(names) > 1 else ''}: {text}"
        for text, names in nodes.items()
    )
    return Finding("CPU binding", "ok", message)
