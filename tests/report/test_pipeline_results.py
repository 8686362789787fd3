"""Reading run directories: complete, incomplete and damaged ones."""

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


def test_reads_complete_run(run_dir):
    run = read_results(run_dir)
    assert [stage.name for stage in run.stages] == ["teacher", "student", "direct"]
    assert run.stages[1].steps == 800
    assert run.stages[1].seconds == pytest.approx(800 * 0.12)
    assert run.names_of("student") == ("student",)
    example = run.test_sets[0].example
    assert example is not None and set(example.forecasts) == {"persistence", "teacher", "student", "direct"}


def test_results_error_is_a_data_error():
    assert issubclass(ResultsError, DataError)


def test_rejects_missing_directory(tmp_path):
    with pytest.raises(ResultsError, match=r"absent is not a directory; give the run directory"):
        read_results(tmp_path / "absent")


def test_rejects_missing_stage_directory(run_dir):
    (run_dir / "student").rename(run_dir / "elsewhere")
    with pytest.raises(ResultsError, match=r"stage student .* has no directory .*student; run `simcast pipeline`"):
        read_results(run_dir)


def test_rejects_unfinished_stage(run_dir):
    (run_dir / "direct" / "DONE.json").unlink()
    with pytest.raises(ResultsError, match=r"DONE\.json.*stage direct is not finished"):
        read_results(run_dir)


def test_rejects_marker_without_steps(run_dir):
    write_json(run_dir / "direct" / "DONE.json", {"inputs": {}, "steps": None})
    with pytest.raises(ResultsError, match=r"steps must be an integer, got None"):
        read_results(run_dir)


def test_rejects_stage_without_metrics(run_dir):
    (run_dir / "teacher" / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"teacher.metrics\.jsonl is missing or empty"):
        read_results(run_dir)


def test_rejects_missing_scores(run_dir):
    (run_dir / "scores" / "test.json").unlink()
    with pytest.raises(ResultsError, match=r"no score files at .*scores"):
        read_results(run_dir)


def test_rejects_truncated_score_file(run_dir):
    path = run_dir / "scores" / "test.json"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    with pytest.raises(ResultsError, match=r"test\.json is not JSON"):
        read_results(run_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": "many"}, r"windows: .*got 'many'"),
        ({"entries": []}, r"entries and protocols must not be empty"),
        ({"supported_thresholds": ["17"]}, r"supported_thresholds \['17'\] are not in observed"),
        ({"supported_thresholds": ["219"]}, r"supported_thresholds has 219 with 87 pixels from 13 events"),
        ({"frames_out": 7}, r"mean_csi_by_lead\.persistence must have frames_out=7 values, got 6"),
        ({"scores": {}}, r"scores\.persistence\.test-global has no key csi/16"),
    ],
)
def test_rejects_invalid_score_file(run_dir, changes, message):
    write_json(run_dir / "scores" / "test.json", score_file(**changes))
    with pytest.raises(ConfigError, match=message):
        read_results(run_dir)


def test_rejects_score_file_with_missing_key(run_dir):
    scores = score_file()
    del scores["fingerprint"]
    write_json(run_dir / "scores" / "test.json", scores)
    with pytest.raises(ConfigError, match=r"test\.json[\s\S]*fingerprint"):
        read_results(run_dir)


def test_nan_is_read_as_null(run_dir):
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
    ("changes", "message"),
    [
        ({"inputs": np.zeros((6, 8, 8), np.float32)}, r"inputs must be uint8 \[T, H, W\], got float32"),
        (
            {"forecast/student": np.zeros((5, 48, 48), np.float32)},
            r"forecast/student must have the shape of observed.*got \(5, 48, 48\)",
        ),
        ({"event": None}, r"does not contain an example window"),
    ],
)
def test_rejects_damaged_example(run_dir, changes, message):
    path = run_dir / "scores" / "test.example.npz"
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ResultsError, match=message):
        read_results(run_dir)


def test_validation_lines_are_not_training_metrics(run_dir):
    path = run_dir / "student" / "metrics.jsonl"
    before = read_results(run_dir).stages[1].metrics
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 800, "validation/crps": 0.1}) + "\n")
    assert read_results(run_dir).stages[1].metrics == before
