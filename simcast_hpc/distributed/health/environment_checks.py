"""What launcher, batch system and shell say: ranks that do not belong together, half-set variables, limits."""

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.cuda import nccl

from simcast_hpc.distributed.ranks import RankInfo

from .finding import Finding

_FEW_OPEN_FILES = 4096
# Launchers whose variables this program does not read: their ranks would each be a run of its own.
_UNREAD = ("PMIX_RANK", "PALS_RANKID", "MV2_COMM_WORLD_RANK", "FLUX_TASK_RANK", "JSM_NAMESPACE_RANK")
_ASK_SIZE = "from mpi4py import MPI; print(MPI.COMM_WORLD.size, MPI.Get_library_version().splitlines()[0], sep='|')"
_ASK_LIBRARY = f"import mpi4py; mpi4py.rc.initialize = False; {_ASK_SIZE}".replace("MPI.COMM_WORLD.size", "0")


def check_surroundings(environ: Mapping[str, str], rank_info: RankInfo) -> list[Finding]:
    """Return what the environment of this process says, its limits, and where ranks would meet."""
    return [
        *_check_launcher(environ, rank_info),
        *_check_slurm(environ, rank_info),
        *_check_network(environ),
        *_check_switches(environ),
        *check_limits(),
    ]


def check_mpi(rank_info: RankInfo) -> Finding:
    """Return whether MPI sees as many ranks as the launcher started; several worlds of size 1 are the usual mistake.

    Which library mpi4py belongs to is asked first, without starting it: one that does not know its launcher may end
    the whole job. Under ``mpiexec`` of the same family MPI is then started in this process, as a run would.
    """
    if rank_info.launcher == "srun":
        return Finding("MPI", "ok", "not asked under srun, which needs none; data prepare checks its own world")
    alone = not rank_info.launcher.startswith("mpiexec")
    words = [sys.executable, "-c", _ASK_SIZE if alone else _ASK_LIBRARY]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
        size, library = " ".join(told.split()).split("|")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why = (getattr(error, "stderr", None) or type(error).__name__).strip().splitlines()[-1]
        said = f"mpi4py does not start ({why}); only mpiexec needs it, torchrun and deepspeed do without"
        do = "nothing, without mpiexec; else install an MPI library (libmpi: Debian's mpich or openmpi-bin, a module)"
        return Finding("MPI", "warning" if alone else "error", said, do)
    if alone:
        return Finding("MPI", "ok", f"a world of {size} ({library})")
    said = f"{rank_info.launcher} started {rank_info.world_size} ranks, and mpi4py belongs to {library}"
    do = "start by the mpiexec of that library, or build mpi4py with the other (pip install --no-binary mpi4py)"
    if ("Open MPI" in library) != ("Open MPI" in rank_info.launcher):
        return Finding("MPI", "error", f"{said}: each would be a world of its own, or end the job", do)
    from mpi4py import MPI

    if (size := MPI.COMM_WORLD.size) != rank_info.world_size:
        return Finding("MPI", "error", f"{said}, which sees {size}", do)
    return Finding("MPI", "ok", f"{size} ranks, as {rank_info.launcher} started ({library})")


def check_limits() -> list[Finding]:
    """Return limits of the shell that end a run in the middle."""
    found = []
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _FEW_OPEN_FILES:
        said = f"{files} open files at most; workers and shards want more"
        found.append(Finding("limits", "warning", said, f"ulimit -n {_FEW_OPEN_FILES}, or more"))
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY and any(Path("/sys/class/infiniband").glob("*")):
        said = f"{locked >> 10} KiB of locked memory at most, and there is InfiniBand: NCCL registers more"
        found.append(Finding("limits", "error", said, "ulimit -l unlimited; on Slurm PropagateResourceLimitsExcept"))
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        said = f"a file may have {size >> 20} MiB at most; a checkpoint takes 12 bytes a parameter"
        found.append(Finding("limits", "warning", said, "ulimit -f unlimited"))
    told = "without end" if files == resource.RLIM_INFINITY else str(files)
    return found or [Finding("limits", "ok", f"open files {told}, sizes of files without end")]


