"""What `simcast doctor` finds: planted faults are named with what to do, and a machine without any is fit."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from simcast_hpc.distributed.health import Asked, Finding, RankReport, examine
from simcast_hpc.distributed.health import build_checks as builds
from simcast_hpc.distributed.health import device_checks as devices
from simcast_hpc.distributed.health import disk_checks as disks
from simcast_hpc.distributed.health import hdf5_checks as storage
from simcast_hpc.distributed.health import rank_checks as ranks
from simcast_hpc.distributed.health.environment_checks import check_surroundings
from simcast_hpc.distributed.ranks import find_rank
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
    (found,) = (one for one in findings if one.check == check)
    return found


def doctor(*words: str, launcher: tuple[str, ...] = (), **environ: str) -> tuple[int, dict]:
    """Run `simcast doctor --json` in a process of its own; return its status and what it said."""
    told = subprocess.run(
        [*launcher, sys.executable, "-m", "simcast_hpc", "doctor", "--json", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.stdout, told.stderr
    return told.returncode, json.loads(told.stdout)


def test_two_ranks_on_a_machine_without_faults(tmp_path):
    mpiexec = program("mpiexec", package="mpich")
    status, said = doctor(
        "--run-dir", str(tmp_path / "runs" / "a"), "--min-free-gib", "0", launcher=(mpiexec, "-n", "2"),
        TORCH_EXTENSIONS_DIR=str(tmp_path / "ext"),
    )  # fmt: skip
    ((_, node),) = said["nodes"].items()
    assert status == 0 and said["fit"] and said["launcher"] == "mpiexec (MPICH)"
    assert [one["rank"] for one in node["ranks"]] == [0, 1]
    assert all(one["matmul_seconds"] > 0 and one["free_gib"] > 0 for one in node["ranks"])
    by_check = {one["check"]: one for one in node["findings"]}
    assert by_check["ranks"]["found"].startswith("2 met over gloo")
    assert by_check["MPI"]["severity"] == by_check["build locks"]["severity"] == "ok"
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_a_wrong_mpi_world_and_a_stale_lock_are_errors_and_no_rank_waits(tmp_path):
    lock = planted_lock(tmp_path / "ext", changed=_HOURS_AGO)
    since = time.monotonic()
    status, said = doctor("--min-free-gib", "0", TORCH_EXTENSIONS_DIR=str(tmp_path / "ext"), **_OTHER_MPI)
    ((_, node),) = said["nodes"].items()
    errors = {one["check"]: one for one in node["findings"] if one["severity"] == "error"}
    assert status == 1 and not said["fit"] and set(errors) == {"MPI", "build locks"}
    assert "mpiexec (Open MPI) started 2 ranks, and mpi4py belongs to MPICH" in errors["MPI"]["found"]
    assert errors["build locks"]["do"] == f"rm {lock}"
    assert node["ranks"][0]["matmul_seconds"] is None and time.monotonic() - since < 100, "it did not wait to meet"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_an_error(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], check=True)
    try:
        little = disks.check_space("the run folder", full / "run", want_gib=1, severity="error", do="remove old runs")
        assert little.severity == "error" and "0.0 GiB free, 1 are asked for" in little.found
        (full / "run").write_bytes(b"x" * 65536)
        findings = ranks.check_node({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, Asked(full, min_free_gib=0))
        (space,) = (one for one in findings if one.check == "free space" and str(full) in one.found)
        assert space.severity == "error" and "is full: No space left on device" in space.found and space.do
        assert only(findings, "file locking").severity == "warning"
        assert [path.name for path in full.iterdir()] == ["run"]
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_a_lock_is_judged_by_who_builds_and_since_when(tmp_path):
    stale, fresh, held = (tmp_path / name for name in ("stale", "fresh", "held"))
    lock = planted_lock(stale, changed=_HOURS_AGO)
    planted_lock(fresh, changed=time.time())
    builder = subprocess.Popen(["sleep", "60"], cwd=planted_lock(held, changed=_HOURS_AGO).parent)
    try:
        assert builds.check_locks(stale)[0].severity == "error" and builds.check_locks(stale)[0].do == f"rm {lock}"
        assert builds.check_locks(fresh)[0].severity == "warning"
        (busy,) = builds.check_locks(held)
        assert busy.severity == "ok" and str(builder.pid) in busy.found
    finally:
        builder.kill()
        builder.wait()
    assert builds.check_locks(held)[0].severity == "error", "the builder is gone"
    assert builds.check_locks(tmp_path / "absent")[0].severity == "ok"


@pytest.mark.parametrize(
    ("environ", "check", "says"),
    [
        (_SRUN, "Slurm", "MASTER_ADDR and MASTER_PORT not set"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "Slurm", "a job of 4 tasks, but srun did not start this process"),
        ({"PALS_RANKID": "3"}, "launcher", "PALS_RANKID is set, .* each rank would run alone"),
        ({"NCCL_SOCKET_IFNAME": "ib77"}, "network", "there is no interface ib77; here are .*lo"),
        ({"MASTER_ADDR": "no-such-host.invalid"}, "network", "no-such-host.invalid cannot be resolved"),
        ({"SIMCAST_KERNELS": "fast"}, "switches", "SIMCAST_KERNELS='fast' is unknown"),
        ({"TRITON_INTERPRET": "1"}, "switches", "every kernel as Python"),
    ],
)
def test_what_the_environment_says_is_held_against_what_is_there(environ, check, says, monkeypatch):
    import re

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found = only([one for one in check_surroundings(environ, find_rank(environ)) if one.severity != "ok"], check)
    assert re.search(says, found.found) and found.do


def test_half_set_variables_of_a_launcher_are_a_finding_and_no_end(tmp_path):
    found = examine({"RANK": "0", "PATH": os.environ["PATH"]}, Asked(tmp_path, min_free_gib=0))
    wrong = only(found.reports[0].findings, "launcher")
    assert wrong.severity == "error" and "WORLD_SIZE is not set" in wrong.found and not found.fit
    assert only(found.reports[0].findings, "HDF5").severity == "ok", "the rest is looked at all the same"


def test_a_file_that_cannot_be_locked(tmp_path):
    with h5py.File(tmp_path / "held.h5", "w") as file:
        file["x"] = [1]
    assert storage.check_locking({}, tmp_path, reading=True).severity == "ok"
    with (tmp_path / "held.h5").open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = storage.check_locking({}, tmp_path, reading=True)
    assert found.severity == "error" and "export HDF5_USE_FILE_LOCKING=FALSE" in found.do
    assert storage.check_locking({"HDF5_USE_FILE_LOCKING": "no"}, tmp_path, reading=True).severity == "warning"


def test_a_hot_gpu_is_named_and_a_driver_without_torch_is_an_error(tmp_path, monkeypatch):
    assert [one.severity for one in devices.judge_clock("cuda:0", "1980", "1980", 0x0)] == ["ok"]
    (hot,) = devices.judge_clock("cuda:0", "345", "1980", 0x40)
    assert hot.severity == "warning" and "345 of 1980 MHz" in hot.found and "hot" in hot.found
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, NVIDIA H100, 570.1, 81559, 0, [N/A]'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (unseen,) = devices.check_devices({"CUDA_VISIBLE_DEVICES": ""})
    assert unseen.severity == "error" and "the driver sees 1 GPUs" in unseen.found and unseen.do


def test_clocks_and_threads_are_compared_over_ranks():
    assert ranks.check_skew([100.0, 100.5]) is None
    apart = ranks.check_skew([100.0, 90.0])
    assert apart is not None and "10.0 s; the one of rank 1 is behind" in apart.found
    report = [RankReport("n1", rank, [], threads=8, cores=list(range(8))) for rank in range(2)]
    (crowded,) = ranks.check_threads(report)
    assert "2 ranks with 16 threads on 8 cores" in crowded.found and crowded.do == "export OMP_NUM_THREADS=4"
    assert ranks.check_threads(report[:1]) == []


def test_packages_out_of_their_range_are_named(monkeypatch):
    monkeypatch.setattr(builds.importlib.metadata, "version", lambda name: "0.0.1" if name == "torch" else "9999")
    found = builds.check_packages()
    assert found.severity == "error" and "torch is 0.0.1, tested are" in found.found


def test_interfaces_are_those_of_this_machine():
    name = socket.if_nameindex()[0][1]
    environ = {"GLOO_SOCKET_IFNAME": name}
    assert only(check_surroundings(environ, find_rank(environ)), "network").severity == "ok"
