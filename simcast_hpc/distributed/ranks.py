"""Ranks of an MPI program that holds no model: preparation of data. One rank where no launcher shows."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .failure import fail_together
from .rank_info import PlaceError, find_place


class Ranks:
    """This process among ``size``; with one, nothing of MPI is loaded. Every method is a collective."""

    def __init__(self, rank: int, size: int, communicator: Any = None):
        self.rank, self.size, self._communicator = rank, size, communicator

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes what is of all."""
        return self.rank == 0

    def gather(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on every rank."""
        return [thing] if self._communicator is None else self._communicator.allgather(thing)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block that holds no collective; if it fails on any rank it ends on all, and none waits for it.

        Raises:
            SimcastError: on the ranks whose own block went well, with what another rank said.
        """
        with fail_together(self.rank, self.gather):
            yield


def join_ranks() -> Ranks:
    """Return the ranks that ``mpiexec`` or ``srun`` started.

    Raises:
        PlaceError: another launcher started several, or MPI sees another number of ranks than the launcher.
    """
    place = find_place(os.environ)
    if place.world_size == 1:
        return Ranks(0, 1)
    if place.launcher not in ("srun",) and not place.launcher.startswith("mpiexec"):
        raise PlaceError(f"{place.launcher} started {place.world_size} ranks; this command wants mpiexec, srun or none")
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.size != place.world_size:
        raise PlaceError(
            f"mpi4py sees {world.size} ranks where {place.launcher} started {place.world_size}: "
            "mpi4py and the launcher belong to different MPI libraries (srun --mpi=pmi2 is MPICH's, pmix is Open MPI's)"
        )
    return Ranks(world.rank, world.size, world)
