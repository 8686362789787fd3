"""The torch process group of a program: joined once with a finite timeout, and its collectives."""

import atexit
import importlib
import logging
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from simcast_hpc.storage.compile_caches import check_caches

from .cpu_binding import bind_rank, read_cpu_binding
from .rank_devices import compare_devices, local_device
from .ranks import SINGLE_RANK, LauncherError, RankInfo, Ranks, find_rank, mpi_communicator
from .rendezvous import listen, open_store

_distributed: Any = torch.distributed  # its stores are not among the names that it declares
_joined_ranks = 1


class TorchRanks(Ranks):
    """The ranks of a torch process group. Every method is a collective.

    Attributes:
        cpu_binding: a description of the CPUs to which this rank is bound.
    """

    def __init__(self, rank: int, size: int, device: torch.device, store: Any = None, *, cpu_binding: str = ""):
        self.rank, self.size, self.device, self._store = rank, size, device, store
        self.cpu_binding = cpu_binding

    def connect_to_store(self, *, timeout_seconds: float) -> Any:
        """Return a connection of its own to the store of the rendezvous, in which keys wait this long.

        Operations of other connections, which may block, do not block it. Not a collective.
        """
        connection = _distributed.PrefixStore("simcast", self._store.clone())
        connection.set_timeout(timedelta(seconds=timeout_seconds))
        return connection

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

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the ranks, on the device; ``tensor`` may be changed."""
        total = tensor.to(self.device)
        torch.distributed.all_reduce(total)
        return total

    def table(self, row: list[float]) -> torch.Tensor:
        """Return the ``n`` numbers of every rank, float32 ``[size, n]`` in host memory, by one small all-gather."""
        own = torch.tensor(row, dtype=torch.float32).to(self.device)
        rows = own.new_empty(self.size * len(row))
        torch.distributed.all_gather_into_tensor(rows, own)
        return rows.view(self.size, len(row)).cpu()

    def broadcast(self, thing: Any) -> Any:
        """Return rank 0's picklable ``thing`` on every rank."""
        box = [thing]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def to_first(self, thing: Any, *, sender: int) -> Any:
        """Return the picklable ``thing`` of rank ``sender`` on rank 0, and None on all others.

        Only these two ranks communicate; the others return at once.
        """
        if sender == 0:
            return thing if self.is_first else None
        box = [thing]
        if self.rank == sender:
            torch.distributed.send_object_list(box, dst=0, device=self.device)
        elif self.is_first:
            torch.distributed.recv_object_list(box, src=sender, device=self.device)
            return box[0]
        return None

    def gather_on_first(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on rank 0, and an empty list on all others.

        Ranks with None send nothing. Rank 0 receives from one rank after another, so that its device holds one at a
        time; a gather of torch would pad all of them to the largest, and an all-gather would do so on every rank.
        """
        sends = torch.zeros(self.size)
        sends[self.rank] = thing is not None
        sends = self.maximum(sends)
        things = [self.to_first(thing, sender=rank) if sends[rank] else None for rank in range(self.size)]
        return things if self.is_first else []

    def broadcast_tensor(self, tensor: torch.Tensor | None, shape: torch.Size, *, source: int) -> torch.Tensor:
        """Return the float32 tensor ``shape`` of rank ``source`` on every rank, on the device."""
        if self.rank == source:
            assert tensor is not None and tensor.shape == shape
            buffer = tensor.detach().to(self.device, torch.float32).contiguous().clone()
        else:
            buffer = torch.empty(shape, dtype=torch.float32, device=self.device)
        torch.distributed.broadcast(buffer, src=source)
        return buffer

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch.distributed.barrier()

    def leave(self) -> None:
        """Destroy the process group; the last call of a program."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if (deepspeed := sys.modules.get("deepspeed")) is not None:
            # DeepSpeed keeps the groups of the first process group; a second run of this process would use them.
            importlib.reload(sys.modules["deepspeed.utils.groups"])
            deepspeed.comm.comm.cdb = None


def join_ranks(*, timeout_minutes: float) -> Ranks:
    """Return the ranks that the launcher started: a process group, or a single rank without one.

    Raises:
        LauncherError: see :func:`join_process_group`.
    """
    if find_rank(os.environ).world_size == 1:
        return SINGLE_RANK
    return join_process_group(timeout_minutes=timeout_minutes)


def join_process_group(*, timeout_minutes: float) -> TorchRanks:
    """Join the process group of the ranks that the launcher started, and bind this rank to its CPUs.

    Raises:
        LauncherError: the launcher's variables are incomplete, the group has another size than they specify, the
            devices of the ranks do not fit together, or ``SIMCAST_CPU_BINDING`` is invalid.
    """
    read_cpu_binding(os.environ)  # before the ranks wait for one another
    # 1. The store, through which the ranks find one another
    rank_info, timeout = find_rank(os.environ), timedelta(minutes=timeout_minutes)
    listener = None
    if rank_info.is_mpi and rank_info.world_size > 1:
        listener = _listen_and_broadcast(rank_info)
    names = {"RANK": rank_info.rank, "WORLD_SIZE": rank_info.world_size, "LOCAL_RANK": rank_info.local_rank}
    os.environ.update({name: str(value) for name, value in names.items()})
    store = open_store(rank_info, timeout=timeout, listener=listener)
    # 2. The device of this rank, and CPUs near it
    local_ranks = 1
    if rank_info.world_size > 1:
        local_ranks = compare_devices(rank_info, store)
    device = local_device(rank_info)
    cpu_binding = bind_rank(rank_info, device, local_ranks=local_ranks, environ=os.environ)
    if device.type == "cuda":
        # DeepSpeed uses LOCAL_RANK as the number of the device, and asserts that Open MPI's variable is equal.
        for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):
            if name in os.environ:
                os.environ[name] = str(device.index)
    # 3. The process group, which DeepSpeed then uses
    deepspeed = import_deepspeed()
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=rank_info.rank,
        world_size=rank_info.world_size,
        timeout=timeout,
        # A group that is bound to a device splits its communicator for later groups; a single rank needs none.
        device_id=device if device.type == "cuda" and rank_info.world_size > 1 else None,
    )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    global _joined_ranks
    _joined_ranks = size = torch.distributed.get_world_size()
    if size != rank_info.world_size:
        raise LauncherError(f"the process group has {size} ranks, but {rank_info.launcher} set {rank_info.world_size}")
    return TorchRanks(rank_info.rank, rank_info.world_size, device, store, cpu_binding=cpu_binding)


