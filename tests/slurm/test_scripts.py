"""The batch scripts: valid shell without site settings, and job steps with the right options in the right order."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simcast_hpc.cli import app
from simcast_hpc.config import PipelineConfig, read_config
from tests.slurm.fake_cluster import REPOSITORY, TRAIN, FakeCluster
from tests.system_programs import program

SHELL = [*sorted((REPOSITORY / "slurm").glob("*.sh")), REPOSITORY / ".ci" / "run"]
SCRIPTS = [path for path in SHELL if "#SBATCH" in path.read_text()]


def names(paths):
    return [path.name for path in paths]


@pytest.fixture
def cluster(tmp_path):
    return FakeCluster(tmp_path)


def stages(cluster):
    """Return the part of every job step."""
    steps = [call["arguments"] for call in cluster.calls("srun")]
    return [arguments[arguments.index("--part") + 1] for arguments in steps if "--part" in arguments]


def test_finds_all_scripts():
    assert names(SCRIPTS) == ["chain.sh", "distill_sevir.sh", "evaluate.sh", "train.sh"]


@pytest.mark.parametrize("script", SHELL, ids=names(SHELL))
def test_bash_syntax_is_valid(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SHELL, ids=names(SHELL))
def test_shellcheck_has_no_findings(script):
    checker = program("shellcheck", package="shellcheck")
    done = subprocess.run([checker, "--external-sources", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=names(SCRIPTS))
def test_scripts_contain_no_site_settings(script):
    text = script.read_text()
    directives = re.findall(r"^#SBATCH\s+(\S+)", text, flags=re.MULTILINE)
    assert directives, "a batch script without #SBATCH lines requests one task on one node"
    site_options = (
        "--account",
        "-A",
        "--partition",
        "-p",
        "--qos",
        "-q",
        "--mail-user",
        "--nodelist",
        "-w",
        "--chdir",
        "-D",
    )
    assert not [d for d in directives if d.split("=")[0] in site_options]
    assert "--requeue" in directives and "--open-mode=append" in directives and "--signal=B:USR2@300" in directives
    body = text.split("\n", maxsplit=1)[1]
    assert re.findall(r"(?<![\w.}\])/$])/\w[\w/.-]*", body.replace("/dev/null", "")) == [], "absolute paths"


@pytest.mark.parametrize("script", SHELL[:-1], ids=names(SHELL[:-1]))
def test_called_commands_exist(script):
    called = re.findall(r"(?:-m simcast_hpc|\bsimcast)\s+([a-z]+)", script.read_text())
    for command in called:
        done = CliRunner().invoke(app, [command, "--help"])
        assert done.exit_code == 0, f"{script.name} calls simcast {command}: {done.output}"


def test_parts_run_in_order_with_a_valid_configuration(cluster):
    state, output = cluster.run("--set", "batch.micro_size=2", changes={"CHECK_NODES": "1"})
    assert state == 0, output
    assert stages(cluster) == ["prepare", "teacher", "student", "verify"]
    assert "doctor" in cluster.calls("srun")[0]["arguments"], "the first step checks the nodes"
    for call in cluster.calls("srun"):
        arguments = call["arguments"]
        start = arguments.index("-m")
        if arguments[start + 2] == "doctor" or "--parts" in arguments:
            continue
        part = arguments[arguments.index("--part") + 1]
        assert "--kill-on-bad-exit=0" in arguments[:start] and "--wait=60" in arguments[:start]
        assert ("--ntasks=1" in arguments[:start]) == (part == "prepare")
        assert arguments[start : start + 3] == ["-m", "simcast_hpc", "pipeline"]
        path, _, _, *rest = arguments[start + 3 :]
        assert rest[::2] == ["--set"] * (len(rest) // 2)
        config = read_config(PipelineConfig, REPOSITORY / path, rest[1::2])
        assert config.run_dir == cluster.run_dir
        assert config.data.root == Path(cluster.environment["DATA_ROOT"])
        assert config.batch.micro_size == 2


def test_failed_node_check_ends_the_job(cluster):
    state, output = cluster.run(changes={"CHECK_NODES": None, "FAKE_STATE": "1", "MIN_FREE_GIB": "77"})
    (call,) = cluster.calls("srun")
    assert call["arguments"][-6:] == ["doctor", "--ranks", "--run-dir", str(cluster.run_dir), "--min-free-gib", "77"]
    assert state == 1 and "check of the nodes ended with 1" in output


def test_container_and_srun_options_precede_the_program(cluster):
    changes = {"CONTAINER": "apptainer exec --nv image.sif", "SRUN_OPTIONS": "--cpu-bind=none --exclusive"}
    cluster.run(changes=changes)
    for call in cluster.calls("srun"):
        arguments = call["arguments"]
        first = arguments.index("--cpu-bind=none")
        assert "--cpu-bind=cores" not in arguments[first:], "the last one is the valid one"
        assert arguments[first : first + 6] == [
            "--cpu-bind=none",
            "--exclusive",
            "apptainer",
            "exec",
            "--nv",
            "image.sif",
        ]
        assert arguments[first + 6] == cluster.environment["PYTHON"]


def test_prepared_shards_are_accepted(cluster, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "manifest.json").touch()
    state, output = cluster.run(changes={"DATA_ROOT": str(shards)})
    assert state == 0, output
    assert stages(cluster)[-1] == "verify"


def test_the_former_name_of_the_data_folder_is_read(cluster, tmp_path):
    root = cluster.environment["DATA_ROOT"]
    state, output = cluster.run("teacher/sevir", script=TRAIN, changes={"DATA_ROOT": None, "SEVIR_ROOT": root})
    assert state == 0 and f"data.root={root}" in cluster.calls("srun")[-1]["arguments"], output
    other = tmp_path / "of-the-site"
    shutil.copytree(REPOSITORY / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm" / "site.env").write_text(f"export DATA_ROOT={other}\n")
    changes = {"DATA_ROOT": None, "SEVIR_ROOT": root, "SLURM_SUBMIT_DIR": str(tmp_path)}
    state, output = cluster.run("teacher/sevir", script=TRAIN, changes=changes)
    assert state == 0 and f"data.root={root}" in cluster.calls("srun")[-1]["arguments"], output


def test_variables_of_a_submission_override_site_settings(cluster, tmp_path):
    shutil.copytree(REPOSITORY / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm" / "site.env").write_text(f"export RUN_DIR={tmp_path}/permanent MAX_RESTARTS=3\n")
    site = {"SLURM_SUBMIT_DIR": str(tmp_path)}
    state, output = cluster.run("teacher/sevir", script=TRAIN, changes=site)
    assert state == 0 and f"run_dir={cluster.run_dir}" in cluster.calls("srun")[-1]["arguments"], output
    state, output = cluster.run("teacher/sevir", script=TRAIN, changes=site | {"RUN_DIR": None})
    assert state == 0 and f"run_dir={tmp_path}/permanent" in cluster.calls("srun")[-1]["arguments"], output


def test_chain_lists_its_parts_in_the_container(cluster, tmp_path):
    programs, called = tmp_path / "bin", tmp_path / "called"
    for name, text in {"container": f'echo "$@" > {called}; printf "prepare\\nteacher\\n"', "sbatch": "echo 1"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    chain = REPOSITORY / "slurm" / "chain.sh"
    changes = {"SLURM_JOB_ID": None, "SLURM_SUBMIT_DIR": None, "CONTAINER": "container", "PYTHON": "python-of-image"}
    state, output = cluster.run(script=chain, changes=changes)
    assert (state, output) == (0, "1 prepare\n1 teacher\n")
    assert called.read_text().startswith("python-of-image -m simcast_hpc pipeline")


def test_data_are_copied_to_every_node_and_read_from_there(cluster, tmp_path):
    local = tmp_path / "local"
    state, output = cluster.run(changes={"LOCAL_DATA": str(local), "SLURM_JOB_NUM_NODES": "2"})
    assert state == 0, output
    copies = [call["arguments"] for call in cluster.calls("srun") if "copy" in call["arguments"]]
    target = copies[0][-1]
    assert Path(target).parent == local / f"simcast-{os.geteuid()}"
    assert [call[-4:] for call in copies] == [
        ["simcast_hpc.data.archive_copy", "copy", cluster.environment["DATA_ROOT"], target]
    ]
    assert "--ntasks-per-node=1" in copies[0] and "--ntasks=2" in copies[0]
    read = [word for call in cluster.calls("srun") if "--part" in call["arguments"] for word in call["arguments"]]
    assert f"data.root={target}" in read and f"data.root={cluster.environment['DATA_ROOT']}" not in read
    assert stages(cluster)[-1] == "verify"


def test_environment_of_a_step(cluster, tmp_path):
    cluster.run(changes={"SLURM_RESTART_COUNT": "3"})
    environment = cluster.calls("srun")[0]["environment"]
    names = ("TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    caches = [Path(environment.pop(name)) for name in names]
    assert [path.name for path in caches] == ["torch_extensions-3", "triton_cache", "inductor_cache"]
    assert {path.parent.parent for path in caches} == {tmp_path / "tmp"} and len({path.parent for path in caches}) == 1
    assert 20000 <= int(environment.pop("MASTER_PORT")) <= 32767
    assert environment == {
        "MASTER_ADDR": "node01",
        "OMP_NUM_THREADS": "8",
        "SRUN_CPUS_PER_TASK": "8",
        "HDF5_USE_FILE_LOCKING": "FALSE",
    }


def test_failed_stage_ends_the_job_with_its_status(cluster):
    state, output = cluster.run(changes={"FAKE_STATE": "9"})
    assert state == 9
    assert stages(cluster) == ["prepare"]
    assert "prepare ended with 9" in output


def test_success_without_marker_is_an_error(cluster):
    state, output = cluster.run(changes={"FAKE_NO_MARKER": "1"})
    assert state == 70
    assert stages(cluster) == ["prepare", "teacher"]
    assert "teacher/DONE.json does not exist" in output


def test_stop_file_prevents_stages_from_starting(cluster):
    cluster.run_dir.mkdir()
    (cluster.run_dir / "STOP").touch()
    state, output = cluster.run()
    assert state == 75
    assert stages(cluster) == []
    assert "the first part is not started" in output


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"SLURM_JOB_ID": None}, "sbatch slurm/distill_sevir.sh"),
        ({"DATA_ROOT": None}, "DATA_ROOT is not set"),
        ({"DATA_ROOT": "nowhere"}, "DATA_ROOT=nowhere contains neither CATALOG.csv nor prepared shards"),
    ],
    ids=["not-a-job", "no-archive", "wrong-archive"],
)
def test_rejections_name_what_is_missing(cluster, changes, says):
    state, output = cluster.run(changes=changes)
    assert state == 2
    assert says in output
    assert cluster.calls("srun") == []


@pytest.mark.parametrize("script", ["train.sh", "distill_sevir.sh", "chain.sh"])
def test_scripts_request_a_core_for_every_loader_process(script):
    """The rank and its ``data.workers`` loader processes would otherwise share cores."""
    (cores,) = re.findall(r"^#SBATCH --cpus-per-task=(\d+)", (REPOSITORY / "slurm" / script).read_text(), re.MULTILINE)
    configs = {"train.sh": "teacher/sevir.yaml", "distill_sevir.sh": "pipeline/sevir.yaml"}
    config = (REPOSITORY / "configs" / configs.get(script, "pipeline/sevir.yaml")).read_text()
    (workers,) = re.findall(r"workers: (\d+)", config)
    assert int(cores) >= int(workers) + 1


def test_train_script_runs_one_stage(cluster):
    state, output = cluster.run("configs/teacher/sevir.yaml", "--set", "max_steps=5", script=TRAIN)
    assert state == 0, output
    (call,) = cluster.calls("srun")
    arguments = call["arguments"]
    assert arguments[arguments.index("train") + 1] == "configs/teacher/sevir.yaml"
    assert f"run_dir={cluster.run_dir}" in arguments and arguments[-1] == "max_steps=5"
    state, output = cluster.run("teacher/sevir", script=TRAIN)
    assert state == 0 and "teacher/sevir" in cluster.calls("srun")[-1]["arguments"], output
    state, output = cluster.run("no-such.yaml", script=TRAIN)
    assert state == 2 and "the first argument is the configuration of a stage" in output


@pytest.mark.slow
def test_complete_stages_are_skipped(tmp_path):
    from simcast_hpc.data.synthetic import write_archive

    cluster = FakeCluster(tmp_path, host="127.0.0.1", run_tasks=True)
    config = tmp_path / "pipeline.yaml"
    config.write_text("name: t\nrun_dir: t\nstages: {teacher: {}, student: {}}\nevaluation: {min_observed_events: 1}\n")
    archive = tmp_path / "storms"
    write_archive(archive, seed=1, events={"train": 2, "val": 1, "test": 1})
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
    small |= {f"stages.{stage}.max_steps": "2" for stage in ("teacher", "student")}
    del small["max_steps"]
    arguments = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    changes = {"DATA_ROOT": str(archive), "SLURM_CPUS_PER_TASK": "1", "CONFIG": str(config)}
    state, output = cluster.run(*arguments, changes=changes, seconds=300)
    assert state == 0, output
    markers = [cluster.run_dir / stage / "DONE.json" for stage in ("teacher", "student")]
    before = [marker.stat().st_mtime_ns for marker in markers]
    state, output = cluster.run(*arguments, changes=changes, seconds=300)
    assert state == 0, output
    assert output.count("nothing to do") == 2
    assert [marker.stat().st_mtime_ns for marker in markers] == before
