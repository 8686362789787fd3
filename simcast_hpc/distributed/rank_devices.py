"""The device of each rank: one CUDA device per rank, or the CPU on all ranks.

A launcher shows a task either all devices of its node, of which each rank takes the one of its local rank, or only the
task's own (``srun --gpus-per-task=1``, ``--gpu-bind=single:1``), which then is device 0 of every rank. Ranks that do
not fit together would hang in the first collective, so they compare their devices before the process group exists.
"""

import json
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from simcast_hpc.storage.compile_caches import check_caches

from .ranks import LauncherError, RankInfo

logger = logging.getLogger(__name__)


class RankDevice(NamedTuple):
    """What one rank reports: its visible CUDA devices, and the UUID of the one that it would take (None: unknown)."""

    rank: int
    local_rank: int
    host: str
    visible: int
    uuid: str | None


def local_device(rank_info: RankInfo) -> torch.device:
    """Return this process's device; a CUDA device becomes the current device.

    Raises:
        LauncherError: the local rank exceeds the visible devices.
        UntrustedFolderError: the device is a GPU, and another user can write to a cache of compiled kernels.
    """
    visible = _visible_devices()
    if visible == 0:
        if torch.version.cuda is not None and rank_info.rank == 0:
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
            logger.warning(
                "torch finds no CUDA device%s; running on the CPU",
                "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden!r})",
            )
        return torch.device("cpu")
    if problem := _local_problem(RankDevice(rank_info.rank, rank_info.local_rank, socket.gethostname(), visible, None)):
        raise LauncherError(problem)
    check_caches(os.environ, kernels=True)
    device = torch.device("cuda", _device_index(rank_info.local_rank, visible))
    torch.cuda.set_device(device)
    return device


def compare_devices(rank_info: RankInfo, store: Any) -> int:
    """Compare the devices of all ranks before one is used, and return the number of ranks on this node.

    A collective over the store of the rendezvous.

    Raises:
        LauncherError: on every rank: some ranks have a device and others none, a local rank exceeds the visible
            devices, or two ranks have the same device.
    """
    counter = f"ranks of {socket.gethostname()}"
    store.add(counter, 1)
    store.set(f"device/{rank_info.rank}", json.dumps(_report(rank_info)))
    ranks = range(rank_info.world_size)
    if rank_info.rank == 0:
        reports = [RankDevice(*json.loads(store.get(f"device/{rank}"))) for rank in ranks]
        store.set("problem", find_conflict(reports))
    problem = store.get("problem").decode()
    if problem:
        store.set(f"read/{rank_info.rank}", "")
        if rank_info.rank == 0:  # its process is the server
            with suppress(RuntimeError):
                store.wait([f"read/{rank}" for rank in ranks], timedelta(seconds=30))
        raise LauncherError(problem)
    return store.add(counter, 0)  # rank 0 has read the reports of all ranks, so all have counted


def find_conflict(reports: Sequence[RankDevice]) -> str:
    """Return a message that names the ranks whose devices do not fit together, or an empty string."""
    with_device = [report for report in reports if report.visible]
    without = [report for report in reports if not report.visible]
    if with_device and without:
        has, lacks = with_device[0], without[0]
        return (
            f"rank {lacks.rank} on {lacks.host} sees no CUDA device, but rank {has.rank} on {has.host} sees "
            f"{has.visible}; give every rank a device or none (GPU options of the launcher, CUDA_VISIBLE_DEVICES)"
        )
    for report in reports:
        if problem := _local_problem(report):
            return problem
    owners: dict[tuple[str, str], RankDevice] = {}
    for report in reports:
        if report.uuid is None:
            continue
        other = owners.setdefault((report.host, report.uuid), report)
        if other is not report:
            return (
                f"ranks {other.rank} and {report.rank} use the same CUDA device of {report.host} (local ranks "
                f"{other.local_rank} and {report.local_rank}, {report.visible} visible); start one rank per device"
            )
    return ""


def _report(rank_info: RankInfo) -> RankDevice:
    visible, uuid = _visible_devices(), None
    if visible == 1 or rank_info.local_rank < visible:
        index = _device_index(rank_info.local_rank, visible)
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return RankDevice(
        rank_info.rank, rank_info.local_rank, socket.gethostname(), visible, None if uuid is None else str(uuid)
    )


def _local_problem(report: RankDevice) -> str:
    if report.visible <= 1 or report.local_rank < report.visible:
        return ""
    return (
        f"rank {report.rank} has local rank {report.local_rank} on {report.host}, where {report.visible} CUDA devices "
        f"are visible; start at most {report.visible} ranks on this node, or show each rank only its own device"
    )


def _device_index(local_rank: int, visible: int) -> int:
    return 0 if visible == 1 else local_rank


def _visible_devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
