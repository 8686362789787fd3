"""The batch scripts among other users and odd names: private caches, ports, and words that stay unchanged."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from simcast_hpc.config import PipelineConfig, TrainConfig, read_config
from tests.slurm.fake_cluster import REPOSITORY, SCRIPT, TRAIN, FakeCluster


@pytest.fixture
def cluster(tmp_path):
    return FakeCluster(tmp_path)


def test_ports_and_cache_folders_cannot_be_guessed(cluster):
    for _ in range(3):
        cluster.run("teacher/sevir", script=TRAIN)
    environments = [call["environment"] for call in cluster.calls("srun")]
    assert len({one["MASTER_PORT"] for one in environments}) > 1
    assert len({one["TRITON_CACHE_DIR"] for one in environments}) == 3


def test_cache_folder_is_private_and_removed_at_the_end(cluster, tmp_path):
    job = cluster.start(changes={"FAKE_HANGS": "1"})
    cluster.wait_for(lambda: "'--part'" in str(cluster.calls("srun")))  # a step that hangs, after `--parts`
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.name.startswith("simcast-20123-") and folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.geteuid()
    job.terminate()
    job.communicate(timeout=20)
    assert list((tmp_path / "tmp").iterdir()) == [] and list(cluster.run_dir.glob(".job-*")) == []


def test_next_start_uses_the_same_caches_but_no_left_lock(cluster, tmp_path):
    job = cluster.start(changes={"FAKE_HANGS": "1"})
    cluster.wait_for(lambda: "'--part'" in str(cluster.calls("srun")))
    (folder,) = (tmp_path / "tmp").iterdir()
    (folder / "triton_cache").mkdir()
    job.send_signal(signal.SIGUSR2)
    cluster.wait_for(lambda: "requeue" in str(cluster.calls("scontrol")))
    job.terminate()
    job.communicate(timeout=20)
    assert (folder / "triton_cache").is_dir(), "kept for the next start"
    first = cluster.calls("srun")[0]["environment"]
    state, output = cluster.run(changes={"SLURM_RESTART_COUNT": "1"})
    second = cluster.calls("srun")[-1]["environment"]
    assert state == 0, output
    assert second["TRITON_CACHE_DIR"] == first["TRITON_CACHE_DIR"] == str(folder / "triton_cache")
    assert second["TORCH_EXTENSIONS_DIR"] != first["TORCH_EXTENSIONS_DIR"]
    assert list((tmp_path / "tmp").iterdir()) == [] and list(cluster.run_dir.glob(".job-*")) == []


def test_caches_of_another_user_or_behind_a_link_are_not_used(cluster, tmp_path):
    cluster.run_dir.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tmp" / "simcast-20123-known").symlink_to(tmp_path / "elsewhere")
    (cluster.run_dir / ".job-20123.caches").write_text("simcast-20123-known\n")
    state, output = cluster.run("teacher/sevir", script=TRAIN)
    assert state == 0, output
    assert "simcast-20123-known" not in cluster.calls("srun")[0]["environment"]["TRITON_CACHE_DIR"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("changes", [{}, {"FAKE_STATE": "9"}])
def test_cache_folder_is_removed_on_all_nodes(cluster, tmp_path, changes):
    cluster.run("teacher/sevir", script=TRAIN, changes={"SLURM_JOB_NUM_NODES": "2", **changes})
    *_, step, removal = [call["arguments"] for call in cluster.calls("srun")]
    assert "train" in step
    folder = Path(cluster.calls("srun")[0]["environment"]["TRITON_CACHE_DIR"]).parent
    assert removal == ["--ntasks-per-node=1", "--ntasks=2", "rm", "-rf", "--", str(folder)]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_cache_folders_of_the_user_are_kept(cluster, tmp_path):
    names = ("TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    own = {name: str(tmp_path / name) for name in names}
    cluster.run("teacher/sevir", script=TRAIN, changes=own)
    environment = cluster.calls("srun")[0]["environment"]
    assert {name: environment[name] for name in own} == own
    assert list((tmp_path / "tmp").iterdir()) == []


def test_options_are_not_expanded_as_file_names(cluster):
    """The working folder contains README.md, which ``READ*`` would match."""
    changes = {"CONTAINER": "container --bind READ*:/x", "SRUN_OPTIONS": "--comment=[R]EADME.md"}
    cluster.run("teacher/sevir", script=TRAIN, changes=changes)
    arguments = cluster.calls("srun")[0]["arguments"]
    first = arguments.index("--comment=[R]EADME.md")
    assert arguments[first + 1 : first + 4] == ["container", "--bind", "READ*:/x"]


def test_options_with_spaces_can_be_arrays_in_site_env(cluster, tmp_path):
    shutil.copytree(REPOSITORY / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm" / "site.env").write_text('CONTAINER=(container --bind "/my data:/x")\nSRUN_OPTIONS=()\n')
    state, output = cluster.run("teacher/sevir", script=TRAIN, changes={"SLURM_SUBMIT_DIR": str(tmp_path)})
    assert state == 0, output
    arguments = cluster.calls("srun")[0]["arguments"]
    first = arguments.index("container")
    assert arguments[first : first + 4] == ["container", "--bind", "/my data:/x", cluster.environment["PYTHON"]]
    assert arguments[first - 2 : first] == ["--wait=60", "--cpu-bind=cores"]


@pytest.mark.parametrize(("value", "expected"), [(None, ["--cpu-bind=cores"]), ("", []), ("none", ["--cpu-bind=none"])])
def test_tasks_are_bound_to_cores_unless_the_site_decides(cluster, value, expected):
    cluster.run("teacher/sevir", script=TRAIN, changes={"CPU_BIND": value, "SRUN_OPTIONS": "--mem-bind=local"})
    arguments = cluster.calls("srun")[0]["arguments"]
    assert [word for word in arguments if word.startswith("--cpu-bind")] == expected


@pytest.mark.parametrize("name", ["a b", "2024", "run #1", "it's", "*", "null", "a: b", "[x]"])
def test_paths_reach_the_program_unchanged(cluster, tmp_path, monkeypatch, name):
    """``--set`` reads YAML, in which these are comments, numbers, lists or several words."""
    source = tmp_path / "data" / name
    source.mkdir(parents=True)
    (source / "CATALOG.csv").touch()
    for script, arguments, options in ((SCRIPT, (), PipelineConfig), (TRAIN, ("teacher/sevir",), TrainConfig)):
        changes = {"DATA_ROOT": str(source), "RUN_DIR": name, "FAKE_NO_MARKER": "1"}
        shutil.copytree(REPOSITORY / "slurm", tmp_path / script.stem / "slurm")
        changes |= {"SLURM_SUBMIT_DIR": str(tmp_path / script.stem)}
        state, output = cluster.run(*arguments, script=script, changes=changes)
        assert state == 70, output
        command = cluster.calls("srun")[-1]["arguments"]
        values = [command[place + 1] for place, word in enumerate(command) if word == "--set"]
        path = "configs/pipeline/sevir.yaml" if options is PipelineConfig else "configs/teacher/sevir.yaml"
        config = read_config(options, REPOSITORY / path, values)
        assert (config.run_dir, config.data.root) == (Path(name), source)


@pytest.mark.parametrize("parts", ["prepare\n*", "prepare\na b", "prepare\n../x", "prepare\n--help", "", "a\n\nb"])
def test_rejects_names_of_parts_that_are_no_names(cluster, parts):
    state, output = cluster.run(changes={"FAKE_PARTS": parts})
    assert state == 2 and "is not the name of a part" in output
    assert "--part" not in {word for call in cluster.calls("srun") for word in call["arguments"]}


@pytest.mark.parametrize(
    ("name", "end"),
    [
        *((name, "\n") for name in ("RUN_DIR", "DATA_ROOT", "LOCAL_DATA")),
        *(("RUN_DIR", end) for end in ("\r", "\x1b", "\x85", "\u2028", "\u2029")),
    ],
)
def test_rejects_paths_that_yaml_would_change(cluster, name, end):
    state, output = cluster.run(changes={name: f"a{end}b: c"})
    assert state == 2 and f"{name}=" in output and "contains a line end or another control character" in output
    assert cluster.calls("srun") == []


@pytest.mark.parametrize("name", ["MAX_RESTARTS", "ROLLOUT_JOBS"])
def test_rejects_settings_that_are_no_numbers(cluster, name):
    state, output = cluster.run(changes={name: "a[$(touch x)]"})
    assert state == 2 and f"{name}=a[$(touch x)] is not a number" in output
    assert cluster.calls("srun") == []


@pytest.mark.parametrize("name", ["RUN_DIR", "DATA_ROOT", "LOCAL_DATA", "CONFIG"])
def test_rejects_paths_with_line_ends(cluster, name):
    state, output = cluster.run(changes={name: "a\nb: c"})
    assert state == 2 and f"{name}=$'a\\nb: c' contains a line end" in output
    assert cluster.calls("srun") == []
