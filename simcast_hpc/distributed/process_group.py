"""Joining the other ranks: one process group, made once, with a finite timeout; and what is said over it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from .failure import fail_together
from .rank_info import Place, PlaceError, find_place


class World:
    """The ranks of this run and the few things they say to one another. Every method is a collective."""

    def __init__(self, place: Place, device: torch.device):
        self.place, self.device = place, device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes logs and markers."""
        return self.place.rank == 0

    def maximum(self, values: torch.Tensor) -> list[float]:
        """Return the element-wise maximum over the ranks of float32 ``[n]``. Waits for the device."""
        values = values.to(self.device)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        return values.tolist()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over the ranks, in float32, on the device."""
        total = value.detach().float().clone()
        torch.distributed.all_reduce(total)
        return total / self.place.world_size

    def gather(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on every rank."""
        things: list[Any] = [None] * self.place.world_size
        torch.distributed.all_gather_object(things, thing)
        return things

    def broadcast(self, thing: Any) -> Any:
        """Return rank 0's picklable ``thing`` on every rank."""
        box = [thing]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        torch.distributed.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block that holds no collective; if it fails on any rank it ends on all, and none waits for it.

        Raises:
            SimcastError: on the ranks whose own block went well, with what another rank said.
        """
        with fail_together(self.place.rank, self.gather):
            yield

    def leave(self) -> None:
        """End the process group; the last thing a rank does."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def join(*, timeout_minutes: float) -> World:
    """Join the ranks that the launcher started and return the world they form.

    Raises:
        PlaceError: the launcher's variables are half set, or the group has another size than they promise.
    """
    place = find_place(os.environ)
    if place.launcher.startswith("mpiexec"):
        _meet_by_mpi(place)
    elif place.launcher == "none" or (place.world_size == 1 and "MASTER_PORT" not in os.environ):
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ["MASTER_PORT"] = "0"  # alone: the store may take any free port, since nobody else looks for it
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise PlaceError(f"{place.launcher} started {place.world_size} ranks but {name} is not set; export it")
    names = {"RANK": place.rank, "WORLD_SIZE": place.world_size, "LOCAL_RANK": place.local_rank}
    os.environ.update({name: str(value) for name, value in names.items()})
    device = own_device(place)
    deepspeed = import_deepspeed()
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        timeout=timedelta(minutes=timeout_minutes),
        verbose=False,
    )
    size = torch.distributed.get_world_size()
    if size != place.world_size:
        raise PlaceError(f"the process group has {size} ranks, {place.launcher} promised {place.world_size}")
    return World(place, device)


def import_deepspeed() -> Any:
    """Import DeepSpeed, quietly, without the CPU operator that it would otherwise compile at every first start."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import logging

    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        # Only inference all-reduces use it; building it takes a minute and leaves a lock behind when killed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def own_device(place: Place) -> torch.device:
    """Return this process's device, made the current one where it is a GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # A launcher may show each rank one device only; then every local rank takes device 0.
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _meet_by_mpi(place: Place) -> None:
    """Agree over MPI on an address and a free port of rank 0, so that two jobs on a node never collide."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.size != place.world_size:
        raise PlaceError(
            f"mpi4py sees {world.size} ranks where {place.launcher} started {place.world_size}: "
            "mpi4py and the launcher belong to different MPI libraries; `simcast doctor` under this launcher says which"
        )
    hosts = world.allgather(socket.gethostname())
    port = None
    if world.rank == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
    os.environ["MASTER_PORT"] = str(world.bcast(port))
    os.environ["MASTER_ADDR"] = "127.0.0.1" if len(set(hosts)) == 1 else hosts[0]
