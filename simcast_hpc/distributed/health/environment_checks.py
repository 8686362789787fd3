"""Launcher, batch system, network and limits as given by the environment of the process."""

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

_MIN_OPEN_FILES = 4096
_PRINT_SIZE = "from mpi4py import MPI; print(MPI.COMM_WORLD.size, MPI.Get_library_version().splitlines()[0], sep='|')"
_PRINT_LIBRARY = f"import mpi4py; mpi4py.rc.initialize = False; {_PRINT_SIZE}".replace("MPI.COMM_WORLD.size", "0")


def check_environment(environ: Mapping[str, str], rank_info: RankInfo) -> list[Finding]:
    """Check the environment variables and the limits of this process, and the network that they name."""
    return [
        *_check_launcher(environ, rank_info),
        *_check_slurm(environ, rank_info),
        *_check_network(environ),
        *_check_switches(environ),
        *check_limits(),
    ]


def check_mpi(rank_info: RankInfo) -> Finding:
    """Check whether MPI sees as many ranks as the launcher started; the usual fault is several worlds of size 1.

    The library of mpi4py is queried first without initializing it: one that does not support its launcher may abort
    the job. Under ``mpiexec`` of the same family MPI is then initialized in this process, as in a run.
    """
    if rank_info.launcher == "srun":
        return Finding("MPI", "ok", "not checked under srun, which does not need it; data prepare checks its own world")
    single = not rank_info.is_mpi
    command = [sys.executable, "-c", _PRINT_SIZE if single else _PRINT_LIBRARY]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        size, library = " ".join(output.split()).split("|")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        cause = (getattr(error, "stderr", None) or type(error).__name__).strip().splitlines()[-1]
        message = f"mpi4py does not start ({cause}); only mpiexec needs it, not torchrun and deepspeed"
        remedy = "none without mpiexec; with mpiexec install an MPI library (Debian: mpich or openmpi-bin, or a module)"
        return Finding("MPI", "warning" if single else "error", message, remedy)
    if single:
        return Finding("MPI", "ok", f"world size {size} ({library})")
    message = f"{rank_info.launcher} started {rank_info.world_size} ranks, and mpi4py uses {library}"
    remedy = "use the mpiexec of that library, or build mpi4py with the other one (pip install --no-binary mpi4py)"
    if ("Open MPI" in library) != ("Open MPI" in rank_info.launcher):
        return Finding("MPI", "error", f"{message}: each rank would be a world of its own, or the job aborts", remedy)
    from mpi4py import MPI

    if (size := MPI.COMM_WORLD.size) != rank_info.world_size:
        return Finding("MPI", "error", f"{message}, which sees {size}", remedy)
    return Finding("MPI", "ok", f"{size} ranks, as started by {rank_info.launcher} ({library})")


def check_limits() -> list[Finding]:
    """Check the limits of the shell that end a run."""
    findings = []
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _MIN_OPEN_FILES:
        message = f"open files limited to {files}; workers and shards need more"
        findings.append(Finding("limits", "warning", message, f"ulimit -n {_MIN_OPEN_FILES}, or more"))
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY and any(Path("/sys/class/infiniband").glob("*")):
        message = f"locked memory limited to {locked >> 10} KiB; NCCL registers more for InfiniBand"
        findings.append(
            Finding("limits", "error", message, "ulimit -l unlimited; on Slurm PropagateResourceLimitsExcept")
        )
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        message = f"file size limited to {size >> 20} MiB; a checkpoint needs 12 bytes per parameter"
        findings.append(Finding("limits", "warning", message, "ulimit -f unlimited"))
    count = "unlimited" if files == resource.RLIM_INFINITY else str(files)
    return findings or [Finding("limits", "ok", f"open files: {count}; file size: unlimited")]


def _check_launcher(environ: Mapping[str, str], rank_info: RankInfo) -> list[Finding]:
    return [Finding("launcher", "ok", f"{rank_info.launcher}, world size {rank_info.world_size}")]


