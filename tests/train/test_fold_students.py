"""Conditions out of fold: each event is forecast by the student that never saw it; other students are rejected."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simcast_hpc.config import ConfigError, DataError, TrainConfig
from simcast_hpc.data.event_folds import fold_of
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.storage.run_directory import RunDirectory, file_hash
from tests.archives import make_archive, random_codes, tiny_config, write_trained
from tests.generative_runs import diffusion_config, make_runs
from tests.test_pipeline_generative import five_stages
from tests.train.conftest import data_section
from tests.train.test_diffusion_stage import diffusion_stage, prepare

EVENTS, FOLDS = 9, 2


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("folds"), random_codes(EVENTS, 11, missing=0.002))


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory) -> Path:
    """A student of all events, and one without each fold."""
    folder = make_runs(tmp_path_factory.mktemp("runs"), root)
    for fold in range(FOLDS):
        write_fold_student(folder / f"without-{fold}", root, {"folds": FOLDS, "fold": fold})
    return folder


def write_fold_student(run_dir: Path, root: Path, hold_out: Any, **over: Any) -> Path:
    torch.manual_seed(sum(map(ord, run_dir.name)))
    return write_trained(tiny_config(run_dir, data=data_section(root, hold_out=hold_out), **over))


def out_of_fold(runs: Path, root: Path, run_dir: Path, *names: str, **over: Any) -> TrainConfig:
    paths = [str(runs / name) for name in names]
    return diffusion_config(run_dir, runs, root, fold_students=paths, **over)


def test_each_event_is_forecast_by_the_student_that_did_not_see_it(root, runs, tmp_path):
    stage = diffusion_stage(out_of_fold(runs, root, tmp_path / "run", "without-1", "without-0"))
    latents = prepare(stage)
    students = [load_trained(runs / f"without-{fold}") for fold in range(FOLDS)]
    seen_events = []
    for student in students:
        windows = open_windows(student.config.data, split="train", frames=7)
        seen_events.append({windows.key(index).event for index in range(len(windows))})
    counts = [0] * FOLDS
    for index in range(len(stage.source)):
        event = stage.source.key(index).event
        blind = [number for number, events in enumerate(seen_events) if event not in events]
        assert len(blind) == 1, "the windows of an event are all in one fold"
        past = torch.from_numpy(stage.source.read(index))[None, :3]
        expected, other = (
            stage.autoencoder.moments(students[number].forecast(past, frames_out=4))[0][0].numpy()
            for number in (blind[0], 1 - blind[0])
        )
        stored = latents.read(index)[8:12]
        assert np.abs(stored - expected).max() < 4e-3 < np.abs(stored - other).max()
        counts[blind[0]] += 1
    assert min(counts) > 5


def test_folds_partition_the_events(root):
    def windows_of(hold_out: Any, split: Any = "train"):
        return open_windows(tiny_config(root, data=data_section(root, hold_out=hold_out)).data, split=split, frames=7)

    everything = windows_of(None)
    keys = [everything.key(index) for index in range(len(everything))]
    parts = [windows_of({"folds": 3, "fold": fold}) for fold in range(3)]
    assert sum(len(part) for part in parts) == 2 * len(everything)
    for fold, part in enumerate(parts):
        kept = [part.key(index) for index in range(len(part))]
        assert kept == [key for key in keys if fold_of(key.event, 3) != fold]
        assert np.array_equal(part.read(3), everything.read(keys.index(kept[3])))
    assert len({everything.fingerprint, *(part.fingerprint for part in parts)}) == 4
    assert windows_of({"folds": 3, "fold": 0}, "all").fingerprint == windows_of(None, "all").fingerprint


def test_rejects_empty_and_unknown_folds(root):
    config = tiny_config(root, data=data_section(root, hold_out={"folds": 1000, "fold": 1})).data
    with pytest.raises(DataError, match="fold 1 of 1000"):
        open_windows(config, split="train", frames=7)
    with pytest.raises(ConfigError, match=r"data\.hold_out\.fold=2 .* data\.hold_out\.folds=2"):
        tiny_config(root, data=data_section(root, hold_out={"folds": 2, "fold": 2}))


def test_stored_latents_belong_to_their_fold_students(root, runs, tmp_path):
    shared = {"latents": str(tmp_path / "latents")}
    prepare(diffusion_stage(out_of_fold(runs, root, tmp_path / "run", "without-0", "without-1", **shared)))
    with pytest.raises(
        ConfigError, match=r"computed with student without fold 0='[0-9a-f]{64}', but this run has None"
    ):
        diffusion_stage(diffusion_config(tmp_path / "other", runs, root, **shared))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("without-0", "student"), r"the direct in .*student was trained on the events of all folds; set data\.h"),
        (("without-1", "without-1"), r"without-1 and another run both hold out fold 1; no run holds out fold 0 of 2"),
        (("without-0",), r"lists 1 runs, but the direct in .*without-0 holds out fold 0 of 2"),
    ],
)
def test_rejects_students_that_saw_their_fold(root, runs, tmp_path, names, message):
    with pytest.raises(ConfigError, match=message):
        diffusion_stage(out_of_fold(runs, root, tmp_path / "run", *names))


def test_rejects_students_whose_teacher_saw_their_fold(root, runs, tmp_path):
    """The teacher's rollouts, or its weights at the start, carry the held-out events over."""
    fold = {"folds": FOLDS, "fold": 1}
    for name, hold_out in (("informed", None), ("blind", fold)):
        teacher = write_fold_student(tmp_path / f"teacher-{name}", root, hold_out, stage="teacher")
        run_dir = tmp_path / f"student-{name}"
        write_fold_student(run_dir, root, fold, stage="student", student={"teacher": str(teacher)})
        directory = RunDirectory(run_dir)
        marker = directory.marker()
        assert marker is not None
        inputs = {**marker["inputs"], "teacher": file_hash(RunDirectory(teacher).weights)}
        directory.finish(inputs, steps=4, weights=file_hash(directory.weights))
    students = ("without-0", str(tmp_path / "student-informed"))
    with pytest.raises(
        ConfigError, match=r"student-informed holds out fold 1 of 2, but its teacher in .*-informed was trained on"
    ):
        diffusion_stage(out_of_fold(runs, root, tmp_path / "run", *students))
    diffusion_stage(out_of_fold(runs, root, tmp_path / "run", "without-0", str(tmp_path / "student-blind")))


