"""`simcast doctor` with the variables of each launcher on two ranks: it connects them, or names what does not fit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.multi_rank.runs import environment, free_port, simcast

pytestmark = pytest.mark.multi
# Variables of a rank as the launcher sets them; R is the rank.
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "R", "SLURM_STEP_NUM_TASKS": "2"}
CONNECTED = {
    "torchrun or deepspeed": {"RANK": "R", "WORLD_SIZE": "2", "LOCAL_RANK": "R"},
    "srun": SLURM | {"SLURM_LOCALID": "R", "SLURM_NTASKS": "2"},
    "srun, heterogeneous": SLURM | {"SLURM_LOCALID": "R", "SLURM_NTASKS": "1", "SLURM_HET_SIZE": "2"},
    "flux run": {"FLUX_TASK_RANK": "R", "FLUX_JOB_SIZE": "2", "FLUX_TASK_LOCAL_ID": "R", "FLUX_JOB_ID": "f7"},
    "jsrun": {"JSM_NAMESPACE_RANK": "R", "JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_LOCAL_RANK": "R", "PMIX_RANK": "R"},
}
# MPI itself is not started here: mpi4py sees a world of one process, as with an MPI library of another launcher.
REJECTED = {
    "mpiexec (Open MPI)": (
        {"OMPI_COMM_WORLD_RANK": "R", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "R"},
        "mpiexec (Open MPI) started 2 ranks, and mpi4py uses MPICH",
    ),
    "mpiexec (MPICH)": (
        {"MPI_LOCALRANKID": "R", "PMI_RANK": "R", "PMI_SIZE": "2"},
        "mpiexec (MPICH) started 2 ranks, and mpi4py uses MPICH",
    ),
    "mpirun_rsh (MVAPICH)": (
        {"MV2_COMM_WORLD_RANK": "R", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "R"},
        "mpirun_rsh (MVAPICH) started 2 ranks, and mpi4py uses MPICH",
    ),
    "mpiexec (PALS)": (
        {"PALS_RANKID": "R", "PALS_LOCAL_RANKID": "R", "PMI_SIZE": "2"},
        "mpiexec (PALS) started 2 ranks, and mpi4py uses MPICH",
    ),
    "prterun": ({"PMIX_RANK": "R"}, "PMIX_RANK is set, so prterun (PMIx) started this process, but it sets no world"),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, Any]]]:
    """Exit status and printed report of both ranks under each launcher."""
    folder = tmp_path_factory.mktemp("doctor")
    variables = CONNECTED | {name: own for name, (own, _) in REJECTED.items()}
    jobs = {
        name: [
            {key: value.replace("R", str(rank)) for key, value in own.items()}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            for rank in range(2)
        ]
        for name, own in variables.items() for port in [str(free_port())]
    }  # fmt: skip
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    launchers = ("SLURM_", "PMI", "OMPI_", "PALS_", "FLUX_", "JSM_", "MV2_", "MPI_")
    clean = {key: value for key, value in environment().items() if not key.startswith(launchers)}
    clean["TORCH_EXTENSIONS_DIR"] = str(folder / "extensions")
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.doctor_ranks", str(file), str(folder)],
        env=clean, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)] for name in jobs}


@pytest.mark.parametrize("name", CONNECTED)
def test_ranks_of_the_launcher_connect(reports, name):
    (status, report), (other, printed) = reports[name]
    ((_, node),) = report["nodes"].items()
    errors = [finding for finding in node["findings"] if finding["severity"] == "error"]
    assert (status, other, printed, errors) == (0, 0, None, [])
    assert report["healthy"] and report["launcher"] == name.partition(",")[0]
    assert [rank["rank"] for rank in node["ranks"]] == [0, 1]
    messages = {finding["check"]: finding["message"] for finding in node["findings"]}
    assert messages["ranks"] == "all-reduce over 2 ranks by gloo is correct" and messages["CPU binding"]
    assert all(rank["cpu_binding"] for rank in node["ranks"])


@pytest.mark.parametrize("name", REJECTED)
def test_what_does_not_fit_is_named_on_every_rank_without_waiting(reports, name):
    statuses = [status for status, _ in reports[name]]
    _, report = reports[name][0]
    ((_, node),) = report["nodes"].items()
    messages = [finding["message"] for finding in node["findings"] if finding["severity"] == "error"]
    assert statuses == [1, 1] and not report["healthy"]
    assert any(message.startswith(REJECTED[name][1]) for message in messages), messages


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_installed_launchers(launcher, tmp_path):
    words = ["doctor", "--json", "--run-dir", str(tmp_path), "--min-free-gib", "0"]
    done = simcast(launcher, 2, words, check=False)
    begin = f"\n{done.stdout}".index("\n{")  # deepspeed prints lines before and after
    report, _ = json.JSONDecoder().raw_decode(done.stdout[begin:])
    assert done.returncode == 0 and report["healthy"]
    ((_, node),) = report["nodes"].items()
    assert [rank["rank"] for rank in node["ranks"]] == [0, 1] and report["launcher"] == "torchrun or deepspeed"