def set_flight_recorder(folder: Path) -> None:
    """Let NCCL's flight recorder write to ``folder`` when a collective times out; call it before joining.

    A file per rank lists its last collectives: ``python -m torch.distributed.flight_recorder.fr_trace FOLDER -p
    nccl_trace_rank_`` finds the one on which ranks disagree. Variables that the user has set are kept.
    """
    prefix = str(folder.absolute() / "nccl_trace_rank_")
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", os.environ.get("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"))
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", os.environ.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", prefix))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


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
    """Import DeepSpeed with warnings only and without the CPU operator that it would compile at the first start.

    Raises:
        UntrustedFolderError: another user can write to a cache of compiled operators or kernels.
    """
    check_caches(os.environ, kernels=torch.cuda.is_available())
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        # Only inference all-reduces use it; building it takes a minute and leaves a lock behind when killed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _listen_and_broadcast(rank_info: RankInfo) -> socket.socket | None:
    """Listen on rank 0 and broadcast its address and port over MPI, so that two jobs on a node never use one port."""
    communicator = mpi_communicator(rank_info)
    hosts = communicator.allgather(socket.gethostname())
    one_node = len(set(hosts)) == 1
    host = "127.0.0.1" if one_node else hosts[0]
    listener: socket.socket | None = None
    port: int | None = None
    if communicator.rank == 0:
        listener = listen(host, 0, one_node=one_node)
        port = listener.getsockname()[1]
    os.environ["MASTER_PORT"] = str(communicator.bcast(port))
    os.environ["MASTER_ADDR"] = host
    return listener
