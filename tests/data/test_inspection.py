"""Inspection: problems by file and event, facts, and images of a few events."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from PIL import Image

from simcast_hpc.commands.data_inspect import inspect as command
from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.inspection import inspect, split_overlaps
from simcast_hpc.data.prepare import RawEvent
from simcast_hpc.report.event_strip import draw_event
from tests.archives import FILE, Row, make_archive, random_codes
from tests.data.shards import prepared
from tests.shared_data import shared

SPEC = read_spec("synthetic")


def kinds(root: Path) -> list[tuple[str, str]]:
    return [(problem.kind, problem.event) for problem in inspect(SPEC, root).problems]


@pytest.fixture
def archive(tmp_path) -> Path:
    rows = [Row(f"E{n}", n, time_utc=f"2018-06-0{n + 1} 12:00:00") for n in range(4)]
    return make_archive(tmp_path / "archive", random_codes(4, 6, missing=0.001), rows=rows)


@pytest.fixture
def shards(archive, tmp_path) -> Path:
    return prepared(archive, tmp_path / "shards", events_per_shard=2)


def test_valid_data_has_no_problem(archive, shards):
    assert kinds(archive) == [] and kinds(shards) == []
    facts = inspect(SPEC, shards).facts
    assert facts["events"] == 4 and facts["grid"] == [16, 16] and facts["statistics"]["train"]["events"] == 4
    assert len(facts["manifest"]) == 64
    assert [sample.event for sample in inspect(SPEC, archive).samples] == ["E0", "E1", "E2", "E3"]


def test_checksum_finds_the_changed_event(shards):
    path = shards / "shard-00001.h5"
    with h5py.File(path, "r+") as file:
        frame = file["codes"][1, 3]
        file["codes"][1, 3] = frame ^ 1
    problems = kinds(shards)
    assert ("checksum", "E3") in problems and not any(event in ("E0", "E1", "E2") for _, event in problems)


def test_finds_missing_and_truncated_shards(shards):
    (shards / "shard-00000.h5").unlink()
    path = shards / "shard-00001.h5"
    path.write_bytes(path.read_bytes()[:-100])
    assert kinds(shards) == [("absent-file", ""), ("truncated", "")]


def test_lists_all_problems_of_an_archive(archive):
    with h5py.File(archive / "data" / FILE, "r+") as file:
        file["vil"][2, :, :, 4] = 255
        file["id"] = [b"E0", b"other", b"E2", b"E3"]
    problems = kinds(archive)
    assert ("catalog", "E1") in problems and ("missing-frame", "E2") in problems and ("missing-share", "E2") in problems
    assert len(problems) == 3


def _event(name: str, hour: int, split: str) -> RawEvent:
    return RawEvent(name, hour * 3600, hour * 3600, split, 0.0, "f", 0)


def test_finds_splits_that_share_a_date_or_overlap_in_time():
    apart = [_event("A", 0, "train"), _event("B", 48, "val"), _event("C", 96, "test")]
    assert split_overlaps(SPEC, apart, 49) == []
    one_date = [*apart, _event("D", 10, "val")]
    [problem] = split_overlaps(SPEC, one_date, 49)
    assert problem.kind == "date-in-two-splits" and problem.file == "1970-01-01" and "train and val" in problem.message
    simultaneous = [*apart, _event("D", 3, "test"), _event("E", 97, "train")]
    assert [p.kind for p in split_overlaps(SPEC, simultaneous, 49)] == ["date-in-two-splits"] * 2 + [
        "overlapping-splits"
    ]
    assert "2 of 2 events of test" in split_overlaps(SPEC, simultaneous, 49)[2].message


def test_golden_archive_splits_share_a_date():
    problems = inspect(read_spec("sevir"), shared("golden/sevir_archive")).problems
    assert {problem.kind for problem in problems} >= {"date-in-two-splits", "repeated-id"}
    assert any(problem.file == "2019-01-01" for problem in problems)


def test_picture_has_a_color_bar_with_thresholds_and_unit():
    spec = read_spec("meteonet")
    bar = draw_event(spec, "E0", np.zeros((3, 8, 8), np.uint8)).axes[-1]
    assert [label.get_text() for label in bar.get_yticklabels()] == list(spec.threshold_labels())
    assert bar.get_ylabel() == "dBZ"


def test_command_writes_images_and_sets_the_exit_status(archive, shards, tmp_path, capsys):
    command(shards, dataset="synthetic", pictures=tmp_path / "pictures")
    assert f"{shards}: 0 problems, 0 allowed" in capsys.readouterr().out
    with Image.open(tmp_path / "pictures" / "E0.png") as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 5
    damaged = tmp_path / "damaged"
    shutil.copytree(archive, damaged)
    with h5py.File(damaged / "data" / FILE, "r+") as file:
        file["id"] = [b"E0", b"other", b"E2", b"E3"]
    with pytest.raises(typer.Exit) as exit_:
        command(damaged, dataset="synthetic")
    assert exit_.value.exit_code == 1 and "[catalog] vil/2018/storms.h5, event E1" in capsys.readouterr().out
    command(damaged, dataset="synthetic", allow=["catalog"])
    assert "allowed [catalog]" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--allow typo is unknown; choose from absent-file"):
        command(archive, dataset="synthetic", allow=["typo"])


def test_rejects_shards_of_another_description(shards):
    with pytest.raises(DataError, match="with a description that differs from sevir"):
        inspect(read_spec("sevir"), shards)
