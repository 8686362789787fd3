"""The identity of a process across the nodes of a cluster, and whether the process with a given identity is dead.

Two processes share a machine if they have the same boot and the same namespace of process numbers, so containers with
equal host names are not confused. A process number is reused after a while; the start time tells the processes apart.
"""

import getpass
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Variable of the job's identifier by batch system.
_JOB_VARIABLES = {
    "SLURM_JOB_ID": "Slurm", "PBS_JOBID": "PBS", "LSB_JOBID": "LSF", "FLUX_JOB_ID": "Flux", "COBALT_JOBID": "Cobalt",
    "PJM_JOBID": "PJM", "OAR_JOB_ID": "OAR", "JOB_ID": "Grid Engine",
}  # fmt: skip


def identity(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the identity of this process as JSON values: user, host, job, process number, start time."""
    process = os.getpid()
    variable = next((name for name in _JOB_VARIABLES if environ.get(name)), None)
    job = None
    if variable is not None:
        job = {
            "system": _JOB_VARIABLES[variable],
            "id": environ[variable],
            "cluster": environ.get("SLURM_CLUSTER_NAME", ""),
            "restarts": _number(environ.get("SLURM_RESTART_COUNT")),
        }
    return {
        "user": _user(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": process,
        "started": _start_time(process),
        "job": job,
    }


def is_here(record: Mapping[str, Any]) -> bool:
    """Return whether the process of ``record`` runs, or ran, on this machine since it was booted."""
    machine = _machine()
    return machine is not None and record.get("machine") == machine


def is_dead(record: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the process of ``record`` is certainly dead; False if that cannot be determined here.

    It is dead if it ran on this machine and no longer exists, or if it belonged to an earlier start of this Slurm job,
    because Slurm ends a job before it requeues it.
    """
    if is_here(record) and isinstance(record.get("process"), int) and record.get("started") is not None:
        return _start_time(record["process"]) != record["started"]
    former, own = record.get("job"), identity(environ)["job"]
    if not isinstance(former, dict) or own is None or own["system"] != "Slurm":
        return False
    same = all(former.get(key) == own[key] for key in ("system", "id", "cluster"))
    return same and isinstance(former.get("restarts"), int) and former["restarts"] < own["restarts"]


def describe(record: Mapping[str, Any]) -> str:
    """Return the identity for messages."""
    if "process" not in record:
        return "an unknown process"
    job = record.get("job")
    parts = [f"rank {record['rank']}"] if "rank" in record else []
    parts += [f"process {record['process']} of user {record.get('user')} on host {record.get('host')}"]
    if isinstance(job, dict):
        parts += [f"{job.get('system')} job {job.get('id')}"]
    return ", ".join(parts)


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux, or /proc is hidden: a dead process is recognized by its missing heartbeat only
        return None


def _start_time(process: int) -> int | None:
    """Return the start of a process in clock ticks since the boot; None if it does not exist or has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may contain spaces and brackets
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return str(os.getuid())


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