def _check_launcher(environ: Mapping[str, str], rank_info: RankInfo) -> list[Finding]:
    unread = [name for name in _UNREAD if name in environ]
    if rank_info.launcher == "none" and unread:
        said = f"{unread[0]} is set, so a launcher that is not known here started this: each rank would run alone"
        do = "start by torchrun, deepspeed, srun, or the mpiexec of MPICH or Open MPI; or export RANK, WORLD_SIZE, ..."
        return [Finding("launcher", "error", said, do)]
    return [Finding("launcher", "ok", f"{rank_info.launcher}, world size {rank_info.world_size}")]


def _check_slurm(environ: Mapping[str, str], rank_info: RankInfo) -> list[Finding]:
    if "SLURM_JOB_ID" not in environ:
        return []
    found = []
    tasks = environ.get("SLURM_NTASKS", "1")
    if rank_info.launcher == "none" and tasks != "1":
        said = f"a job of {tasks} tasks, but srun did not start this process: it is one rank alone"
        found.append(Finding("Slurm", "warning", said, "srun simcast doctor, as the scripts of slurm/ do"))
    if rank_info.launcher == "srun" and rank_info.world_size > 1:
        absent = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if absent:
            do = (
                "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) "
                "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))"
            )
            found.append(Finding("Slurm", "error", f"{' and '.join(absent)} not set: ranks cannot meet", do))
    asked, given = environ.get("SLURM_CPUS_PER_TASK", ""), len(os.sched_getaffinity(0))
    if rank_info.launcher == "srun" and asked.isdigit() and given < int(asked):
        said = f"{given} cores for this task, the job asked for {asked}: srun does not inherit --cpus-per-task"
        found.append(Finding("Slurm", "warning", said, "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"))
    gpus = environ.get("SLURM_GPUS_ON_NODE", "0")
    if gpus not in ("", "0") and not torch.cuda.is_available():
        said = f"Slurm gives this node {gpus} GPUs, torch sees none"
        found.append(
            Finding("Slurm", "error", said, "see the finding GPU; modules, container (--nv) or build of torch")
        )
    if shutil.which("scontrol") is None:
        said = "there is no scontrol here: a job cannot queue itself again"
        found.append(Finding("Slurm", "warning", said, "load Slurm's module; in a container start it from outside"))
    return found or [Finding("Slurm", "ok", f"job {environ['SLURM_JOB_ID']}, variables of its step as they should be")]


def _check_network(environ: Mapping[str, str]) -> list[Finding]:
    found = []
    here = {name for _, name in socket.if_nameindex()}
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        for name in filter(None, environ.get(variable, "").split(",")):
            if not any(one.startswith(name.lstrip("=")) for one in here) and not name.startswith("^"):
                said = (
                    f"{variable}={environ[variable]}: there is no interface {name}; here are {', '.join(sorted(here))}"
                )
                found.append(Finding("network", "error", said, f"set {variable} to one of them, or unset it"))
    host = environ.get("MASTER_ADDR")
    if host:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            said = f"MASTER_ADDR={host} cannot be resolved: {error}"
            found.append(Finding("network", "error", said, "name rank 0's host as this node knows it, or its address"))
    built = torch.distributed.is_gloo_available(), torch.distributed.is_nccl_available()
    if torch.cuda.is_available() and not built[1]:
        found.append(Finding("network", "error", "this torch has no NCCL", "make install DEVICE=cuda"))
    version = ".".join(map(str, nccl.version())) if torch.cuda.is_available() and built[1] else "not needed"
    return found or [Finding("network", "ok", f"gloo {'there' if built[0] else 'absent'}, NCCL {version}")]


def _check_switches(environ: Mapping[str, str]) -> list[Finding]:
    found = []
    if environ.get("TRITON_INTERPRET"):
        said = "TRITON_INTERPRET is set: Triton would run every kernel as Python"
        found.append(Finding("switches", "warning", said, "unset TRITON_INTERPRET; it is for tests of kernels alone"))
    if environ.get("SIMCAST_KERNELS", "") not in ("", "reference", "triton"):
        said = f"SIMCAST_KERNELS={environ['SIMCAST_KERNELS']!r} is unknown, so every kernel refuses it"
        found.append(Finding("switches", "error", said, "set it to reference or triton, or unset it"))
    temporary = environ.get("TMPDIR")
    if temporary and not Path(temporary).is_dir():
        said = f"TMPDIR={temporary} is not there; Python falls back to {tempfile.gettempdir()}"
        found.append(Finding("switches", "warning", said, f"mkdir -p {temporary}, or unset it"))
    return found
