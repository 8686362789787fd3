"""`simcast doctor`: injected faults are reported with a remedy, and a machine without faults is healthy."""

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from simcast_hpc.distributed.health import Finding, HealthOptions, RankReport, check_health
from simcast_hpc.distributed.health import build_checks as builds
from simcast_hpc.distributed.health import device_checks as devices
from simcast_hpc.distributed.health import disk_checks as disks
from simcast_hpc.distributed.health import hdf5_checks as storage
from simcast_hpc.distributed.health import rank_checks as ranks
from simcast_hpc.distributed.health.environment_checks import check_environment
from simcast_hpc.distributed.ranks import find_rank
from simcast_hpc.version import __version__
from tests.system_programs import program

_HOURS_AGO = time.time() - 3 * 3600
_OTHER_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
_SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_LOCALID": "0",
}


def planted_lock(folder: Path, *, changed: float) -> Path:
    build = folder / "py311_cpu" / "fused_adam"
    build.mkdir(parents=True)
    for name in ("build.ninja", "lock"):
        (build / name).touch()
        os.utime(build / name, (changed, changed))
    return build / "lock"


def only(findings: list[Finding], check: str) -> Finding:
    (finding,) = (one for one in findings if one.check == check)
    return finding


def doctor(*words: str, launcher: tuple[str, ...] = (), **environ: str) -> tuple[int, dict]:
    """Run `simcast doctor --json` in a subprocess; return its status and output."""
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "simcast_hpc", "doctor", "--json", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_healthy_machine_with_two_ranks(tmp_path):
    mpiexec = program("mpiexec", package="mpich")
    status, data = doctor(
        "--run-dir", str(tmp_path / "runs" / "a"), "--min-free-gib", "0", launcher=(mpiexec, "-n", "2"),
        TORCH_EXTENSIONS_DIR=str(tmp_path / "ext"),
    )  # fmt: skip
    ((_, node),) = data["nodes"].items()
    assert status == 0 and data["healthy"] and data["launcher"] == "mpiexec (MPICH)"
    assert [one["rank"] for one in node["ranks"]] == [0, 1]
    assert all(one["matmul_seconds"] > 0 and one["free_gib"] > 0 for one in node["ranks"])
    by_check = {one["check"]: one for one in node["findings"]}
    assert by_check["ranks"]["message"] == "all-reduce over 2 ranks by gloo is correct"
    assert by_check["MPI"]["severity"] == by_check["build locks"]["severity"] == "ok"
    assert list(tmp_path.iterdir()) == [], "checks leave no files"


