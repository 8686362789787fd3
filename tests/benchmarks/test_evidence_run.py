"""The runner of the study: arms train, finished units are kept, interrupted units are trained again."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks.evidence import collect
from benchmarks.evidence import run_study as run
from benchmarks.evidence.arms import BASELINES, GROUPS, arm_named
from benchmarks.evidence.block_sums import to_codes
from benchmarks.evidence.run_study import Workplace, missing_units, units_of
from benchmarks.evidence.study import STUDY, read_study
from benchmarks.evidence.study_windows import Archive
from benchmarks.evidence.train_arm import train_unit
from benchmarks.evidence.unit_results import is_finished, load_evidence, load_unit, packed_units
from simcast_hpc.config import ConfigError
from simcast_hpc.inference.trained_model import load_trained

TINY = (
    "archive={seed: 1, events: {train: 2, val: 2, test: 4}, size: 16, frames_per_event: 13}",
    "sequence={frames_in: 4, frames_out: 4}",
    "window_stride=1",
    "model={hidden_spatial: 2, hidden_temporal: 8, temporal_blocks: 1, inception_kernels: [3], groups: 2}",
    "steps=2",
    "horizons=[1, 2]",
    "seeds=[0, 1]",
    "few_events=[1]",
    "scoring={window_stride: 5, events_per_block: 2, fss_pixels: 3, fss_thresholds: [74]}",
)


@pytest.fixture
def study():
    return read_study(STUDY, TINY)


def options(work, *arms):
    return [
        "--work",
        str(work),
        *(word for line in TINY for word in ("--set", line)),
        *(("--arms", *arms) if arms else ()),
    ]


def test_trains_and_packs_two_arms_with_two_seeds(tmp_path, study, capsys):
    work, results = tmp_path / "work", tmp_path / "results"
    assert run.main(options(work, "persistence", "student-2")) == 0
    assert "5 units done" in capsys.readouterr().out  # persistence, and the student with its teacher, twice
    assert collect.main([*options(work), "--results", str(results)]) == 0
    evidence = load_evidence(results)
    assert list(evidence.by_arm) == ["persistence", "teacher-2", "student-2"]
    assert evidence.seeds("teacher-2", "student-2", "persistence") == [0, 1]
    assert evidence.study == study
    for arm, seed in (("teacher-2", 0), ("student-2", 1)):
        unit = load_unit(work / "units" / f"{arm}-seed{seed}")
        packed = evidence.result(arm, seed)
        for name, array in unit.sums._asdict().items():
            assert array.dtype == np.int64
            np.testing.assert_array_equal(array, getattr(packed.sums, name))
        assert packed.record == json.loads(json.dumps(unit.record))
        assert [step for step, _ in packed.record["val_loss"]] == [1, 2]
    first, second = (evidence.result("student-2", seed).sums.absolute_error for seed in (0, 1))
    assert (first != second).any()


def test_keeps_finished_and_repeats_interrupted_units(tmp_path, monkeypatch, capsys):
    command = options(tmp_path, "persistence", "direct")
    with monkeypatch.context() as patch:
        real, saved = run.save_unit, []

        def save(folder, sums, record):
            if len(saved) == 2:
                raise KeyboardInterrupt
            saved.append(folder)
            real(folder, sums, record)

        patch.setattr(run, "save_unit", save)
        with pytest.raises(KeyboardInterrupt):
            run.main(command)
    cut = tmp_path / "units" / "direct-seed1"
    assert cut.is_dir() and not is_finished(cut)
    before = {folder: (folder / "unit.json").stat().st_mtime_ns for folder in saved}
    assert run.main(command) == 0
    assert is_finished(cut)
    assert before == {folder: (folder / "unit.json").stat().st_mtime_ns for folder in saved}
    assert run.main(command) == 0
    assert "0 units done" in capsys.readouterr().out


def test_unit_is_reproducible(tmp_path):
    for name in "ab":
        assert run.main([*options(tmp_path / name, "student-1"), "--set", "seeds=[3]"]) == 0
    first, second = (load_unit(tmp_path / name / "units" / "student-1-seed3").sums for name in "ab")
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_resumes_after_a_kill_and_keeps_packed_results(tmp_path, study, capsys):
    """A killed process loses the unit in training only; a packed teacher is trained again only for its weights."""
    work, results = tmp_path / "work", tmp_path / "results"
    command = options(work, "student-2")
    first = work / "units" / "teacher-2-seed0" / "unit.json"
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.evidence.run_study", *command])
    try:
        while not first.is_file() and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    before = first.stat().st_mtime_ns
    assert run.main(command) == 0
    assert first.stat().st_mtime_ns == before
    assert "4 units done" not in capsys.readouterr().out
    assert collect.main([*options(work), "--results", str(results)]) == 0
    packed = load_evidence(results)
    # Another folder has no weights: nothing is missing, but a new student needs its teacher's weights.
    again = options(tmp_path / "other", "student-2")
    assert run.main([*again, "--results", str(results)]) == 0
    assert "0 units done" in capsys.readouterr().out
    packed_names = packed_units(study, results)
    assert packed_names == {f"{arm}-seed{seed}" for arm in ("teacher-2", "student-2") for seed in (0, 1)}
    names = {unit.name for unit in missing_units(units_of(study, ["student-warm"]), packed_names)}
    assert names == {f"{arm}-seed{seed}" for arm in ("teacher-2", "student-warm") for seed in (0, 1)}
    later = options(tmp_path / "other", "student-1")
    assert run.main([*later, "--results", str(results), "--set", "seeds=[0]"]) == 0
    assert collect.main([*options(tmp_path / "other"), "--results", str(results)]) == 0
    merged = load_evidence(results)
    assert list(merged.by_arm) == ["teacher-2", "student-2", "teacher-1", "student-1"]
    for arm in packed.by_arm:
        assert merged.by_arm[arm][1].record == packed.by_arm[arm][1].record
    assert collect.main([*options(tmp_path / "other"), "--set", "steps=3", "--results", str(results)]) == 2


def test_selects_the_weights_with_the_highest_validation_csi(tmp_path, study):
    """The curve of the selection has its maximum at the selected step, and the stored weights have that CSI-M."""
    study = study.model_copy(update={"steps": 6})
    archive = Archive(study, tmp_path / "archive")
    archive.write()
    folder = tmp_path / "direct-n1-seed0"
    curves = train_unit(study, arm_named(study, "direct-n1"), seed=0, folder=folder, archive=archive)
    best = dict(curves["val_csi"])
    assert list(best) == list(range(1, 13))
    assert best[curves["selected_step"]] == max(best.values()) > min(best.values())
    model = load_trained(folder)
    source = archive.windows("val", frames=8)
    codes = torch.from_numpy(np.stack([source.read(index) for index in range(len(source))]))
    forecast = to_codes(model.forecast(codes[:, :4], frames_out=4)).numpy()
    observed, scores = codes[:, 4:].numpy(), []
    for threshold in (16, 74, 133, 160, 181, 219):
        hit, either = (
            (forecast >= threshold) & (observed >= threshold),
            (forecast >= threshold) | (observed >= threshold),
        )
        scores += [hit.sum() / either.sum()] if either.any() else []
    assert np.mean(scores) == pytest.approx(max(best.values()), abs=1e-12)


def test_few_data_arms_read_their_own_events_only(tmp_path, study):
    archive = Archive(study, tmp_path)
    archive.write()
    whole, few = (archive.windows("train", frames=8, limit=limit) for limit in (None, 1))
    assert (len(whole), len(few)) == (2 * len(few.starts), len(few.starts))
    assert {few.key(index).event for index in range(len(few))} == {whole.key(0).event}


def test_lock_is_released_with_its_process(tmp_path, study):
    place = Workplace(study, tmp_path)
    place.open()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with place._lock("direct-seed0") as mine:
            os.write(writer, b"1" if mine else b"0")
            signal.pause()
    try:
        assert os.read(reader, 1) == b"1"
        with place._lock("direct-seed0") as mine:
            assert not mine
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with place._lock("direct-seed0") as mine:
        assert mine


def test_rejects_another_study_and_accepts_more_seeds(tmp_path, study, capsys):
    Workplace(study, tmp_path).open()
    assert run.main([*options(tmp_path), "--set", "steps=3"]) == 2
    assert "belongs to another study: steps is 2 there and 3 here" in capsys.readouterr().err
    assert run.main([*options(tmp_path), "--set", "seeds=[0, 1, 2]", "--stop-after", "0"]) == 0


def test_units_are_ordered_by_group_seed_and_teacher(study):
    units = units_of(study)
    order = [(GROUPS.index(unit.arm.group), unit.seed) for unit in units if unit.arm is not None]
    assert order == sorted(order) and len(order) == len(units) - len(BASELINES)
    places = {unit.name: place for place, unit in enumerate(units)}
    assert all(places[unit.needs] < place for place, unit in enumerate(units) if unit.needs)
    assert len(places) == len(units)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("sequence.frames_out=30", "too short for the oracle extension"),
        ("horizons=[9]", "at most 6 frames"),
        ("weights=[3, 10]", "must contain 1 and 10"),
        ("scoring.fss_pixels=4", "must be odd"),
        ("archive.events.test=12", "not a multiple"),
        ("arm=1", "unknown"),
    ],
)
def test_rejects_an_invalid_study(wrong, message):
    with pytest.raises(ConfigError, match=message):
        read_study(STUDY, (wrong,))
    with pytest.raises(ConfigError, match="no arm 'forward'"):
        units_of(read_study(), ["forward"])
