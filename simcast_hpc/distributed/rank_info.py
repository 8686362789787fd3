"""This process's place in the world, read from whichever launcher started it."""

from collections.abc import Mapping
from dataclasses import dataclass

from simcast_hpc.config import SimcastError


class LauncherError(SimcastError, RuntimeError):
    """The launcher's variables do not say where this process stands."""


@dataclass(frozen=True)
class RankInfo:
    """Rank among ``world_size`` processes and among those of this node; ``launcher`` is where it was read."""

    rank: int
    world_size: int
    local_rank: int
    launcher: str

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise LauncherError(f"{self.launcher} gives rank {self.rank} of {self.world_size}; a rank is 0 .. size - 1")


# Launcher, the variable that shows its presence, then those of rank, world size and rank on the node. The order
# matters: torchrun inside a Slurm or MPI job sets the first three, and they are the ones meant.
_LAUNCHERS = (
    ("torchrun or deepspeed", "RANK", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("mpiexec (MPICH)", "PMI_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("mpiexec (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("srun", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)  # fmt: skip


def find_rank(environ: Mapping[str, str]) -> RankInfo:
    """Return the place that ``environ`` describes; alone in the world where no launcher shows.

    Raises:
        LauncherError: a launcher shows, but one of its variables is absent or not a number.
    """
    for launcher, shows, *names in _LAUNCHERS:
        if shows not in environ or (shows == "PMI_RANK" and _is_slurms_pmi(environ)):
            continue
        values = []
        for name in names:
            text = environ.get(name)
            if text is None:
                raise LauncherError(f"{shows} is set, so {launcher} started this process, but {name} is not set")
            if not text.isdigit():
                raise LauncherError(f"{name}={text!r} is not a number; {launcher} sets it")
            values.append(int(text))
        return RankInfo(*values, launcher=launcher)
    if "WORLD_SIZE" in environ:
        raise LauncherError(
            f"WORLD_SIZE={environ['WORLD_SIZE']} is set but RANK is not; unset it, or start by torchrun"
        )
    return RankInfo(rank=0, world_size=1, local_rank=0, launcher="none")


def _is_slurms_pmi(environ: Mapping[str, str]) -> bool:
    """Whether ``srun --mpi=pmi2`` set PMI_RANK: unlike MPICH's mpiexec it leaves the rank on the node to Slurm."""
    return "SLURM_STEP_ID" in environ and "MPI_LOCALRANKID" not in environ
