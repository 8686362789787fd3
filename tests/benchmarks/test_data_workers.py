"""The benchmark of micro-batches: rates, and rows of a synthetic or given archive."""

import csv
import itertools

import pytest

from benchmarks import data_workers, measurements
from tests.archives import make_archive, open_archive, random_codes

FEW = ["--workers", "0", "1", "--batch", "2", "3", "--repetitions", "3", "--windows", "6", "--frames", "5"]


def test_times_a_synthetic_archive(tmp_path, capsys):
    path = tmp_path / "new" / "data.csv"
    words = ["--events", "3", "--size", "16", "--frames-per-event", "11", "--window-stride", "2", "--csv", str(path)]
    assert data_workers.main([*FEW, *words]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["workers"], row["shape"]) for row in rows] == [
        (workers, f"{batch}x5x16x16") for workers in "01" for batch in (2, 3)
    ]
    for row in rows:
        assert 0 < float(row["p20_windows_per_s"]) <= float(row["p50_windows_per_s"])
        assert float(row["p50_windows_per_s"]) <= float(row["p80_windows_per_s"])
        assert row["windows_per_repetition"] == "6" and row["repetitions"] == "3"
        assert row["case"] == "synthetic train, 12 windows" and row["torch"] and row["commit"]
    assert str(path) in capsys.readouterr().out


def test_reads_a_given_archive_without_changing_it(tmp_path, capsys):
    root = make_archive(tmp_path / "archive", random_codes(2, 11))
    before = sorted(path.stat().st_mtime_ns for path in root.rglob("*"))
    words = ["--workers", "0", "--batch", "2", "--repetitions", "1", "--windows", "2", "--frames", "5"]
    data_workers.main([*words, "--root", str(root), "--csv", str(tmp_path / "data.csv")])
    assert sorted(path.stat().st_mtime_ns for path in root.rglob("*")) == before
    assert "synthetic train, 4 windows" in capsys.readouterr().out


def test_rate_is_windows_per_second(tmp_path, monkeypatch):
    clock = itertools.count(step=2)
    monkeypatch.setattr(measurements.time, "perf_counter", lambda: float(next(clock)))
    source = open_archive(make_archive(tmp_path, random_codes(2, 11)))
    assert data_workers.rates(source, workers=0, batch_size=3, repetitions=4, windows_per_repetition=8) == [6 / 2] * 4
    assert data_workers.rates(source, workers=0, batch_size=3, repetitions=1, windows_per_repetition=1) == [3 / 2]


@pytest.mark.parametrize("wrong", [["--batch", "0"], ["--repetitions", "-1"]])
def test_rejects_an_invalid_option(wrong):
    with pytest.raises(SystemExit):
        data_workers.parse(wrong)
