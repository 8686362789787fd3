"""The ranks of a program: the launcher's variables of this process, and one protocol for torch, MPI and one process."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from simcast_hpc.config import SimcastError


class LauncherError(SimcastError, RuntimeError):
    """The launcher's environment variables are incomplete, invalid or contradict the number of ranks."""


@dataclass(frozen=True)
class RankInfo:
    """Process rank, world size, rank on this node, and the launcher whose variables they were read from."""

    rank: int
    world_size: int
    local_rank: int
    launcher: str

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise LauncherError(f"{self.launcher} set rank {self.rank} of {self.world_size}; valid are 0 .. size - 1")


# Launcher, the variable that identifies it, then those of rank, world size and local rank. The order matters: torchrun
# inside a Slurm or MPI job sets the first three, and then its ranks are meant.
_LAUNCHERS = (
    ("torchrun or deepspeed", "RANK", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("mpiexec (MPICH)", "PMI_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("mpiexec (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("srun", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)  # fmt: skip


def find_rank(environ: Mapping[str, str]) -> RankInfo:
    """Return the rank that the launcher's variables describe; rank 0 of 1 without a launcher.

    Raises:
        LauncherError: a variable of the launcher is missing or not a number.
    """
    for launcher, identifying, *names in _LAUNCHERS:
        if identifying not in environ or (identifying == "PMI_RANK" and _is_set_by_slurm(environ)):
            continue
        values = []
        for name in names:
            text = environ.get(name)
            if text is None:
                raise LauncherError(f"{identifying} is set, so {launcher} started this process, but {name} is not set")
            if not text.isdigit():
                raise LauncherError(f"{name}={text!r} is not a number; {launcher} sets it")
            values.append(int(text))
        return RankInfo(*values, launcher=launcher)
    if "WORLD_SIZE" in environ:
        raise LauncherError(f"WORLD_SIZE={environ['WORLD_SIZE']} is set but RANK is not; unset it, or use torchrun")
    return RankInfo(rank=0, world_size=1, local_rank=0, launcher="none")


def _is_set_by_slurm(environ: Mapping[str, str]) -> bool:
    """Return whether ``srun --mpi=pmi2`` set PMI_RANK: unlike MPICH's mpiexec it does not set the local rank."""
    return "SLURM_STEP_ID" in environ and "MPI_LOCALRANKID" not in environ


class Ranks(Protocol):
    """This process among the ``size`` processes of a program. Every method is a collective."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes what all ranks share."""
        return self.rank == 0

    def gather(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on every rank."""
        ...

    def broadcast(self, thing: Any) -> Any:
        """Return rank 0's picklable ``thing`` on every rank."""
        return self.gather(thing if self.is_first else None)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block without collectives; an error on one rank is raised on all, so that no rank waits forever.

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

    def leave(self) -> None:
        """End the connection between the ranks; the last call of a program."""


class SingleRank(Ranks):
    """One process without a launcher."""

    rank, size = 0, 1

    def gather(self, thing: Any) -> list[Any]:
        """Return a list that contains only ``thing``."""
        return [thing]


SINGLE_RANK = SingleRank()


class MPIRanks(Ranks):
    """The ranks of an MPI communicator, for programs without a model, such as data preparation."""

    def __init__(self, communicator: Any):
        self.rank, self.size, self._communicator = communicator.rank, communicator.size, communicator

    def gather(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on every rank."""
        return self._communicator.allgather(thing)


def join_mpi_ranks() -> Ranks:
    """Return the ranks that ``mpiexec`` or ``srun`` started; a single rank without a launcher.

    Raises:
        LauncherError: another launcher started several ranks, or MPI and the launcher disagree about their number.
    """
    rank_info = find_rank(os.environ)
    if rank_info.world_size == 1:
        return SINGLE_RANK
    if not rank_info.launcher.startswith(("srun", "mpiexec")):
        raise LauncherError(
            f"{rank_info.launcher} started {rank_info.world_size} ranks; this command needs mpiexec or srun"
        )
    return MPIRanks(mpi_communicator(rank_info))


def mpi_communicator(rank_info: RankInfo) -> Any:
    """Return MPI's world communicator.

    Raises:
        LauncherError: it has another size than the launcher set.
    """
    from mpi4py import MPI

    communicator = MPI.COMM_WORLD
    if communicator.size != rank_info.world_size:
        raise LauncherError(
            f"mpi4py finds {communicator.size} ranks but {rank_info.launcher} started {rank_info.world_size}: "
            "mpi4py and the launcher use different MPI libraries (srun --mpi=pmi2 is for MPICH, pmix for Open MPI); "
            "run `simcast doctor` under this launcher for details"
        )
    return communicator
