"""The torch process group of a program: joined once with a finite timeout, and its collectives."""

import atexit
import logging
import os
import socket
import sys
from datetime import timedelta
from typing import Any

import torch

from .rank_devices import local_device, reject_device_conflicts
from .ranks import SINGLE_RANK, LauncherError, RankInfo, Ranks, find_rank, mpi_communicator

_joined_ranks = 1


class TorchRanks(Ranks):
    """The ranks of a torch process group. Every method is a collective."""

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device

    def maximum(self, values: torch.Tensor) -> list[float]:
        """Return the element-wise maximum over the ranks of float32 ``[n]``. Synchronizes with the device."""
        values = values.to(self.device)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        return values.tolist()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over the ranks, float32 on the device."""
        total = value.detach().float().clone()
        torch.distributed.all_reduce(total)
        return total / self.size

    def gather(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on every rank."""
        things: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(things, thing)
        return things

    def broadcast(self, thing: Any) -> Any:
        """Return rank 0's picklable ``thing`` on every rank."""
        box = [thing]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch.distributed.barrier()

    def leave(self) -> None:
        """Destroy the process group; the last call of a program."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def join_ranks(*, timeout_minutes: float) -> Ranks:
    """Return the ranks that the launcher started: a process group, or a single rank without one.

    Raises:
        LauncherError: see :func:`join_process_group`.
    """
    if find_rank(os.environ).world_size == 1:
        return SINGLE_RANK
    return join_process_group(timeout_minutes=timeout_minutes)


def join_process_group(*, timeout_minutes: float) -> TorchRanks:
    """Join the process group of the ranks that the launcher started.

    Raises:
        LauncherError: the launcher's variables are incomplete, the group has another size than they specify, or the
            devices of the ranks do not fit together.
    """
    rank_info = find_rank(os.environ)
    if rank_info.launcher.startswith("mpiexec"):
        _set_master_by_mpi(rank_info)
    elif rank_info.launcher == "none" or (rank_info.world_size == 1 and "MASTER_PORT" not in os.environ):
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ["MASTER_PORT"] = "0"  # a single rank: no other process looks for the store, so any free port does
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise LauncherError(
                f"{rank_info.launcher} started {rank_info.world_size} ranks but {name} is not set; export it"
            )
    names = {"RANK": rank_info.rank, "WORLD_SIZE": rank_info.world_size, "LOCAL_RANK": rank_info.local_rank}
    os.environ.update({name: str(value) for name, value in names.items()})
    timeout = timedelta(minutes=timeout_minutes)
    store = reject_device_conflicts(rank_info, timeout=timeout) if rank_info.world_size > 1 else None
    device = local_device(rank_info)
    if device.type == "cuda":
        # DeepSpeed uses LOCAL_RANK as the number of the device, and asserts that Open MPI's variable is equal.
        for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):
            if name in os.environ:
                os.environ[name] = str(device.index)
    deepspeed = import_deepspeed()
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        timeout=timeout,
        verbose=False,
    )
    del store  # the process group has its own connection to the server
    global _joined_ranks
    _joined_ranks = size = torch.distributed.get_world_size()
    if size != rank_info.world_size:
        raise LauncherError(f"the process group has {size} ranks, but {rank_info.launcher} set {rank_info.world_size}")
    return TorchRanks(rank_info.rank, rank_info.world_size, device)


def end_rank(status: int) -> None:
    """End one of several ranks without the interpreter's shutdown; return at once in a single process.

    A thread of Gloo that still releases tensors while the interpreter shuts down can abort the process (SIGABRT), and
    the launcher would report a failure of finished work. Exit functions and MPI's end run as usual.
    """
    if _joined_ranks == 1:
        return
    atexit._run_exitfuncs()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def import_deepspeed() -> Any:
    """Import DeepSpeed with warnings only and without the CPU operator that it would compile at the first start."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        # Only inference all-reduces use it; building it takes a minute and leaves a lock behind when killed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _set_master_by_mpi(rank_info: RankInfo) -> None:
    """Broadcast the address and a free port of rank 0 over MPI, so that two jobs on a node never use one port."""
    communicator = mpi_communicator(rank_info)
    hosts = communicator.allgather(socket.gethostname())
    port = None
    if communicator.rank == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
    os.environ["MASTER_PORT"] = str(communicator.bcast(port))
    os.environ["MASTER_ADDR"] = "127.0.0.1" if len(set(hosts)) == 1 else hosts[0]
