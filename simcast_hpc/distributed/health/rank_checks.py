"""All checks on every rank that the launcher started; the node of each finding is kept."""

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
from .device_checks import check_clock, check_devices
from .disk_checks import check_space, free_gib
from .environment_checks import check_mpi, check_surroundings
from .finding import Finding
from .hdf5_checks import check_filters, check_locking

_SIZE = 512
_SKEW_SECONDS = 2.0


class Asked(NamedTuple):
    """What is asked of each node: room for ``run_dir``, ``data`` to read (None: no matter), and patience."""

    run_dir: Path
    min_free_gib: float = 10.0
    data: Path | None = None
    timeout_minutes: float = 5.0


@dataclass
class RankReport:
    """What one rank found, and where the ranks met what it measured.

    Measured are a product of 512 x 512 matrices, free space for the run, and threads and cores of the CPU.
    """

    node: str
    rank: int
    findings: list[Finding]
    device: str | None = None
    matmul_seconds: float | None = None
    free_gib: float | None = None
    threads: int = 0
    cores: list[int] = field(default_factory=list)


class Examined(NamedTuple):
    """The launcher, this rank, and the reports in rank order; of all ranks where they met, else of this one alone."""

    launcher: str
    rank: int
    reports: list[RankReport]

    @property
    def fit(self) -> bool:
        """Whether nothing was found that would end, hang or falsify a run."""
        return not any(one.severity == "error" for report in self.reports for one in report.findings)

    def by_node(self) -> dict[str, list[Finding]]:
        """Return the findings of each node, each once, errors first."""
        found: dict[str, list[Finding]] = {}
        for report in self.reports:
            of_node = found.setdefault(report.node, [])
            of_node += [one for one in report.findings if one not in of_node]
        order = ("error", "warning", "ok")
        return {node: sorted(those, key=lambda one: order.index(one.severity)) for node, those in found.items()}


def examine(environ: Mapping[str, str], asked: Asked) -> Examined:
    """Run every check on this rank, let the ranks meet, and return what all of them found, on every rank.

    Ranks that cannot meet are themselves a finding: nothing is raised for it.
    """
    node = environ.get("SLURMD_NODENAME") or socket.gethostname()
    try:
        rank_info = find_rank(environ)
    except LauncherError as error:
        do = "start by one launcher, in a shell where no other's variables are left"
        report = RankReport(node, 0, [Finding("launcher", "error", str(error), do)])
        report.findings += check_node(environ, asked)
        return Examined("unknown", 0, [report])
    mine = RankReport(node, rank_info.rank, [*check_surroundings(environ, rank_info), check_mpi(rank_info)])
    if rank_info.local_rank == 0:
        mine.findings += check_node(environ, asked)
    if any(one.severity == "error" and one.check in ("launcher", "MPI", "Slurm", "network") for one in mine.findings):
        return Examined(rank_info.launcher, rank_info.rank, [mine])  # the ranks would wait for one another in vain
    return Examined(rank_info.launcher, rank_info.rank, _meet(rank_info, mine, asked))


def check_node(environ: Mapping[str, str], asked: Asked) -> list[Finding]:
    """Return what is the same for every rank of a node: devices, caches, disks, HDF5."""
    run_dir, gib = asked.run_dir, asked.min_free_gib
    make_room = "remove old runs, or name another run folder (--run-dir, run_dir in the configuration)"
    shm_do = "data.workers=0, or more shared memory: docker run --ipc=host, or mount -o remount,size=8g /dev/shm"
    found = [
        *check_devices(environ),
        *check_builds(environ),
        check_space("the run folder", run_dir, want_gib=gib, severity="error", do=make_room),
        check_space(
            "temporary files", Path(tempfile.gettempdir()), want_gib=1.0, severity="warning", do="export TMPDIR=FOLDER"
        ),
        check_filters(environ),
        check_locking(environ, run_dir, reading=False),
    ]
    if Path("/dev/shm").is_dir():
        found.append(
            check_space("workers' shared memory", Path("/dev/shm"), want_gib=1.0, severity="warning", do=shm_do)
        )
    if asked.data is not None:
        if os.access(asked.data, os.R_OK | os.X_OK):
            found.append(check_locking(environ, asked.data, reading=True))
        else:
            said = f"{asked.data} cannot be read from this node"
            found.append(Finding("data", "error", said, "mount it, or correct --data (data.root)"))
    return found


