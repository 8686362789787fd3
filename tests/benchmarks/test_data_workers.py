"""The benchmark of reading windows: it counts what it says, on any archive, and keeps what it found."""

import csv
import itertools

import pytest

from benchmarks import data_workers as data
from tests.archives import make_archive, open_archive, random_codes

FEW = ["--workers", "0", "1", "--batch", "2", "3", "--repetitions", "3", "--windows", "6", "--frames", "5"]


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_synthetic_archive_is_made_timed_and_removed(tmp_path, capsys):
    path = tmp_path / "deep" / "data.csv"
    made = ["--events", "3", "--size", "16", "--frames-per-event", "11"]
    assert data.main([*FEW, *made, "--window-stride", "2", "--csv", str(path)]) == 0
    rows = _rows(path)
    assert [(row["mode"], row["shape"]) for row in rows] == [
        (f"workers={workers}", f"{batch}x5x16x16") for workers in (0, 1) for batch in (2, 3)
    ]
    for row in rows:
        assert 0 < float(row["p20"]) <= float(row["p50"]) <= float(row["p80"])
        assert row["unit"] == "windows/s" and row["windows_per_repetition"] == "6" and row["repetitions"] == "3"
        assert row["case"] == "synthetic train, 12 windows" and row["torch"] and row["commit"]
    said = capsys.readouterr().out
    assert "3 repetitions" in said and "workers=1" in said and str(path) in said


def test_a_given_archive_is_read_and_left_alone(tmp_path, capsys):
    root = make_archive(tmp_path / "archive", random_codes(2, 11))
    before = sorted(path.stat().st_mtime_ns for path in root.rglob("*"))
    data.main([*FEW, "--root", str(root), "--dataset", "synthetic"])
    assert sorted(path.stat().st_mtime_ns for path in root.rglob("*")) == before
    assert list(tmp_path.iterdir()) == [root]
    assert "synthetic train, 4 windows" in capsys.readouterr().out


def test_a_rate_is_windows_over_seconds(tmp_path, monkeypatch):
    clock = itertools.count(step=2)
    monkeypatch.setattr(data.time, "perf_counter", lambda: float(next(clock)))
    source = open_archive(make_archive(tmp_path, random_codes(2, 11)))
    assert data.rates(source, workers=0, batch_size=3, repetitions=4, windows_per_repetition=8) == [6 / 2] * 4
    assert data.rates(source, workers=0, batch_size=3, repetitions=1, windows_per_repetition=1) == [3 / 2]


@pytest.mark.parametrize("wrong", [["--batch", "0"], ["--repetitions", "-1"], ["--split", "exam"]])
def test_a_wrong_option_is_rejected(wrong):
    with pytest.raises(SystemExit):
        data.parse(wrong)
