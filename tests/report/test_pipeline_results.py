"""A run folder that is not whole is refused by name."""

import json

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.report import ResultsError
from simcast_hpc.report.pipeline_results import read_results
from tests.report.fake_run import score_file, write_json, write_run


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run")


def test_a_whole_run_is_read(run_dir):
    run = read_results(run_dir)
    assert [stage.name for stage in run.stages] == ["teacher", "student", "direct"]
    assert run.stages[1].steps == 800
    assert run.stages[1].seconds == pytest.approx(800 * 0.12)
    assert run.names_of("student") == ("student",)
    example = run.test_sets[0].example
    assert example is not None and set(example.forecasts) == {"persistence", "teacher", "student", "direct"}


def test_rejections_are_data_errors_so_that_the_command_line_shows_them_plainly():
    assert issubclass(ResultsError, DataError)


def test_no_folder(tmp_path):
    with pytest.raises(ResultsError, match=r"absent is not a folder; give the run folder"):
        read_results(tmp_path / "absent")


def test_a_missing_stage_folder_is_named(run_dir):
    (run_dir / "student").rename(run_dir / "elsewhere")
    with pytest.raises(ResultsError, match=r"stage student .* has no folder .*student; run `simcast pipeline`"):
        read_results(run_dir)


def test_an_unfinished_stage_is_named(run_dir):
    (run_dir / "direct" / "DONE.json").unlink()
    with pytest.raises(ResultsError, match=r"DONE\.json.*stage direct is not finished"):
        read_results(run_dir)


def test_a_marker_without_steps(run_dir):
    write_json(run_dir / "direct" / "DONE.json", {"inputs": {}, "steps": None})
    with pytest.raises(ResultsError, match=r"steps must be a whole number, got None"):
        read_results(run_dir)


def test_a_stage_without_metrics(run_dir):
    (run_dir / "teacher" / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"teacher.metrics\.jsonl is absent or empty"):
        read_results(run_dir)


def test_no_scores(run_dir):
    (run_dir / "scores" / "test.json").unlink()
    with pytest.raises(ResultsError, match=r"no score files at .*scores"):
        read_results(run_dir)


def test_half_a_score_file(run_dir):
    path = run_dir / "scores" / "test.json"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    with pytest.raises(ResultsError, match=r"test\.json is not JSON"):
        read_results(run_dir)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"windows": "many"}, r"windows: .*got 'many'"),
        ({"entries": []}, r"entries and protocols must each name at least one"),
        ({"supported_thresholds": ["17"]}, r"supported_thresholds \['17'\] are not among those observed"),
        ({"supported_thresholds": ["219"]}, r"supported_thresholds has 219 with 87 pixels from 13 events"),
        ({"frames_out": 7}, r"mean_csi_by_lead\.persistence has 6 values; frames_out=7"),
        ({"scores": {}}, r"scores\.persistence\.test-global lacks csi/16"),
    ],
)
def test_a_score_file_that_does_not_hold(run_dir, changes, says):
    write_json(run_dir / "scores" / "test.json", score_file(**changes))
    with pytest.raises(ConfigError, match=says):
        read_results(run_dir)


def test_a_missing_key_of_a_score_file_is_named(run_dir):
    scores = score_file()
    del scores["fingerprint"]
    write_json(run_dir / "scores" / "test.json", scores)
    with pytest.raises(ConfigError, match=r"test\.json[\s\S]*fingerprint"):
        read_results(run_dir)


def test_nan_means_the_same_as_null(run_dir):
    scores = score_file()
    scores["scores"]["student"]["test-global"]["csi/219"] = float("nan")
    scores["mean_csi_by_lead"]["student"][2] = float("nan")
    text = json.dumps(scores)
    assert "NaN" in text
    (run_dir / "scores" / "test.json").write_text(text, encoding="utf-8")
    read = read_results(run_dir).test_sets[0].scores
    assert read.scores["student"]["test-global"]["csi/219"] is None
    assert read.mean_csi_by_lead["student"][2] is None
    assert read.compared_leads == (0, 1, 3, 4, 5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": np.zeros((6, 8, 8), np.float32)}, r"inputs must be uint8 \[T, H, W\], got float32"),
        ({"forecast/student": np.zeros((5, 48, 48), np.float32)}, r"forecast/student has shape \(5, 48, 48\)"),
        ({"event": None}, r"holds no example frames"),
    ],
)
def test_a_damaged_example(run_dir, changes, says):
    path = run_dir / "scores" / "test.example.npz"
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ResultsError, match=says):
        read_results(run_dir)


def test_lines_of_validation_are_not_among_the_losses(run_dir):
    path = run_dir / "student" / "metrics.jsonl"
    before = read_results(run_dir).stages[1].metrics
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 800, "validation/crps": 0.1}) + "\n")
    assert read_results(run_dir).stages[1].metrics == before
