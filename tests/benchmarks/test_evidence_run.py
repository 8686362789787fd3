"""The runner of the study: arms train, finished units are kept, interrupted units are trained again."""

import json
import os
import signal

import numpy as np
import pytest

from benchmarks.evidence import collect
from benchmarks.evidence import run_study as run
from benchmarks.evidence.run_study import Workplace, units_of
from benchmarks.evidence.study import STUDY, read_study
from benchmarks.evidence.unit_results import is_finished, load_evidence, load_unit
from simcast_hpc.config import ConfigError

TINY = (
    "archive={seed: 1, events: {train: 2, val: 1, test: 4}, size: 16, frames_per_event: 13}",
    "sequence={frames_in: 4, frames_out: 4}",
    "window_stride=1",
    "model={hidden_spatial: 2, hidden_temporal: 8, temporal_blocks: 1, inception_kernels: [3], groups: 2}",
    "steps=2",
    "horizons=[1, 2]",
    "seeds=[0, 1]",
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
    assert run.main(options(work, "student-2")) == 0
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
    command = options(tmp_path, "direct")
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


def test_units_are_ordered_by_seed_and_teacher(study):
    units = units_of(study)
    seeds = [unit.seed for unit in units if unit.seed is not None]
    assert seeds == sorted(seeds) and len(seeds) == len(units) - 1
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
