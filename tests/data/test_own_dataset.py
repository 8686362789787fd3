"""A data set whose description is ``dataset.yaml`` in its folder: every consumer finds it, also after a move."""

import shutil
from pathlib import Path

import pytest

import simcast_hpc as sc
from simcast_hpc.config import ConfigError, DataConfig, DataError, from_mapping, to_yaml
from simcast_hpc.data.dataset_spec import DATASET_FILE, read_spec
from simcast_hpc.data.open_windows import open_windows, source_spec
from simcast_hpc.inference.trained_model import config_of_run, load_trained
from simcast_hpc.storage.run_directory import RunDirectory
from simcast_hpc.train.stages.student_stage import load_teacher
from simcast_hpc.train.trainer import plan
from tests.archives import Row, make_archive, random_codes, tiny_config, write_trained
from tests.data.shards import prepared


def own_description(folder: Path, **over) -> Path:
    spec = read_spec("synthetic")
    path = folder / DATASET_FILE
    path.write_text(to_yaml(spec.model_copy(update={"name": "own-radar", "frames_per_event": None, **over})))
    return path


@pytest.fixture
def archive(tmp_path) -> Path:
    rows = [Row(f"E{n}", n, pct_missing="74.0") for n in range(4)]
    root = make_archive(tmp_path / "archive", random_codes(4, 11, missing=0.74), rows=rows)
    own_description(root)
    return root


def test_missing_pixels_are_kept_unless_the_description_is_built_in():
    assert DataConfig().max_percent_missing == DataConfig(dataset="sevir").max_percent_missing == 0.0
    for dataset in (None, "own.yaml"):
        assert from_mapping(DataConfig, {"dataset": dataset}).max_percent_missing is None
        assert from_mapping(DataConfig, {"dataset": dataset, "max_percent_missing": 5.0}).max_percent_missing == 5.0


def test_description_is_read_from_the_data_folder(archive, tmp_path):
    shards = prepared(archive, tmp_path / "shards", dataset=str(archive / DATASET_FILE))
    fingerprints = set()
    for root in (archive, shards):
        config = from_mapping(DataConfig, {"dataset": None, "root": str(root), "window_stride": 2})
        assert source_spec(config).name == "own-radar"
        fingerprints.add(open_windows(config, split="train", frames=5).fingerprint)
        assert len(sc.datasets.open_windows(root, frames=5, window_stride=2)) == 16
    assert len(fingerprints) == 1
    assert not (prepared(archive, tmp_path / "built-in") / DATASET_FILE).exists()


def test_absent_description_names_both_keys(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.dataset is null and data\.root is not set"):
        source_spec(DataConfig(dataset=None))
    with pytest.raises(ConfigError, match=r"data\.dataset is null and .*dataset\.yaml does not exist; set data\.root"):
        source_spec(DataConfig(dataset=None, root=tmp_path))


def test_empty_split_counts_the_events_lost_for_each_reason(tmp_path):
    rows = [
        Row("other", 0, img_type="ir107"), Row("late", 1, time_utc="2019-03-01"), Row("a", 2, pct_missing="74.5"),
        Row("b", 3, pct_missing="80"), Row("c", 3, pct_missing=""),
    ]  # fmt: skip
    root = make_archive(tmp_path / "archive", random_codes(4, 11), rows=rows)
    reasons = (
        r"1 belong to other splits: val 1 \(2019-03-01\) .*; 2 have more missing pixels than the limit, at least "
        r"74\.5 % \(data\.max_percent_missing=0.*; 1 have an unknown share"
    )
    config = DataConfig(dataset="synthetic", root=root)
    with pytest.raises(DataError, match=f"of 5 events, 1 are of other types than 'vil': 'ir107' 1 .*; {reasons}"):
        open_windows(config, split="train", frames=5)
    own = [Row("late", 1, time_utc="2019-03-01"), Row("a", 2, pct_missing="74.5"), Row("b", 3, pct_missing="80")]
    shards = prepared(make_archive(tmp_path / "more", random_codes(4, 11), rows=own), tmp_path / "shards")
    with pytest.raises(DataError, match=r"of 3 events, 1 belong .*; 2 have more missing pixels .*at least 74\.5 %"):
        open_windows(config.model_copy(update={"root": shards}), split="train", frames=5)


def test_run_keeps_its_description_when_the_data_moves(archive, tmp_path):
    data = {"dataset": None, "root": str(archive), "window_stride": 2}
    config = tiny_config(tmp_path / "run", stage="teacher", data=data)
    assert config.data.max_percent_missing is None
    own = plan(config).identity
    write_trained(config)
    RunDirectory(tmp_path / "run").prepare(config, source_spec(config.data))  # as the trainer does
    moved = tmp_path / "moved"
    shutil.move(archive, moved)
    loaded = config_of_run(tmp_path / "run")
    assert source_spec(loaded.data).name == "own-radar" and load_trained(tmp_path / "run").steps == config.max_steps
    student = tiny_config(
        tmp_path / "student",
        stage="student",
        data={**data, "root": str(moved)},
        student={"teacher": str(tmp_path / "run")},
    )
    assert load_teacher(student).config.stage == "teacher"
    own_description(moved, step_minutes=10.0)
    with pytest.raises(ConfigError, match=r"trained on own-radar .*name, encoding, layout, cadence or splits differ"):
        load_teacher(student)
    changed = plan(config.model_copy(update={"data": student.data})).identity
    assert [key for key in own if changed[key] != own[key]] == ["data description"], "a resumed run would be rejected"
