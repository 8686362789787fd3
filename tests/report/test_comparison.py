"""Reports of several runs and evaluations: comparable scores share a table."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simcast_hpc.cli import app
from simcast_hpc.config import to_yaml
from simcast_hpc.report import ResultsError, write_comparison, write_report
from simcast_hpc.report.comparison import join_test_sets, labels_of, read_sources
from simcast_hpc.report.pipeline_results import read_results
from tests.report.fake_run import MEAN_CSI, score_file, write_example, write_json, write_run
from tests.report.test_html_report import Page

BETTER = {**MEAN_CSI, "student": tuple(value + 0.02 for value in MEAN_CSI["student"])}


def evaluation(folder: Path, **changes) -> Path:
    """Write the output of ``simcast evaluate --out``."""
    folder.mkdir(parents=True)
    scores = score_file(**changes)
    write_json(folder / "test.json", scores)
    write_example(folder / "test.example.npz", scores)
    return folder


@pytest.fixture
def two(tmp_path) -> list[Path]:
    other = evaluation(tmp_path / "b" / "scores", mean_csi={name: BETTER[name] for name in ("persistence", "student")})
    return [write_run(tmp_path / "a"), other]


def test_equal_rows_are_joined_and_equal_names_get_a_prefix(two):
    (test_set,) = join_test_sets(read_sources(two))
    assert test_set.scores.names == ("persistence", "teacher", "a/student", "direct", "b/student")
    a, b = (test_set.scores.mean_csi(name) for name in ("a/student", "b/student"))
    assert a is not None and b == pytest.approx(a + 0.02)
    assert test_set.example is not None
    assert set(test_set.example.forecasts) == {"persistence", "teacher", "a/student", "direct", "b/student"}
    assert {one.first for one in test_set.scores.differences} <= set(test_set.scores.names)
    assert set(test_set.scores.diagrams) == set(test_set.scores.names)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "fedcba9876543210"},
        {"split": "val"},
        {"supported_thresholds": ["16", "74"]},
        {"windows": 143},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_windows_or_thresholds_have_a_separate_table(tmp_path, change):
    paths = [evaluation(tmp_path / "a"), evaluation(tmp_path / "b", mean_csi=BETTER, **change)]
    first, second = join_test_sets(read_sources(paths))
    assert first.scores.names == second.scores.names == tuple(MEAN_CSI)


def test_only_protocols_of_equal_hash_are_joined(tmp_path):
    protocols = score_file()["protocols"]
    protocols["test-lead-mean"] = {**protocols["test-lead-mean"], "hash": "another"}
    paths = [evaluation(tmp_path / "a"), evaluation(tmp_path / "b", mean_csi=BETTER, protocols=protocols)]
    (test_set,) = join_test_sets(read_sources(paths))
    assert list(test_set.scores.protocols) == ["test-global"]
    protocols["test-global"] = {**protocols["test-global"], "hash": "yet another"}
    paths[1] = evaluation(tmp_path / "c", mean_csi=BETTER, protocols=protocols)
    assert len(join_test_sets(read_sources(paths))) == 2


def test_labels_are_shortest_unique_suffixes():
    paths = [Path("/runs/one/scores"), Path("/runs/two"), Path("/old/two"), Path("/runs/three/val.json")]
    assert labels_of(paths) == ["one", "runs/two", "old/two", "val"]


def test_relative_scores_folder_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert labels_of([Path("A"), Path("scores")]) == ["A", "scores"]
    assert labels_of([Path("A/scores"), Path("scores/val.json")]) == ["A", "val"]


def test_comparison_has_all_sources_and_training_of_runs(two, tmp_path):
    page = Page(write_comparison(two, tmp_path / "page"))
    assert page.words["h1"] == ["Radar nowcasting: a and b"]
    assert "b/student" in page.words["th"] and "a/student" in page.words["li"]
    assert "Training: a" in page.words["h2"] and "Training: b" not in page.words["h2"]
    assert any("2 sources of scores in 1 table" in paragraph for paragraph in page.words["p"])
    targets = [str(link["href"])[1:] for link in page.attributes("a")]
    assert set(targets) <= {attrs.get("id") for _, attrs, _ in page.elements}


def test_command_accepts_score_files(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = CliRunner().invoke(app, ["report", str(two[1] / "test.json"), "--out", "here"])
    assert call.exit_code == 0, call.output
    assert Path("here/index.html").is_file() and "here/index.html" in call.output


def test_rejects_paths_without_scores(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ResultsError, match=r"empty contains no scores; give the run directory of `simcast pipeline`"):
        read_sources([empty])
    with pytest.raises(ResultsError, match=r"nowhere does not exist"):
        read_sources([tmp_path / "nowhere", empty])
    broken = evaluation(tmp_path / "broken")
    shutil.copy(broken / "test.example.npz", broken / "test.json")
    with pytest.raises(ResultsError, match=r"test\.json is not (JSON|UTF-8)"):
        read_sources([broken])


def test_rejects_run_of_one_stage(two, tmp_path):
    pipeline, scores = two
    stage = pipeline / "student"
    shutil.copy(pipeline / "versions.json", stage)
    (stage / "config.yaml").write_text(to_yaml(read_results(pipeline).stages[1].config))
    score = f"score it first: `simcast evaluate {stage} --out scores`"
    for read in (lambda: read_sources([stage, scores]), lambda: write_report(stage)):
        with pytest.raises(ResultsError) as raised:
            read()
        assert str(raised.value) == f"{stage} is the run of one stage; give its pipeline ({pipeline}), or {score}"
    alone = tmp_path / "alone"
    shutil.copytree(stage, alone)
    with pytest.raises(ResultsError, match=r"alone is the run of one stage; score it first: `simcast evaluate"):
        read_sources([alone])
