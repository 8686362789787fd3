"""The ranks of a program as one protocol, whether torch.distributed, MPI or nothing connects them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from simcast_hpc.config import SimcastError

from .rank_info import LauncherError, find_rank


class Ranks(Protocol):
    """This process among ``size`` processes. Every method is a collective."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes what all ranks share."""
        return self.rank == 0

    def gather(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on every rank."""
        ...

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block without collectives; if it fails on any rank, it fails on all, so that no rank waits forever.

        Raises:
            SimcastError: on the ranks whose own block succeeded, with the message of a rank that failed.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        messages = self.gather(None if failure is None else f"rank {self.rank}: {failure}")
        if failure is not None:
            raise failure
        if any(messages):
            raise SimcastError(next(message for message in messages if message))


class SingleRank(Ranks):
    """One process without a launcher."""

    rank, size = 0, 1

    def gather(self, thing: Any) -> list[Any]:
        """Return a list of ``thing`` only."""
        return [thing]


class MPIRanks(Ranks):
    """The ranks of an MPI communicator: for programs that hold no model, such as data preparation."""

    def __init__(self, communicator: Any):
        self.rank, self.size, self._communicator = communicator.rank, communicator.size, communicator

    def gather(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on every rank."""
        return self._communicator.allgather(thing)


def join_mpi_ranks() -> Ranks:
    """Return the ranks that ``mpiexec`` or ``srun`` started; without a launcher, a single rank.

    Raises:
        LauncherError: another launcher started several ranks, or MPI and the launcher disagree about their number.
    """
    rank_info = find_rank(os.environ)
    if rank_info.world_size == 1:
        return SingleRank()
    if rank_info.launcher not in ("srun",) and not rank_info.launcher.startswith("mpiexec"):
        raise LauncherError(
            f"{rank_info.launcher} started {rank_info.world_size} ranks; this command wants mpiexec, srun or none"
        )
    from mpi4py import MPI

    communicator = MPI.COMM_WORLD
    if communicator.size != rank_info.world_size:
        raise LauncherError(
            f"mpi4py sees {communicator.size} ranks where {rank_info.launcher} started {rank_info.world_size}: "
            "mpi4py and the launcher belong to different MPI libraries (srun --mpi=pmi2 is MPICH's, pmix is Open MPI's)"
        )
    return MPIRanks(communicator)