def test_pipeline_uses_its_own_fold_students(tmp_path):
    stages: dict[str, dict[str, Any]] = {name: {"max_steps": 4} for name in ("teacher", "student", "autoencoder")}
    for fold in range(FOLDS):
        held_out = {"data": {"hold_out": {"folds": FOLDS, "fold": fold}}, "max_steps": 4}
        stages[f"teacher-fold-{fold}"] = {"stage": "teacher", **held_out}
        stages[f"student-fold-{fold}"] = {"stage": "student", **held_out}
    last = {"diffusion": {"max_steps": 4}}
    with pytest.raises(ConfigError, match=r"stages\.diffusion: diffusion\.fold_students .* list student-fold-0 first"):
        five_stages(tmp_path, stages={"teacher": {}, "student": {}, "autoencoder": {}} | last | stages)
    config = five_stages(tmp_path, stages=stages | last)
    diffusion = config.train_config("diffusion").diffusion
    assert diffusion.fold_students == tuple(tmp_path / f"student-fold-{fold}" for fold in range(FOLDS))
    assert diffusion.student == tmp_path / "student"
    assert config.train_config("student").student.teacher == tmp_path / "teacher"
    assert config.train_config("student-fold-1").student.teacher == tmp_path / "teacher-fold-1"
    assert five_stages(tmp_path).train_config("diffusion").diffusion.fold_students is None
