"""When a batch script requeues its job: signals, preemption, crashes and hangs, and the limits of restarts."""

import os
import signal

import pytest

from tests.slurm.fake_cluster import FakeCluster


@pytest.fixture
def cluster(tmp_path):
    return FakeCluster(tmp_path)


def parts(cluster):
    """Return the part of every job step."""
    steps = [call["arguments"] for call in cluster.calls("srun")]
    return [arguments[arguments.index("--part") + 1] for arguments in steps if "--part" in arguments]


def started(cluster, **changes):
    """Start a job whose first step does not end by itself, and wait until the step runs."""
    job = cluster.start(changes={"FAKE_HANGS": "1", **changes})
    cluster.wait_for(lambda: bool(parts(cluster)))
    return job


def scontrol(cluster, word):
    """Return the arguments of the calls of one command of ``scontrol``."""
    return [call["arguments"] for call in cluster.calls("scontrol") if call["arguments"][0] == word]


def test_time_limit_saves_and_requeues(cluster):
    job = started(cluster)
    job.send_signal(signal.SIGUSR2)
    cluster.wait_for(lambda: bool(scontrol(cluster, "requeue")))
    assert scontrol(cluster, "requeue") == [["requeue", "20123"]]
    assert job.poll() is None, "Slurm ends the job, not the script"
    job.terminate()
    output, _ = job.communicate(timeout=20)
    assert "prepare is saved: the job is requeued" in output


def test_time_limit_between_steps_requeues(cluster):
    job = cluster.start(changes={"FAKE_PARTS_SECONDS": "2"})
    cluster.wait_for(lambda: bool(cluster.calls("srun")))
    job.send_signal(signal.SIGUSR2)
    cluster.wait_for(lambda: bool(scontrol(cluster, "requeue")))
    job.terminate()
    output, _ = job.communicate(timeout=20)
    assert "everything before prepare is saved: the job is requeued" in output and parts(cluster) == []


@pytest.mark.parametrize("status", ["85", "140", "143"])
def test_preempted_step_is_requeued(cluster, status):
    """A preemption sends TERM only to the tasks, which ends them before their handler is installed."""
    job = cluster.start(changes={"FAKE_STATE": status})
    cluster.wait_for(lambda: bool(scontrol(cluster, "requeue")))
    job.terminate()
    job.communicate(timeout=20)


def test_cancelled_job_is_not_requeued(cluster):
    job = started(cluster)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == 143
    assert "cancelled in prepare" in output
    assert scontrol(cluster, "requeue") == []


@pytest.mark.parametrize(("reason", "status"), [("STOP", 75), ("MAX_RESTARTS", 85)])
def test_time_limit_of_the_last_restart_does_not_requeue(cluster, reason, status):
    job = started(cluster, SLURM_RESTART_COUNT="2", MAX_RESTARTS="2" if reason == "MAX_RESTARTS" else "20")
    if reason == "STOP":
        (cluster.run_dir / "STOP").touch()
    job.send_signal(signal.SIGUSR2)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == status
    assert reason in output and "not requeued" in output
    assert scontrol(cluster, "requeue") == []


FAILED = "srun: error: node01: tasks 0-3: Exited with exit code 86\nsrun: error: node02: task 5: Killed"


def crashed(cluster, status, **changes):
    """Run a job whose first step ends with ``status`` after it wrote a checkpoint, until it is requeued."""
    job = cluster.start(
        changes={"FAKE_STATE": status, "FAKE_PROGRESS": "1", "FAKE_ERRORS": FAILED, "SLURM_JOB_NUM_NODES": "2"}
        | changes
    )
    cluster.wait_for(lambda: bool(scontrol(cluster, "requeue")) or job.poll() is not None)
    return job


@pytest.mark.parametrize("status", ["1", "86", "134", "137", "139"])
def test_crash_after_a_new_checkpoint_is_requeued(cluster, status):
    job = crashed(cluster, status)
    updates = [["update", "JobId=20123", "ExcNodeList=node02"]] if status != "1" else []
    cluster.wait_for(lambda: scontrol(cluster, "update") == updates)
    job.terminate()
    output, _ = job.communicate(timeout=20)
    assert scontrol(cluster, "requeue") == [["requeue", "20123"]]
    assert f"prepare ended with {status}" in output and "completed a checkpoint or stage: the job is requeued" in output
    assert FAILED.splitlines()[0] in output, "the messages of srun are in the log"


@pytest.mark.parametrize(
    ("before", "excluded"), [("node09", "node09,node02"), ("node03", None)], ids=["more", "too-few"]
)
def test_nodes_are_excluded_if_enough_others_remain(cluster, before, excluded):
    job = crashed(cluster, "137", FAKE_EXCLUDED=before)
    cluster.wait_for(lambda: scontrol(cluster, "update") or before == "node03")
    if excluded is None:
        cluster.wait_for(lambda: len(scontrol(cluster, "show")) >= 3)
    job.terminate()
    output, _ = job.communicate(timeout=20)
    assert scontrol(cluster, "update") == (
        [] if excluded is None else [["update", "JobId=20123", f"ExcNodeList={excluded}"]]
    )
    assert ("partition gpu has only 1 nodes without node03,node02" in output) == (excluded is None)


@pytest.mark.parametrize(
    ("status", "changes", "says"),
    [
        ("137", {"FAKE_PROGRESS": None}, "this start completed no checkpoint or stage: not requeued"),
        ("2", {}, "prepare ended with 2"),
        ("75", {}, "prepare ended with 75"),
        ("137", {"MAX_RESTARTS": "0"}, "MAX_RESTARTS=0 is reached: not requeued"),
    ],
    ids=["no-progress", "invalid-input", "stopped", "last-restart"],
)
def test_other_failures_end_the_job_with_their_status(cluster, status, changes, says):
    job = crashed(cluster, status, **changes)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == int(status) and says in output and scontrol(cluster, "requeue") == []
    assert not list(cluster.run_dir.glob(".job-*")), "the record of the job is removed"


def test_a_checkpoint_of_an_earlier_start_is_no_progress(cluster):
    earlier = cluster.run_dir / "teacher" / "checkpoints" / "step-00000010"
    earlier.mkdir(parents=True)
    (earlier / "manifest.json").touch()
    os.utime(earlier / "manifest.json", (1, 1))
    job = crashed(cluster, "137", FAKE_PROGRESS=None)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == 137 and "completed no checkpoint" in output
