"""The batch scripts: sound shell, nothing of one site in them, and the right requests in the right order."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simcast_hpc.cli import app
from simcast_hpc.config import TrainConfig, read_config
from tests.slurm.fake_cluster import REPOSITORY, FakeCluster
from tests.system_programs import program

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sh"))
SHELL = [*SCRIPTS, REPOSITORY / ".ci" / "run"]


def names(paths):
    return [path.name for path in paths]


@pytest.fixture
def cluster(tmp_path):
    return FakeCluster(tmp_path)


def stages(cluster):
    """Return the stage of every step that was started, by its configuration file."""
    return [Path(argument).parent.name for call in cluster.calls("srun") for argument in call["arguments"] if
            argument.endswith(".yaml")]  # fmt: skip


def test_there_are_scripts():
    assert "distill_sevir.sh" in names(SCRIPTS)


@pytest.mark.parametrize("script", SHELL, ids=names(SHELL))
def test_bash_can_read_it(script):
    told = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize("script", SHELL, ids=names(SHELL))
def test_shellcheck_has_nothing_to_say(script):
    checker = program("shellcheck", package="shellcheck")
    told = subprocess.run([checker, "--external-sources", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=names(SCRIPTS))
def test_nothing_of_one_site_stands_in_it(script):
    text = script.read_text()
    directives = re.findall(r"^#SBATCH\s+(\S+)", text, flags=re.MULTILINE)
    assert directives, "a batch script without #SBATCH lines asks for one task on one node"
    theirs = ("--account", "-A", "--partition", "-p", "--qos", "-q", "--mail-user", "--nodelist", "-w", "--chdir", "-D")
    assert not [d for d in directives if d.split("=")[0] in theirs]
    assert "--requeue" in directives and "--open-mode=append" in directives and "--signal=B:USR2@300" in directives
    body = text.split("\n", maxsplit=1)[1]
    assert re.findall(r"(?<![\w.}\])/$])/\w[\w/.-]*", body.replace("/dev/null", "")) == [], "absolute paths"


@pytest.mark.parametrize("script", SCRIPTS, ids=names(SCRIPTS))
def test_every_command_that_it_calls_exists(script):
    called = re.findall(r"(?:-m simcast_hpc|\bsimcast)\s+([a-z]+)", script.read_text())
    assert called
    for command in called:
        told = CliRunner().invoke(app, [command, "--help"])
        assert told.exit_code == 0, f"{script.name} calls simcast {command}: {told.output}"


def test_teacher_then_student_each_with_a_configuration_that_holds(cluster):
    state, output = cluster.run("--set", "batch.micro_size=2")
    assert state == 0, output
    assert stages(cluster) == ["teacher", "student"]
    for call in cluster.calls("srun"):
        arguments = call["arguments"]
        assert "--kill-on-bad-exit=1" in arguments
        start = arguments.index("-m")
        assert arguments[start : start + 3] == ["-m", "simcast_hpc", "train"]
        path, *rest = arguments[start + 3 :]
        assert rest[::2] == ["--set"] * (len(rest) // 2)
        config = read_config(TrainConfig, REPOSITORY / path, rest[1::2])
        assert config.run_dir == cluster.run_dir / config.stage
        assert config.data.root == Path(cluster.environment["SEVIR_ROOT"])
        assert config.batch.micro_size == 2
        if config.stage == "student":
            assert config.student.teacher == cluster.run_dir / "teacher"
            assert config.student.rollouts == "online"


def test_environment_of_a_step(cluster):
    cluster.run(changes={"SLURM_RESTART_COUNT": "3"})
    environment = cluster.calls("srun")[0]["environment"]
    assert environment.pop("TORCH_EXTENSIONS_DIR").endswith("simcast-20123-3/torch_extensions")
    assert environment == {
        "MASTER_ADDR": "node01",
        "MASTER_PORT": "20123",
        "OMP_NUM_THREADS": "8",
        "SRUN_CPUS_PER_TASK": "8",
        "HDF5_USE_FILE_LOCKING": "FALSE",
    }


def test_two_jobs_have_two_ports(cluster):
    cluster.run(changes={"SLURM_JOB_ID": "40124"})
    assert cluster.calls("srun")[0]["environment"]["MASTER_PORT"] == "20124"


def test_a_failed_stage_ends_the_job_with_its_status(cluster):
    state, output = cluster.run(changes={"FAKE_STATE": "9"})
    assert state == 9
    assert stages(cluster) == ["teacher"]
    assert "teacher ended with 9" in output


def test_success_without_a_marker_is_not_believed(cluster):
    state, output = cluster.run(changes={"FAKE_NO_MARKER": "1"})
    assert state == 70
    assert stages(cluster) == ["teacher"]
    assert "DONE.json is not there" in output


def test_stop_file_keeps_stages_from_starting(cluster):
    cluster.run_dir.mkdir()
    (cluster.run_dir / "STOP").touch()
    state, output = cluster.run()
    assert state == 75
    assert stages(cluster) == []
    assert "teacher is not started" in output


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"SLURM_JOB_ID": None}, "sbatch slurm/distill_sevir.sh"),
        ({"SEVIR_ROOT": None}, "SEVIR_ROOT is not set"),
        ({"SEVIR_ROOT": "nowhere"}, "SEVIR_ROOT=nowhere holds no CATALOG.csv"),
    ],
    ids=["not-a-job", "no-archive", "wrong-archive"],
)
def test_refusals_name_what_is_missing(cluster, changes, says):
    state, output = cluster.run(changes=changes)
    assert state == 2
    assert says in output
    assert cluster.calls("srun") == []


def started(cluster, **changes):
    """Start a job whose first step does not end by itself, and wait for that step."""
    job = cluster.start(changes={"FAKE_HANGS": "1", **changes})
    cluster.wait_for(lambda: bool(cluster.calls("srun")))
    return job


def requeues(cluster):
    return [call["arguments"] for call in cluster.calls("scontrol") if call["arguments"][0] == "requeue"]


def test_near_the_limit_the_job_queues_itself_again_and_trains_on(cluster):
    job = started(cluster)
    job.send_signal(signal.SIGUSR2)
    cluster.wait_for(lambda: bool(requeues(cluster)))
    assert requeues(cluster) == [["requeue", "20123"]]
    assert job.poll() is None, "Slurm ends the job, not the script"
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == 143, output


def test_a_cancelled_job_does_not_come_back(cluster):
    job = started(cluster)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == 143
    assert "cancelled in teacher" in output
    assert requeues(cluster) == []


@pytest.mark.parametrize("reason", ["STOP", "MAX_RESTARTS"])
def test_near_the_limit_of_the_last_restart_nothing_is_queued(cluster, reason):
    job = started(cluster, SLURM_RESTART_COUNT="2", MAX_RESTARTS="2" if reason == "MAX_RESTARTS" else "20")
    if reason == "STOP":
        (cluster.run_dir / "STOP").touch()
    job.send_signal(signal.SIGUSR2)
    assert job.stdout is not None
    line = next(text for text in job.stdout if "USR2" in text)
    assert reason in line and "not queued again" in line
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=20)
    assert requeues(cluster) == []


@pytest.mark.slow
def test_the_trainer_skips_the_stages_that_are_done(tmp_path):
    from simcast_hpc.data.synthetic import write_archive

    cluster = FakeCluster(tmp_path, host="127.0.0.1", run_tasks=True)
    archive = tmp_path / "storms"
    write_archive(archive, seed=1, events={"train": 2})
    small = {
        "data.dataset": "synthetic",
        "data.workers": "0",
        "model.hidden_spatial": "4",
        "model.hidden_temporal": "8",
        "model.temporal_blocks": "2",
        "model.groups": "2",
        "engine.precision": "fp32",
        "batch.global_size": "2",
        "max_steps": "2",
    }
    arguments = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    changes = {"SEVIR_ROOT": str(archive), "SLURM_CPUS_PER_TASK": "1"}
    state, output = cluster.run(*arguments, changes=changes, seconds=300)
    assert state == 0, output
    markers = [cluster.run_dir / stage / "DONE.json" for stage in ("teacher", "student")]
    before = [marker.stat().st_mtime_ns for marker in markers]
    state, output = cluster.run(*arguments, changes=changes, seconds=300)
    assert state == 0, output
    assert output.count("nothing to do") == 2
    assert [marker.stat().st_mtime_ns for marker in markers] == before