def _meet(rank_info: RankInfo, mine: RankReport, asked: Asked) -> list[RankReport]:
    try:
        ranks = join_process_group(timeout_minutes=asked.timeout_minutes)
    except (SimcastError, RuntimeError, OSError, ImportError) as error:
        said = f"rank {rank_info.rank}: the {rank_info.world_size} ranks did not meet: {error}"
        do = "look at the other ranks' output, at MASTER_ADDR and MASTER_PORT, and at firewalls between the nodes"
        mine.findings.append(Finding("ranks", "error", said, do))
        return [mine]
    try:
        _measure(ranks, mine, asked)
        reports = ranks.gather(mine)
        ranks.barrier()
        clocks = ranks.gather(time.time())
        for found in (_check_sum(ranks), check_skew(clocks), *check_threads(reports)):
            if found is not None:
                reports[0].findings.append(found)
        return reports
    finally:
        ranks.leave()


def _measure(ranks: TorchRanks, mine: RankReport, asked: Asked) -> None:
    device = ranks.device
    try:
        mine.matmul_seconds = _matmul(device)
        mine.findings += check_clock(device)
    except (RuntimeError, ArithmeticError) as error:
        do = "leave this node out: its device computes wrongly or not at all"
        mine.findings.append(Finding("arithmetic", "error", f"rank {mine.rank}: {error}", do))
    mine.free_gib = free_gib(asked.run_dir)
    mine.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    mine.threads, mine.cores = torch.get_num_threads(), sorted(os.sched_getaffinity(0))


def _matmul(device: torch.device) -> float:
    """Multiply whole numbers, whose product is exact in any order, and return the seconds of one multiplication.

    Raises:
        ArithmeticError: the device computes wrongly.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-8, 9, (_SIZE, _SIZE), generator=generator) for _ in range(2))
    on_device = left.float().to(device), right.float().to(device)
    got = on_device[0] @ on_device[1]
    if not torch.equal(got.cpu().long(), left @ right):
        raise ArithmeticError(f"{device} multiplies matrices wrongly")
    since = time.perf_counter()
    (on_device[0] @ on_device[1]).sum().item()
    return time.perf_counter() - since


def _check_sum(ranks: TorchRanks) -> Finding:
    size = ranks.size
    total = ranks.mean(torch.tensor(float(ranks.rank), device=ranks.device)).item() * size
    if round(total) != size * (size - 1) // 2:
        said = f"an all-reduce of the {size} ranks gave {total}, not {size * (size - 1) // 2}"
        return Finding("ranks", "error", said, "the network or its library is at fault: try NCCL_DEBUG=INFO")
    backend = torch.distributed.get_backend()
    return Finding("ranks", "ok", f"{size} met over {backend} and added up as they should")


def check_skew(clocks: list[float]) -> Finding | None:
    """Return a warning where the ranks' clocks, seconds read after one barrier, are apart by more than the wait."""
    skew = max(clocks) - min(clocks)
    if skew <= _SKEW_SECONDS:
        return None
    late = clocks.index(min(clocks))
    said = f"the ranks' clocks differ by {skew:.1f} s; the one of rank {late} is behind"
    return Finding(
        "system clock", "warning", said, "set the nodes' clocks (chrony, ntp): logs and files bear their times"
    )


def check_threads(reports: list[RankReport]) -> list[Finding]:
    """Return the nodes whose ranks start more threads on the CPU than they have cores between them."""
    found = []
    for node in dict.fromkeys(report.node for report in reports):
        those = [report for report in reports if report.node == node]
        threads, cores = sum(one.threads for one in those), len({core for one in those for core in one.cores})
        if len(those) > 1 and threads > cores:
            said = f"{node}: {len(those)} ranks with {threads} threads on {cores} cores slow one another down"
            do = f"export OMP_NUM_THREADS={max(1, cores // len(those))}"
            found.append(Finding("threads", "warning", said, do))
    return found
