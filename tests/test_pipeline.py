"""A pipeline on a tiny archive, from training in processes to scores and report; resuming, and invalid input."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from simcast_hpc.config import ConfigError, PipelineConfig, TrainConfig, from_mapping, read_config, to_yaml
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.models import grid_of
from simcast_hpc.pipeline import PipelineError, part_names, run_part, run_pipeline, stage_process
from simcast_hpc.train.checkpoint import visible
from simcast_hpc.train.stop_errors import PausedError, StoppedError
from tests.forked_stages import run_pipeline_forked
from tests.multi_rank.runs import command, environment, simcast

pytestmark = pytest.mark.multi


def _config(run_dir: Path, **changes: object) -> PipelineConfig:
    settings = {
        "name": "tiny",
        "run_dir": str(run_dir),
        "data": {"dataset": "synthetic", "root": str(run_dir / "archive"), "window_stride": 4, "augment": True},
        "synthesis": {"seed": 2, "size": 16, "frames_per_event": 12, "train_events": 6, "test_events": 6},
        "sequence": {"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2},
        "model": {"hidden_spatial": 4, "hidden_temporal": 16, "temporal_blocks": 2, "groups": 2},
        "batch": {"global_size": 4, "micro_size": 4},
        "engine": {"precision": "fp32"},
        "log": {"every_steps": 5},
        "validation": {"windows": 4},
        "student": {"init": "teacher", "rollouts": "cached", "pseudo_dtype": "uint8"},
        "stages": {
            "teacher": {"max_steps": 100},
            "student": {"max_steps": 200},
            "direct": {"max_steps": 300},
        },
        "evaluation": {"min_observed_pixels": 20, "min_observed_events": 2, "postprocess": ["quantile-mapping"]},
        "time_budget_minutes": 0.02,
    }
    return from_mapping(PipelineConfig, settings | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("pipeline") / "run"
    assert run_pipeline_forked(_config(run_dir)) == run_dir / "report" / "index.html"
    return run_dir


def _marker_times(run_dir: Path) -> dict[str, int]:
    return {str(path.relative_to(run_dir)): path.stat().st_mtime_ns for path in run_dir.glob("*/DONE.json")}


def test_pipeline_writes_the_output_of_every_part(finished):
    assert sorted(_marker_times(finished)) == ["direct/DONE.json", "student/DONE.json", "teacher/DONE.json"]
    scores = json.loads((finished / "scores" / "test.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in scores["entries"]] == [
        "persistence",
        "extrapolation",
        *(name + suffix for name in ("teacher", "student", "direct") for suffix in ("", "+quantile-mapping")),
    ]
    assert (finished / "student" / "quantile_mapping.npz").is_file()
    assert scores["entries"][2]["note"] == "teacher, rolled out in 2 calls; SimVP"
    assert "student" in (finished / "report" / "index.html").read_text(encoding="utf-8")
    assert (finished / "DONE.json").is_file()
    durations = json.loads((finished / "durations.json").read_text(encoding="utf-8"))
    assert list(durations) == ["archive", "timing", "teacher", "student", "direct", "verification"]


def test_time_budget_scales_all_steps_once(finished):
    resolved = read_config(PipelineConfig, finished / "config.yaml")
    requested = resolved.model_copy(update={"fitted_steps": None})
    assert [requested.train_config(name).max_steps for name in requested.stages] == [100, 200, 300]
    steps = {name: resolved.train_config(name).max_steps for name in resolved.stages}
    assert steps["direct"] == steps["teacher"] + steps["student"] < 300
    done = {name: json.loads((finished / name / "DONE.json").read_text(encoding="utf-8"))["steps"] for name in steps}
    assert done == steps


def test_complete_stages_are_skipped(finished):
    before = _marker_times(finished)
    run_pipeline_forked(_config(finished))
    assert _marker_times(finished) == before


def test_interrupted_pipeline_resumes(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    config = _config(run_dir)
    text = (run_dir / "config.yaml").read_text(encoding="utf-8").replace(str(finished), str(run_dir))
    (run_dir / "config.yaml").write_text(text, encoding="utf-8")
    before = _marker_times(run_dir)
    for missing in (run_dir / "student" / "DONE.json", run_dir / "DONE.json", run_dir / "report" / "index.html"):
        missing.unlink()
    run_pipeline_forked(config)
    after = _marker_times(run_dir)
    assert after["teacher/DONE.json"] == before["teacher/DONE.json"]
    assert after["student/DONE.json"] > before["student/DONE.json"]
    assert (run_dir / "report" / "index.html").is_file() and (run_dir / "DONE.json").is_file()


EARTHFORMER = {
    "kind": "earthformer",
    "width": 8,
    "heads": 1,
    "encoder_depth": [1],
    "decoder_depth": [1],
    "stem": {"widths": [4, 8], "scales": [2, 2], "convolutions": [1, 1]},
}


@pytest.fixture(scope="module")
def earthformer(tmp_path_factory) -> Path:
    """A pipeline with Earthformer and dropout, without a grid in its configuration."""
    run_dir = tmp_path_factory.mktemp("earthformer") / "run"
    steps = {"teacher": {"max_steps": 4}, "student": {"max_steps": 4}}
    run_pipeline_forked(_config(run_dir, model=EARTHFORMER, stages=steps, time_budget_minutes=None))
    return run_dir


def test_pipeline_trains_earthformer(earthformer):
    scores = json.loads((earthformer / "scores" / "test.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in scores["entries"]] == [
        "persistence", "extrapolation", "teacher", "teacher+quantile-mapping", "student", "student+quantile-mapping",
    ]  # fmt: skip
    assert all("Earthformer" in entry["note"] for entry in scores["entries"][2:])
    page = (earthformer / "report" / "index.html").read_text(encoding="utf-8")
    assert "2 Earthformer models were trained" in page and "SimVP" not in page


def test_run_directories_store_the_grid_of_the_data(earthformer):
    for stage in ("teacher", "student"):
        trained = load_trained(earthformer / stage)
        assert grid_of(trained.config.model) == (16, 16)
        assert "model.grid" not in json.loads((earthformer / stage / "DONE.json").read_text(encoding="utf-8"))["inputs"]
    with pytest.raises(ConfigError, match=r"takes frames of 16 x 16 pixels .*, got 24 x 24"):
        trained.forecast(torch.zeros(1, 4, 24, 24, dtype=torch.uint8), frames_out=4)


def test_rejects_test_set_of_another_grid_before_training(tmp_path):
    root = tmp_path / "wide"
    write_archive(root, seed=2, events={"train": 1, "val": 1, "test": 1}, size=24, frames_per_event=12)
    also = {"also": [{"name": "wide", "data": {"dataset": "synthetic", "root": str(root), "window_stride": 4}}]}
    with pytest.raises(ConfigError, match=r"trained on, 16 x 16 pixels, but evaluation\.also wide has 24 x 24"):
        run_pipeline(_config(tmp_path / "run", model=EARTHFORMER, evaluation=also))
    assert not list(tmp_path.glob("run/*/checkpoints"))


def test_rejects_another_configuration_in_the_run_directory(finished):
    kept = {path: path.read_bytes() for path in finished.rglob("*.*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"belongs to another run: direct: seed was 0, is 1"):
        run_pipeline(_config(finished, seed=1))
    with pytest.raises(ConfigError, match=r"synthesis\.size was 16, is 24"):
        run_pipeline(_config(finished, synthesis={"seed": 2, "size": 24, "frames_per_event": 12}))
    assert {path: path.read_bytes() for path in finished.rglob("*.*") if path.is_file()} == kept


def test_rejects_reserved_stage_name(tmp_path):
    stages = {"scores": {"stage": "student", "max_steps": 5}}
    with pytest.raises(ConfigError, match=r"stages\.scores: the pipeline writes a folder of this name"):
        run_pipeline(_config(tmp_path / "run", stages=stages))


@pytest.mark.parametrize(
    ("ranks", "number"), [(1, signal.SIGTERM), pytest.param(2, signal.SIGUSR2, marks=pytest.mark.slow)]
)
def test_signal_is_forwarded_to_the_stage_which_saves_and_exits_with_85(ranks, number, tmp_path):
    config = _config(
        tmp_path / "run",
        time_budget_minutes=None,
        stages={"direct": {"max_steps": 100_000}},
        student={},
        batch={"global_size": 4, "micro_size": 2},
        launch={"ranks": ranks},
    )
    path = tmp_path / "long.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    process = subprocess.Popen(
        [*command("python", 1), "pipeline", str(path)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "direct" / "metrics.jsonl").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    stages = psutil.Process(process.pid).children()
    process.send_signal(number)
    assert process.wait(timeout=60) == 85
    assert len(stages) == ranks and not any(stage.is_running() for stage in stages)
    assert len(visible(tmp_path / "run" / "direct" / "checkpoints")) == 1


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (2, ConfigError, "rejected its input"),
        (85, PausedError, "run the pipeline again to resume"),
        (128 + signal.SIGTERM, PausedError, "run the pipeline again to resume"),
        (75, StoppedError, "remove the file"),
        (1, PipelineError, "failed with status 1"),
    ],
)
def test_exit_status_of_a_stage_becomes_an_error(status, error, message, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(stage_process, "run_ranks", lambda command, **_: commands.append(command) or status)
    stage = _config(tmp_path / "run").train_config("student")
    with pytest.raises(error, match=message):
        stage_process.run_stage(stage, "rollout", ranks=1)
    path = stage.run_dir / "requested.yaml"
    assert commands == [[sys.executable, "-m", "simcast_hpc", "rollout", str(path)]]
    assert read_config(TrainConfig, path) == stage


def test_part_names(tmp_path):
    config = _config(tmp_path / "run")
    assert part_names(config) == ["prepare", "teacher", "student:rollouts", "student", "direct", "verify"]


@pytest.mark.parametrize(
    ("part", "ranks", "message"),
    [
        ("studnet", "1", "unknown part; choose prepare, teacher, student:rollouts"),
        ("prepare", "2", "requires a single process"),
        ("teacher", "1", "run the part `prepare` first"),
    ],
)
def test_rejects_part_that_cannot_run(part, ranks, message, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": ranks, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        run_part(_config(tmp_path / "run"), part)
    assert not (tmp_path / "run").exists()


def test_part_uses_the_fitted_steps_and_rejects_another_configuration(finished):
    run_part(_config(finished), "teacher")
    with pytest.raises(ConfigError, match="belongs to another run: direct: seed was 0, is 1"):
        run_part(_config(finished, seed=1), "teacher")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"baselines": ["persistance"]}}, "did you mean 'persistence'"),
        ({"evaluation": {"protocols": ["globl"]}}, "unknown verification protocol 'globl'"),
        ({"data": {"dataset": "sevvir"}}, "neither a built-in description"),
        ({"synthesis": None, "data": {"dataset": "synthetic"}}, "data.root is not set"),
    ],
)
def test_rejects_unknown_name_before_training(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_pipeline(_config(tmp_path / "run", **changes))
    assert not list(tmp_path.glob("run/*/DONE.json"))


def test_scores_of_two_ranks_equal_those_of_one(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "DONE.json").unlink()
    shutil.rmtree(run_dir / "scores")
    (run_dir / "direct" / "quantile_mapping.npz").unlink()
    path = tmp_path / "pipeline.yaml"
    path.write_text(to_yaml(_config(finished)), encoding="utf-8")
    words = ["pipeline", str(path), "--part", "verify", "--set", f"run_dir={run_dir}"]
    simcast("torchrun", 2, words)
    assert (run_dir / "DONE.json").is_file() and (run_dir / "report" / "index.html").is_file()
    assert (run_dir / "scores" / "test.csv").read_bytes() == (finished / "scores" / "test.csv").read_bytes()
