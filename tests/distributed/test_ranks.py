"""Rank and world size from each launcher's variables; incomplete ones raise an error that names the variable."""

import pytest

from simcast_hpc.distributed.ranks import LauncherError, RankInfo, find_rank

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
MPICH = {"MPI_LOCALRANKID": "1", "PMI_RANK": "5", "PMI_SIZE": "8"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MVAPICH = {"MVP_COMM_WORLD_RANK": "5", "MVP_COMM_WORLD_SIZE": "8", "MVP_COMM_WORLD_LOCAL_RANK": "1"}
MVAPICH2 = {name.replace("MVP", "MV2"): value for name, value in MVAPICH.items()}
PALS = {"PALS_RANKID": "5", "PALS_LOCAL_RANKID": "1", "PMI_RANK": "5", "PMI_SIZE": "8", "PMI_LOCAL_RANK": "1"}
FLUX = {"FLUX_TASK_RANK": "5", "FLUX_JOB_SIZE": "8", "FLUX_TASK_LOCAL_ID": "1", "PMI_RANK": "5", "PMI_SIZE": "8"}
JSRUN = {"JSM_NAMESPACE_RANK": "5", "JSM_NAMESPACE_SIZE": "8", "JSM_NAMESPACE_LOCAL_RANK": "1", "PMIX_RANK": "5"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
LAUNCHERS = [
    ("torchrun or deepspeed", TORCHRUN),
    ("mpiexec (MPICH)", MPICH),
    ("mpiexec (Open MPI)", OPEN_MPI),
    ("mpirun_rsh (MVAPICH)", MVAPICH),
    ("mpirun_rsh (MVAPICH)", MVAPICH2),
    ("mpiexec (PALS)", PALS),
    ("flux run", FLUX),
    ("jsrun", JSRUN),
    ("srun", SRUN),
]
IDS = ["torchrun", "MPICH", "Open MPI", "MVAPICH", "MVAPICH2", "PALS", "Flux", "jsrun", "srun"]


@pytest.mark.parametrize(("launcher", "environ"), LAUNCHERS, ids=IDS)
def test_each_launcher_is_read(launcher, environ):
    assert find_rank({"PATH": "/bin", **environ}) == RankInfo(rank=5, world_size=8, local_rank=1, launcher=launcher)


def test_without_a_launcher_a_process_is_alone():
    assert find_rank({"PATH": "/bin"}) == RankInfo(rank=0, world_size=1, local_rank=0, launcher="none")


def test_a_batch_script_that_starts_python_itself_is_alone():
    environ = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "0"}
    assert find_rank(environ).world_size == 1


@pytest.mark.parametrize("outer", [environ for _, environ in LAUNCHERS[1:]], ids=IDS[1:])
def test_rank_wins_inside_another_launcher(outer):
    inside = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}
    assert find_rank({**outer, **inside}) == RankInfo(2, 4, 2, "torchrun or deepspeed")


@pytest.mark.parametrize(("launcher", "environ"), LAUNCHERS[1:5], ids=IDS[1:5])
def test_mpiexec_wins_inside_a_slurm_step(launcher, environ):
    step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
    assert find_rank({**step, **environ}) == RankInfo(5, 8, 1, launcher)


def test_mpiexec_wins_inside_a_task_of_flux():
    task = {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "1", "FLUX_TASK_LOCAL_ID": "0"}
    assert find_rank({**task, **MPICH}) == RankInfo(5, 8, 1, "mpiexec (MPICH)")


@pytest.mark.parametrize("more", [{"PMI_RANK": "5", "PMI_SIZE": "8"}, {"PMIX_RANK": "5"}], ids=["pmi2", "pmix"])
def test_srun_with_a_process_manager_interface_is_srun(more):
    assert find_rank({**SRUN, **more}) == RankInfo(5, 8, 1, "srun")


def test_heterogeneous_step_is_one_program():
    # Seen with Slurm 22.05: `srun --het-group=0,1` of components with 2 and 3 tasks; rank 4 is the last one.
    step = {
        "SLURM_HET_SIZE": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "4", "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_LOCALID": "2", "SLURM_NTASKS_HET_GROUP_0": "2", "SLURM_NTASKS_HET_GROUP_1": "3",
    }  # fmt: skip
    assert find_rank(step) == RankInfo(4, 5, 2, "srun")


@pytest.mark.parametrize("name", ["PMIX_RANK", "MPIRUN_RANK", "MPT_LRANK"])
def test_rejects_a_launcher_without_a_number_of_ranks(name):
    with pytest.raises(LauncherError, match=rf"{name} is set, so .* it sets no world size; export RANK"):
        find_rank({name: "3"})


# Each launcher without one of the variables that follow the one which identifies it; the others have no meaning.
_OTHERS = {
    "flux run": ("PMI_RANK", "PMI_SIZE"),
    "jsrun": ("PMIX_RANK",),
    "mpiexec (PALS)": ("PMI_RANK", "PMI_LOCAL_RANK"),
}
HALVES = [
    (launcher, environ, name)
    for launcher, environ in LAUNCHERS
    for name in list(environ)[1:]
    if name not in _OTHERS.get(launcher, ())
]


@pytest.mark.parametrize(("launcher", "environ", "name"), HALVES, ids=[name for _, _, name in HALVES])
def test_a_missing_variable_is_named(launcher, environ, name):
    half = {key: value for key, value in environ.items() if key != name}
    with pytest.raises(LauncherError) as caught:
        find_rank(half)
    message = str(caught.value)
    assert f"{name} is not set" in message and launcher in message and next(iter(environ)) in message


def test_names_the_variable_that_another_mpiexec_lacks():
    with pytest.raises(LauncherError, match=r"PMI_RANK is set, so mpiexec .* but MPI_LOCALRANKID is not set"):
        find_rank({"PMI_RANK": "5", "PMI_SIZE": "8"})


@pytest.mark.parametrize("text", ["", "\u0665", "five", "-1", "1.0"])
def test_rejects_a_variable_that_is_not_a_number(text):
    with pytest.raises(LauncherError, match=rf"LOCAL_RANK='{text}' is not a number"):
        find_rank({**TORCHRUN, "LOCAL_RANK": text})


def test_rejects_a_rank_beyond_the_world_size():
    with pytest.raises(LauncherError, match="torchrun or deepspeed set rank 8 of 8"):
        find_rank({**TORCHRUN, "RANK": "8"})


def test_rejects_a_world_size_without_a_rank():
    with pytest.raises(LauncherError, match="WORLD_SIZE=8 is set but RANK is not"):
        find_rank({"WORLD_SIZE": "8", "LOCAL_RANK": "1"})