def test_wrong_mpi_world_and_stale_lock_are_errors_without_waiting(tmp_path):
    lock = planted_lock(tmp_path / "ext", changed=_HOURS_AGO)
    since = time.monotonic()
    status, data = doctor("--min-free-gib", "0", TORCH_EXTENSIONS_DIR=str(tmp_path / "ext"), **_OTHER_MPI)
    ((_, node),) = data["nodes"].items()
    errors = {one["check"]: one for one in node["findings"] if one["severity"] == "error"}
    assert status == 1 and not data["healthy"] and set(errors) == {"MPI", "build locks"}
    assert "mpiexec (Open MPI) started 2 ranks, and mpi4py uses MPICH" in errors["MPI"]["message"]
    assert errors["build locks"]["remedy"] == f"rm {lock}"
    assert node["ranks"][0]["matmul_seconds"] is None and time.monotonic() - since < 100, "does not join"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk_is_an_error(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], check=True)
    try:
        small = disks.check_space(
            "the run folder", full / "run", want_gib=1, severity="error", remedy="remove old runs"
        )
        assert small.severity == "error" and "0.0 GiB free, 1 GiB required" in small.message
        (full / "run").write_bytes(b"x" * 65536)
        findings = ranks.check_node({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, HealthOptions(full, min_free_gib=0))
        (space,) = (one for one in findings if one.check == "free space" and str(full) in one.message)
        assert space.severity == "error" and "is full: No space left on device" in space.message and space.remedy
        assert only(findings, "file locking").severity == "warning"
        assert [path.name for path in full.iterdir()] == ["run"]
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_build_lock_is_judged_by_processes_and_age(tmp_path):
    stale, fresh, active = (tmp_path / name for name in ("stale", "fresh", "active"))
    lock = planted_lock(stale, changed=_HOURS_AGO)
    planted_lock(fresh, changed=time.time())
    builder = subprocess.Popen(["sleep", "60"], cwd=planted_lock(active, changed=_HOURS_AGO).parent)
    try:
        assert builds.check_locks(stale)[0].severity == "error" and builds.check_locks(stale)[0].remedy == f"rm {lock}"
        assert builds.check_locks(fresh)[0].severity == "warning"
        (busy,) = builds.check_locks(active)
        assert busy.severity == "ok" and str(builder.pid) in busy.message
    finally:
        builder.kill()
        builder.wait()
    assert builds.check_locks(active)[0].severity == "error", "the build was killed"
    assert builds.check_locks(tmp_path / "absent")[0].severity == "ok"


@pytest.mark.parametrize(
    ("environ", "check", "says"),
    [
        (_SRUN, "Slurm", "MASTER_ADDR and MASTER_PORT not set"),
        (
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
            "Slurm",
            "the job has 4 tasks, but this process was not",
        ),
        ({"NCCL_SOCKET_IFNAME": "ib77"}, "network", "no interface ib77; choose from .*lo"),
        ({"MASTER_ADDR": "no-such-host.invalid"}, "network", "no-such-host.invalid cannot be resolved"),
        ({"SIMCAST_KERNELS": "fast"}, "switches", "SIMCAST_KERNELS='fast' is invalid"),
        ({"TRITON_INTERPRET": "1"}, "switches", "interprets every kernel in Python"),
    ],
)
def test_invalid_environment_is_reported(environ, check, says, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    finding = only([one for one in check_environment(environ, find_rank(environ)) if one.severity != "ok"], check)
    assert re.search(says, finding.message) and finding.remedy


def test_incomplete_launcher_variables_are_a_finding(tmp_path):
    report = check_health({"RANK": "0", "PATH": os.environ["PATH"]}, HealthOptions(tmp_path, min_free_gib=0))
    error = only(report.ranks[0].findings, "launcher")
    assert error.severity == "error" and "WORLD_SIZE is not set" in error.message and not report.healthy
    assert only(report.ranks[0].findings, "HDF5").severity == "ok", "the other checks still run"


def test_locked_file_is_an_error(tmp_path):
    with h5py.File(tmp_path / "locked.h5", "w") as file:
        file["x"] = [1]
    assert storage.check_locking({}, tmp_path, reading=True).severity == "ok"
    with (tmp_path / "locked.h5").open("rb+") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        finding = storage.check_locking({}, tmp_path, reading=True)
    assert finding.severity == "error" and "export HDF5_USE_FILE_LOCKING=FALSE" in finding.remedy
    assert storage.check_locking({"HDF5_USE_FILE_LOCKING": "no"}, tmp_path, reading=True).severity == "warning"


def test_throttled_gpu_is_a_warning_and_invisible_gpu_an_error(tmp_path, monkeypatch):
    assert [one.severity for one in devices.judge_clock("cuda:0", "1980", "1980", 0x0)] == ["ok"]
    (hot,) = devices.judge_clock("cuda:0", "345", "1980", 0x40)
    assert hot.severity == "warning" and "345 of 1980 MHz" in hot.message and "thermal" in hot.message
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, NVIDIA H100, 570.1, 81559, 0, [N/A]'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (invisible,) = devices.check_devices({"CUDA_VISIBLE_DEVICES": ""})
    assert invisible.severity == "error" and "the driver sees 1 GPUs" in invisible.message and invisible.remedy


def test_clocks_and_threads_are_compared_across_ranks():
    assert ranks.check_skew([100.0, 100.5]) is None
    skew = ranks.check_skew([100.0, 90.0])
    assert skew is not None and "10.0 s; that of rank 1 is behind" in skew.message
    report = [RankReport("n1", rank, [], threads=8, cores=list(range(8))) for rank in range(2)]
    (crowded,) = ranks.check_threads(report)
    assert "2 ranks use 16 threads on 8 cores" in crowded.message and crowded.remedy == "export OMP_NUM_THREADS=4"
    assert ranks.check_threads(report[:1]) == []


def test_packages_outside_their_range_are_an_error(monkeypatch):
    monkeypatch.setattr(builds.importlib.metadata, "version", lambda name: "0.0.1" if name == "torch" else "9999")
    finding = builds.check_packages()
    assert finding.severity == "error" and "torch is 0.0.1, tested are" in finding.message


@pytest.mark.parametrize(
    ("kernels", "severity", "says"),
    [
        (None, "ok", "with its own kernels"),
        (__version__, "warning", "are both installed"),
        ("0.0.9", "error", "simcast-kernels 0.0.9 are both installed with different versions"),
    ],
)
def test_both_distributions_are_reported(kernels, severity, says, monkeypatch):
    monkeypatch.setattr(builds, "_installed_version", lambda name: kernels)
    finding = builds.check_versions()
    assert finding.severity == severity and finding.message.startswith(f"simcast-hpc {__version__}")
    assert says in finding.message and bool(finding.remedy) == (severity != "ok")


def test_existing_interface_is_accepted():
    name = socket.if_nameindex()[0][1]
    environ = {"GLOO_SOCKET_IFNAME": name}
    assert only(check_environment(environ, find_rank(environ)), "network").severity == "ok"
