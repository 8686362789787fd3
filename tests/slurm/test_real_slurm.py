"""The batch scripts under a real Slurm of three nodes: what each does at its end, at a signal, when a node is lost."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from simcast_hpc.config import PipelineConfig, TrainConfig, from_mapping, to_yaml
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.train.checkpoint import visible
from tests.multi_rank.runs import losses, weights
from tests.slurm.real_cluster import REPOSITORY
from tests.slurm.real_jobs import SHARED, TINY, Job, ranks_of

pytestmark = pytest.mark.slurm
SCRIPTS = ["distill_sevir.sh", "train.sh", "chain.sh", "evaluate.sh"]
_STEPS = 600


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("archive") / "storms"
    write_archive(root, seed=5, events={"train": 6, "val": 1, "test": 3}, size=16, frames_per_event=12)
    return root


@pytest.fixture(scope="module")
def teacher_yaml(tmp_path_factory) -> Path:
    config = from_mapping(
        TrainConfig, SHARED | {"stage": "teacher", "max_steps": _STEPS, "checkpoint": {"every_steps": 25}}
    )
    path = tmp_path_factory.mktemp("config") / "teacher.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pipeline_yaml(tmp_path_factory) -> Path:
    stages = {"teacher": {"max_steps": 20}, "student": {"max_steps": 20}}
    config = from_mapping(
        PipelineConfig,
        SHARED
        | {
            "stages": stages,
            "student": {"init": "teacher", "rollouts": "cached", "pseudo_dtype": "uint8"},
            "evaluation": {"min_observed_pixels": 20, "min_observed_events": 2},
        },
    )
    path = tmp_path_factory.mktemp("config") / "pipeline.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def uninterrupted(cluster, archive, teacher_yaml, tmp_path_factory) -> Path:
    """Return the run directory of an uninterrupted job."""
    job = Job(cluster, archive, tmp_path_factory.mktemp("uninterrupted") / "run", "train.sh", str(teacher_yaml))
    assert job.end() == ("COMPLETED", 0)
    assert (job.run_dir / "DONE.json").is_file() and len(losses(job.run_dir)) == _STEPS
    return job.run_dir


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_the_resources_of_every_script(cluster, script):
    """The `#SBATCH` lines of the scripts, unchanged."""
    cluster.run("sbatch", "--test-only", str(REPOSITORY / "slurm" / script))


def test_distillation_job_writes_marker_and_report(cluster, archive, pipeline_yaml, tmp_path):
    """No GPU is requested: the GPUs of this cluster are not real, which the check of the nodes would report."""
    variables = {"CONFIG": str(pipeline_yaml), "CHECK_NODES": "1"}
    job = Job(cluster, archive, tmp_path / "run", "distill_sevir.sh", options=(*TINY, "--gpus-per-node=0"), **variables)
    assert job.end(600) == ("COMPLETED", 0)
    assert (job.run_dir / "DONE.json").is_file()
    assert "student" in (job.run_dir / "report" / "index.html").read_text(encoding="utf-8")
    output = job.output()
    assert "rank 0 on n1: cpu" in output and "rank 1 on n2: cpu" in output
    for stage in ("teacher", "student"):
        assert json.loads((job.run_dir / stage / "DONE.json").read_text(encoding="utf-8"))["steps"] == 20
    again = Job(cluster, archive, job.run_dir, "distill_sevir.sh", CONFIG=str(pipeline_yaml))
    assert again.end(300) == ("COMPLETED", 0)
    assert again.output().count("nothing to do") >= 2, "finished stages are skipped"


def test_result_is_unchanged_by_signal_preemption_and_lost_node(
    cluster, archive, teacher_yaml, uninterrupted, tmp_path
):
    job = Job(cluster, archive, tmp_path / "run", "train.sh", str(teacher_yaml))
    job.wait_for_step(40)
    cluster.run("scancel", "--signal=USR2", "--batch", job.number)
    job.wait_for_step(140, restarts=1)
    urgent = cluster.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2", "--time=1"
    )
    assert cluster.end(urgent) == ("COMPLETED", 0)
    job.wait_for_step(240, restarts=2)
    cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=drill")
    cluster.wait(lambda: job.cluster.job(job.number)["Restarts"] == "3", what="Slurm takes the job back", seconds=90)
    # A node whose daemon has registered again is up already, and cannot be resumed.
    cluster.run("scontrol", "update", "nodename=n2", "state=resume", check=False)
    cluster.wait(lambda: "down" not in cluster.run("sinfo", "-h", "-n", "n2", "-o", "%T"), what="n2 is up", seconds=60)
    assert job.end() == ("COMPLETED", 0)
    assert "USR2: the tasks save and exit" in job.output()
    assert job.output().count("is saved: the job is requeued") >= 2
    assert "signal SIGUSR2: saved at step" in job.output() and "signal SIGTERM: saved at step" in job.output()
    assert losses(job.run_dir) == losses(uninterrupted)
    assert all(torch.equal(tensor, weights(uninterrupted)[name]) for name, tensor in weights(job.run_dir).items())


def test_cancelled_job_saves_and_is_not_requeued(cluster, archive, teacher_yaml, tmp_path):
    job = Job(cluster, archive, tmp_path / "run", "train.sh", str(teacher_yaml))
    job.wait_for_step(10)
    cluster.run("scancel", job.number)
    assert job.end()[0] == "CANCELLED"
    time.sleep(2)
    assert cluster.state(job.number) == "CANCELLED" and "is requeued" not in job.output()
    assert visible(job.run_dir / "checkpoints") and not (job.run_dir / "DONE.json").exists()


def test_crash_before_a_checkpoint_ends_the_job(cluster, archive, teacher_yaml, tmp_path):
    job = Job(cluster, archive, tmp_path / "run", "train.sh", str(teacher_yaml), "--set", "checkpoint.every_steps=1000")
    job.wait_for_step(10)
    ranks = ranks_of(job)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    state, status = job.end()
    assert state == "FAILED" and status not in (0, 85)
    assert cluster.job(job.number)["Restarts"] == "0"
    assert f"{teacher_yaml} ended with {status}, and this start completed no checkpoint or stage" in job.output()


def test_result_is_unchanged_by_a_crash_and_a_hang(cluster, archive, teacher_yaml, uninterrupted, tmp_path):
    watched = ("--set", "watch.hang_minutes=0.2")
    job = Job(cluster, archive, tmp_path / "run", "train.sh", str(teacher_yaml), *watched)
    job.wait_for_step(60)
    ranks_of(job)[1].send_signal(signal.SIGKILL)
    job.wait_for_step(160, restarts=1)
    ranks_of(job)[1].send_signal(signal.SIGSTOP)  # the other rank waits in a collective until its watchdog ends it
    job.wait_for_step(260, restarts=2)
    assert job.end() == ("COMPLETED", 0)
    output = job.output()
    assert output.count("completed a checkpoint or stage: the job is requeued") == 2
    assert output.count("is not excluded: partition normal has only 1 nodes without n") == 2, "the job needs both nodes"
    assert losses(job.run_dir) == losses(uninterrupted)
    assert all(torch.equal(tensor, weights(uninterrupted)[name]) for name, tensor in weights(job.run_dir).items())


def test_next_start_avoids_the_node_of_a_killed_task(cluster, archive, teacher_yaml, uninterrupted, tmp_path):
    job = Job(cluster, archive, tmp_path / "run", "train.sh", str(teacher_yaml), SBATCH_PARTITION="wide")
    job.wait_for_step(60)
    killed = ranks_of(job)[1]
    node = killed.environ()["SLURMD_NODENAME"]
    killed.send_signal(signal.SIGKILL)
    job.wait_for_step(160, restarts=1)
    fields = cluster.job(job.number)
    assert fields["ExcNodeList"] == node and {one.environ()["SLURMD_NODENAME"] for one in ranks_of(job)} == (
        {"n1", "n2", "n3"} - {node}
    )
    assert job.end() == ("COMPLETED", 0)
    assert f"the job does not start on {node} again" in job.output()
    assert losses(job.run_dir) == losses(uninterrupted)


def test_number_of_restarts_is_limited(cluster, archive, teacher_yaml, tmp_path):
    job = Job(cluster, archive, tmp_path / "run", "train.sh", str(teacher_yaml), MAX_RESTARTS="0")
    job.wait_for_step(10)
    cluster.run("scancel", "--signal=USR2", "--batch", job.number)
    assert job.end() == ("FAILED", 85)
    assert "MAX_RESTARTS=0 is reached" in job.output()


def _chain(cluster, archive, run_dir: Path, pipeline_yaml: Path) -> dict[str, str]:
    """Submit a chain and return its jobs by part."""
    variables = {
        "PYTHON": sys.executable, "DATA_ROOT": str(archive), "RUN_DIR": str(run_dir), "CONFIG": str(pipeline_yaml),
        "CHECK_NODES": "0", "ROLLOUT_JOBS": "2", "SBATCH_OUTPUT": str(run_dir.with_name("chain-%j.log")),
        "SBATCH_OPTIONS": "--nodes=1 --ntasks-per-node=1 --cpus-per-task=1 --gpus-per-node=1 --time=20 --output="
        + str(run_dir.with_name("chain-%x-%j.log")),
    }  # fmt: skip
    output = cluster.run("bash", "slurm/chain.sh", **variables)
    return {part: number for number, part in (line.split() for line in output.splitlines())}


def test_chain_of_jobs_writes_the_report(cluster, archive, pipeline_yaml, tmp_path):
    jobs = _chain(cluster, archive, tmp_path / "run", pipeline_yaml)
    assert list(jobs) == ["prepare", "teacher", "student:rollouts", "student", "verify"]
    ended = cluster.end(jobs["verify"], seconds=600)
    print("".join(path.read_text(encoding="utf-8")[-1500:] for path in sorted(tmp_path.glob("chain-*.log"))))
    assert ended == ("COMPLETED", 0)
    assert (tmp_path / "run" / "DONE.json").is_file() and (tmp_path / "run" / "report" / "index.html").is_file()


def test_a_failed_parent_ends_the_chain(cluster, archive, pipeline_yaml, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    jobs = _chain(cluster, archive, tmp_path / "run", pipeline_yaml)
    assert cluster.end(jobs["prepare"], seconds=120) == ("FAILED", 75)
    for part in ("teacher", "student", "verify"):
        assert cluster.end(jobs[part], seconds=60)[0] == "CANCELLED", part