def _check_slurm(environ: Mapping[str, str], rank_info: RankInfo) -> list[Finding]:
    if "SLURM_JOB_ID" not in environ:
        return []
    findings = []
    tasks = environ.get("SLURM_NTASKS", "1")
    if rank_info.launcher == "none" and tasks != "1":
        message = f"the job has {tasks} tasks, but this process was not started by srun and is a single rank"
        findings.append(Finding("Slurm", "warning", message, "srun simcast doctor, as in the scripts of slurm/"))
    if rank_info.launcher == "srun" and rank_info.world_size > 1:
        unset = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if unset:
            remedy = (
                "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) "
                "MASTER_PORT=$(shuf -i 20000-32767 -n 1)"
            )
            findings.append(Finding("Slurm", "error", f"{' and '.join(unset)} not set: ranks cannot connect", remedy))
    requested, cores = environ.get("SLURM_CPUS_PER_TASK", ""), len(os.sched_getaffinity(0))
    if rank_info.launcher == "srun" and requested.isdigit() and cores < int(requested):
        message = f"{cores} cores for this task, {requested} requested: srun does not inherit --cpus-per-task"
        findings.append(Finding("Slurm", "warning", message, "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"))
    gpus = environ.get("SLURM_GPUS_ON_NODE", "0")
    if gpus not in ("", "0") and not torch.cuda.is_available():
        message = f"Slurm allocates {gpus} GPUs on this node, torch sees none"
        remedy = "see the finding GPU; check modules, container (--nv) and the build of torch"
        findings.append(Finding("Slurm", "error", message, remedy))
    if shutil.which("scontrol") is None:
        message = "scontrol is not on PATH: a job cannot requeue itself"
        findings.append(
            Finding("Slurm", "warning", message, "load the module of Slurm; in a container bind the program")
        )
    return findings or [Finding("Slurm", "ok", f"job {environ['SLURM_JOB_ID']}, consistent variables")]


def _check_network(environ: Mapping[str, str]) -> list[Finding]:
    findings = []
    interfaces = {name for _, name in socket.if_nameindex()}
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        for name in filter(None, environ.get(variable, "").split(",")):
            if not any(one.startswith(name.lstrip("=")) for one in interfaces) and not name.startswith("^"):
                message = (
                    f"{variable}={environ[variable]}: no interface {name}; choose from {', '.join(sorted(interfaces))}"
                )
                findings.append(Finding("network", "error", message, f"set {variable} to one of them, or unset it"))
    host = environ.get("MASTER_ADDR")
    if host:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            message = f"MASTER_ADDR={host} cannot be resolved: {error}"
            findings.append(
                Finding("network", "error", message, "use the name of rank 0's host on this node, or its address")
            )
    gloo, has_nccl = torch.distributed.is_gloo_available(), torch.distributed.is_nccl_available()
    if torch.cuda.is_available() and not has_nccl:
        findings.append(Finding("network", "error", "torch was built without NCCL", "make install DEVICE=cuda"))
    version = ".".join(map(str, nccl.version())) if torch.cuda.is_available() and has_nccl else "not needed"
    return findings or [Finding("network", "ok", f"gloo {'available' if gloo else 'missing'}, NCCL {version}")]


def _check_switches(environ: Mapping[str, str]) -> list[Finding]:
    findings = []
    if environ.get("TRITON_INTERPRET"):
        message = "TRITON_INTERPRET is set: Triton interprets every kernel in Python"
        findings.append(
            Finding("switches", "warning", message, "unset TRITON_INTERPRET, which is only for kernel tests")
        )
    if environ.get("SIMCAST_KERNELS", "") not in ("", "reference", "triton"):
        message = f"SIMCAST_KERNELS={environ['SIMCAST_KERNELS']!r} is invalid: every kernel call raises an error"
        findings.append(Finding("switches", "error", message, "set it to reference or triton, or unset it"))
    temporary = environ.get("TMPDIR")
    if temporary and not Path(temporary).is_dir():
        message = f"TMPDIR={temporary} does not exist; Python uses {tempfile.gettempdir()}"
        findings.append(Finding("switches", "warning", message, f"mkdir -p {temporary}, or unset it"))
    return findings
