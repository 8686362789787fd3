"""Conditions out of fold: each event's forecasts come from the student that never saw it; the others are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simcast_hpc.config import ConfigError, DataError, TrainConfig
from simcast_hpc.data.folds import fold_of
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.inference.load import load_trained
from simcast_hpc.storage.block_store import open_block
from simcast_hpc.storage.run_directory import RunDirectory, file_hash
from simcast_hpc.train.stages import make_stage, make_task
from simcast_hpc.train.stages.diffusion_stage import DiffusionStage, DiffusionTask
from tests.archives import make_archive, random_codes, tiny_config, write_trained
from tests.generative_runs import diffusion_config, make_runs
from tests.test_pipeline_generative import five_stages
from tests.train.test_diffusion_stage import OneRank

EVENTS, FOLDS = 9, 2


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("folds"), random_codes(EVENTS, 11, missing=0.002))


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory) -> Path:
    """A student of all events, and for each fold one without it, named in the other order."""
    folder = make_runs(tmp_path_factory.mktemp("runs"), root)
    for fold in range(FOLDS):
        fold_student(folder / f"without-{fold}", root, {"folds": FOLDS, "fold": fold})
    return folder


def data_of(root: Path, hold_out: Any = None) -> dict[str, Any]:
    shared = {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None}
    return shared | {"hold_out": hold_out}


def fold_student(run_dir: Path, root: Path, hold_out: Any, **over: Any) -> Path:
    torch.manual_seed(sum(map(ord, run_dir.name)))
    return write_trained(tiny_config(run_dir, data=data_of(root, hold_out), **over))


def out_of_fold(runs: Path, root: Path, run_dir: Path, *names: str, **over: Any) -> TrainConfig:
    paths = [str(runs / name) for name in names]
    return diffusion_config(run_dir, runs, root, fold_students=paths, **over)


def begun(config: TrainConfig) -> tuple[DiffusionStage, DiffusionTask]:
    stage = make_stage(config)
    task = make_task(config, stage, open_windows(config.data, split="train", frames=7))
    assert isinstance(stage, DiffusionStage) and isinstance(task, DiffusionTask)
    stage.open(task.source, torch.device("cpu"))
    return stage, task


def test_the_forecasts_of_each_event_come_from_the_student_that_did_not_see_it(root, runs, tmp_path):
    stage, task = begun(out_of_fold(runs, root, tmp_path / "run", "without-1", "without-0"))
    latents = task.prepare(OneRank())  # pyright: ignore[reportArgumentType]
    students = [load_trained(runs / f"without-{fold}") for fold in range(FOLDS)]
    seen = []
    for student in students:
        trained_on = open_windows(student.config.data, split="train", frames=7)
        seen.append({trained_on.key(index).event for index in range(len(trained_on))})
    served = [0] * FOLDS
    for index in range(len(task.source)):
        event = task.source.key(index).event
        blind = [number for number, events in enumerate(seen) if event not in events]
        assert len(blind) == 1, "no event's windows straddle folds"
        past = torch.from_numpy(task.source.read(index))[None, :3]
        wanted, other = (
            stage.autoencoder.moments(students[number].forecast(past, frames_out=4))[0][0].numpy()
            for number in (blind[0], 1 - blind[0])
        )
        stored = latents.read(index)[8:12]
        assert np.abs(stored - wanted).max() < 4e-3 < np.abs(stored - other).max()
        served[blind[0]] += 1
    assert min(served) > 5


def test_folds_are_all_events_each_in_one(root):
    whole = open_windows(tiny_config(root, data=data_of(root)).data, split="train", frames=7)
    events = [whole.key(index).event for index in range(len(whole))]
    left = [
        open_windows(tiny_config(root, data=data_of(root, {"folds": 3, "fold": fold})).data, split="train", frames=7)
        for fold in range(3)
    ]
    assert sum(len(source) for source in left) == 2 * len(whole)
    for fold, source in enumerate(left):
        kept = [source.key(index) for index in range(len(source))]
        assert kept == [whole.key(i) for i, event in enumerate(events) if fold_of(event, 3) != fold]
        assert np.array_equal(source.read(3), whole.read([whole.key(i) for i in range(len(whole))].index(kept[3])))
    assert len({whole.fingerprint, *(source.fingerprint for source in left)}) == 4
    other = tiny_config(root, data=data_of(root, {"folds": 3, "fold": 0})).data
    assert (
        open_windows(other, split="all", frames=7).fingerprint
        == open_windows(other.model_copy(update={"hold_out": None}), split="all", frames=7).fingerprint
    )


def test_folds_without_an_event_are_rejected(root):
    config = tiny_config(root, data=data_of(root, {"folds": 1000, "fold": 1})).data
    with pytest.raises(DataError, match="leave nothing in fold 1 of 1000; take fewer folds"):
        open_windows(config, split="train", frames=7)
    with pytest.raises(ConfigError, match=r"data\.hold_out\.fold=2 is not below data\.hold_out\.folds=2"):
        tiny_config(root, data=data_of(root, {"folds": 2, "fold": 2}))


def test_stored_latents_know_their_students(root, runs, tmp_path):
    open_block.cache_clear()
    shared = {"latents": str(tmp_path / "latents")}
    _, task = begun(out_of_fold(runs, root, tmp_path / "run", "without-0", "without-1", **shared))
    task.prepare(OneRank())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"made with student without fold 0='[0-9a-f]{64}', this run has None"):
        begun(diffusion_config(tmp_path / "other", runs, root, **shared))


def test_a_student_that_saw_the_events_of_its_fold_is_rejected_by_name(root, runs, tmp_path):
    with pytest.raises(
        ConfigError, match=r"the direct in .*student saw the events of all folds; train it with data\.h"
    ):
        begun(out_of_fold(runs, root, tmp_path / "run", "without-0", "student"))
    with pytest.raises(
        ConfigError, match=r"without-1 holds out fold 1, as another does, and none holds out fold 0 of 2"
    ):
        begun(out_of_fold(runs, root, tmp_path / "run", "without-1", "without-1"))
    with pytest.raises(ConfigError, match=r"names 1 runs, and the direct in .*without-0 holds out fold 0 of 2"):
        begun(out_of_fold(runs, root, tmp_path / "run", "without-0"))


def test_a_student_whose_teacher_saw_them_is_rejected(root, runs, tmp_path):
    """It learned of the held-out events by the teacher's roll-outs, or by its first weights."""
    fold = {"folds": FOLDS, "fold": 1}
    for name, hold_out in (("saw", None), ("blind", fold)):
        teacher = fold_student(tmp_path / f"teacher-{name}", root, hold_out, stage="teacher")
        run_dir = tmp_path / f"student-{name}"
        fold_student(run_dir, root, fold, stage="student", student={"teacher": str(teacher)})
        folder = RunDirectory(run_dir)
        marker = folder.marker()
        assert marker is not None
        inputs = {**marker["inputs"], "teacher": file_hash(RunDirectory(teacher).weights)}
        folder.finish(inputs, steps=4, weights=file_hash(folder.weights))
    others = ("without-0", str(tmp_path / "student-saw"))
    with pytest.raises(
        ConfigError, match=r"student-saw holds out fold 1 of 2, and its teacher in .*-saw saw those events"
    ):
        begun(out_of_fold(runs, root, tmp_path / "run", *others))
    begun(out_of_fold(runs, root, tmp_path / "run", "without-0", str(tmp_path / "student-blind")))


def test_a_pipelines_own_fold_students_serve_its_diffusion(tmp_path):
    stages: dict[str, dict[str, Any]] = {
        name: {"max_steps": 4} for name in ("teacher", "student", "autoencoder", "diffusion")
    }
    for fold in range(FOLDS):
        apart = {"data": {"hold_out": {"folds": FOLDS, "fold": fold}}, "max_steps": 4}
        stages[f"teacher-fold-{fold}"] = {"stage": "teacher", **apart}
        stages[f"student-fold-{fold}"] = {"stage": "student", **apart}
    config = five_stages(tmp_path, stages=stages)
    chosen = config.train_config("diffusion").diffusion
    assert chosen.fold_students == tuple(tmp_path / f"student-fold-{fold}" for fold in range(FOLDS))
    assert chosen.student == tmp_path / "student"
    assert config.train_config("student").student.teacher == tmp_path / "teacher"
    assert config.train_config("student-fold-1").student.teacher == tmp_path / "teacher-fold-1"
    assert five_stages(tmp_path).train_config("diffusion").diffusion.fold_students is None
