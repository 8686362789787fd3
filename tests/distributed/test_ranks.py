"""Rank and world size from each launcher's variables; incomplete ones raise an error that names the variable."""

import pytest

from simcast_hpc.distributed.ranks import LauncherError, RankInfo, find_rank

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
LAUNCHERS = [
    ("torchrun or deepspeed", TORCHRUN),
    ("mpiexec (MPICH)", MPICH),
    ("mpiexec (Open MPI)", OPEN_MPI),
    ("srun", SRUN),
]


@pytest.mark.parametrize(("launcher", "environ"), LAUNCHERS, ids=[name for name, _ in LAUNCHERS])
def test_each_launcher_is_read(launcher, environ):
    assert find_rank({"PATH": "/bin", **environ}) == RankInfo(rank=5, world_size=8, local_rank=1, launcher=launcher)


def test_without_a_launcher_a_process_is_alone():
    assert find_rank({"PATH": "/bin"}) == RankInfo(rank=0, world_size=1, local_rank=0, launcher="none")


def test_a_batch_script_that_starts_python_itself_is_alone():
    environ = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "0"}
    assert find_rank(environ).world_size == 1


@pytest.mark.parametrize("outer", [MPICH, OPEN_MPI, SRUN], ids=["MPICH", "Open MPI", "srun"])
def test_rank_wins_inside_another_launcher(outer):
    inside = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}
    assert find_rank({**outer, **inside}) == RankInfo(2, 4, 2, "torchrun or deepspeed")


@pytest.mark.parametrize(("launcher", "environ"), LAUNCHERS[1:3], ids=["MPICH", "Open MPI"])
def test_mpiexec_wins_inside_a_slurm_step(launcher, environ):
    step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
    assert find_rank({**step, **environ}) == RankInfo(5, 8, 1, launcher)


def test_srun_with_pmi2_is_srun():
    assert find_rank({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8"}) == RankInfo(5, 8, 1, "srun")


HALVES = [
    (launcher, environ, name)
    for launcher, environ in LAUNCHERS
    for name in environ
    if name not in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID")
]


@pytest.mark.parametrize(("launcher", "environ", "name"), HALVES, ids=[name for _, _, name in HALVES])
def test_a_missing_variable_is_named(launcher, environ, name):
    half = {key: value for key, value in environ.items() if key != name}
    with pytest.raises(LauncherError) as caught:
        find_rank(half)
    message = str(caught.value)
    assert f"{name} is not set" in message and launcher in message and next(iter(environ)) in message


@pytest.mark.parametrize("text", ["", "five", "-1", "1.0"])
def test_rejects_a_variable_that_is_not_a_number(text):
    with pytest.raises(LauncherError, match=rf"LOCAL_RANK='{text}' is not a number"):
        find_rank({**TORCHRUN, "LOCAL_RANK": text})


def test_rejects_a_rank_beyond_the_world_size():
    with pytest.raises(LauncherError, match="torchrun or deepspeed set rank 8 of 8"):
        find_rank({**TORCHRUN, "RANK": "8"})


def test_rejects_a_world_size_without_a_rank():
    with pytest.raises(LauncherError, match="WORLD_SIZE=8 is set but RANK is not"):
        find_rank({"WORLD_SIZE": "8", "LOCAL_RANK": "1"})
