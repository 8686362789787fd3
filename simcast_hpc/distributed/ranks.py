"""The ranks of a program: the launcher's variables of this process, and one protocol for torch, MPI and one process."""

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from simcast_hpc.config import SimcastError

T = TypeVar("T")


class LauncherError(SimcastError, RuntimeError):
    """The launcher's environment variables are incomplete, invalid or contradict the number of ranks."""


@dataclass(frozen=True)
class RankInfo:
    """Process rank, world size, rank on this node, and the launcher whose variables they were read from."""

    rank: int
    world_size: int
    local_rank: int
    launcher: str

    @property
    def is_mpi(self) -> bool:
        """Whether an MPI library started the ranks, so that they can exchange the address of the rendezvous by MPI."""
        return self.launcher.startswith("mpi")

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise LauncherError(f"{self.launcher} set rank {self.rank} of {self.world_size}; valid are 0 .. size - 1")


# Launcher, the variable that identifies it, then those of rank, world size and local rank. The order matters: torchrun
# inside a Slurm or MPI job sets the first three, and then its ranks are meant. PMI_RANK is set by many launchers, but
# only MPICH's mpiexec sets MPI_LOCALRANKID, so the others that set it precede a second line for MPICH.
_MPICH = ("mpiexec (MPICH)", "PMI_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
_LAUNCHERS = (
    ("torchrun or deepspeed", "RANK", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("mpiexec (MPICH)", "MPI_LOCALRANKID", *_MPICH[2:]),
    ("mpiexec (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("mpirun_rsh (MVAPICH)", "MVP_COMM_WORLD_RANK", "MVP_COMM_WORLD_RANK", "MVP_COMM_WORLD_SIZE",
     "MVP_COMM_WORLD_LOCAL_RANK"),
    ("mpirun_rsh (MVAPICH)", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
     "MV2_COMM_WORLD_LOCAL_RANK"),
    ("mpiexec (PALS)", "PALS_RANKID", "PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID"),
    ("flux run", "FLUX_TASK_RANK", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    ("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK"),
    ("srun", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    _MPICH,
)  # fmt: skip
# Launchers that set a rank and no world size: each of their processes would be a run of its own, in one run directory.
_WITHOUT_A_SIZE = {
    "PMIX_RANK": "prterun (PMIx)",
    "MPIRUN_RANK": "mpirun (MVAPICH)",
    "MPT_LRANK": "mpiexec_mpt (HPE MPT)",
}


def find_rank(environ: Mapping[str, str]) -> RankInfo:
    """Return the rank that the launcher's variables describe; rank 0 of 1 without a launcher.

    Raises:
        LauncherError: a variable of the launcher is missing or not a number, or the launcher sets no world size.
    """
    for launcher, identifying, *names in _LAUNCHERS:
        if identifying not in environ:
            continue
        values = []
        for name in names:
            text = environ.get(name)
            if text is None:
                raise LauncherError(f"{identifying} is set, so {launcher} started this process, but {name} is not set")
            if not (text.isascii() and text.isdigit()):
                raise LauncherError(f"{name}={text!r} is not a number; {launcher} sets it")
            values.append(int(text))
        return RankInfo(*values, launcher=launcher)
    if "WORLD_SIZE" in environ:
        raise LauncherError(f"WORLD_SIZE={environ['WORLD_SIZE']} is set but RANK is not; unset it, or use torchrun")
    for name, launcher in _WITHOUT_A_SIZE.items():
        if name in environ:
            raise LauncherError(
                f"{name} is set, so {launcher} started this process, but it sets no world size; export RANK, "
                "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or use srun, torchrun or another mpiexec"
            )
    return RankInfo(rank=0, world_size=1, local_rank=0, launcher="none")


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

    def to_first(self, thing: Any, *, sender: int) -> Any:
        """Return the picklable ``thing`` of rank ``sender`` on rank 0, and None on all others."""
        things = self.gather(thing if self.rank == sender else None)
        return things[sender] if self.is_first else None

    def gather_on_first(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on rank 0, and an empty list on all others.

        Unlike :meth:`gather`, other ranks receive nothing, so that the bytes of a rank do not grow with the ranks.
        """
        things = self.gather(thing)
        return things if self.is_first else []

    def on_first(self, function: Callable[[], T]) -> T:
        """Return what ``function`` returns on rank 0, on every rank; it is called there only.

        Raises:
            SimcastError: on every rank, if it raised one on rank 0, which prints it for all. Another exception is
                raised on rank 0, and a SimcastError with its message on the others.
        """
        result, failure = None, None
        if self.is_first:
            try:
                result = function()
            except Exception as error:
                failure = error
        if self.size == 1:
            if failure is not None:
                raise failure
            return result  # pyright: ignore[reportReturnType]
        result, known = self.broadcast((result, failure and _sendable(failure)))
        if failure is not None:
            raise failure
        if known is not None:
            known.printed_by_rank_0 = True
            raise known
        return result

    @contextmanager
    def together(self, kind: type[SimcastError] | None = None) -> Iterator[None]:
        """Run a block without collectives; an error on one rank is raised on all, so that no rank waits forever.

        Raises:
            SimcastError: on the ranks whose own block succeeded, with the message of a rank that failed. With ``kind``
                on all ranks, see :meth:`raise_together`.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if kind is not None:
            self.raise_together(failure, kind)
            return
        messages = self.gather(None if failure is None else f"rank {self.rank}: {failure}")
        if failure is not None:
            raise failure
        if any(messages):
            raise SimcastError(next(message for message in messages if message))

    def raise_together(self, failure: Exception | None, kind: type[SimcastError] = SimcastError) -> None:
        """Raise one error on all ranks if ``failure`` is set on any; call it on every rank.

        Raises:
            SimcastError: of type ``kind``, the same on every rank: the message of the first rank that failed, after
                its number.
        """
        messages = self.gather(None if failure is None else f"rank {self.rank}: {failure}")
        if first := next(filter(None, messages), None):
            raise kind(first) from failure

    def leave(self) -> None:
        """End the connection between the ranks; the last call of a program."""


def _sendable(error: Exception) -> SimcastError:
    """Return an error that pickle restores, of the same type if possible."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # anything, since an error can have any constructor
        copy = None
    return copy if isinstance(copy, SimcastError) else SimcastError(f"rank 0: {error}")


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

    def to_first(self, thing: Any, *, sender: int) -> Any:
        """Return the picklable ``thing`` of rank ``sender`` on rank 0, and None on all others."""
        if sender == 0:
            return thing if self.is_first else None
        if self.rank == sender:
            self._communicator.send(thing, dest=0)
        return self._communicator.recv(source=sender) if self.is_first else None

    def gather_on_first(self, thing: Any) -> list[Any]:
        """Return the picklable ``thing`` of every rank, in rank order, on rank 0, and an empty list on all others."""
        return self._communicator.gather(thing, root=0) or []


def join_mpi_ranks() -> Ranks:
    """Return the ranks that ``mpiexec``, ``srun`` or another launcher of MPI programs started, or a single rank.

    Raises:
        LauncherError: torchrun or deepspeed started several ranks, or MPI and the launcher disagree about their number.
    """
    rank_info = find_rank(os.environ)
    if rank_info.world_size == 1:
        return SINGLE_RANK
    if rank_info.launcher == "torchrun or deepspeed":
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
