"""The benchmark of SEVIR-size data at a small size: each part writes its CSV."""

import csv
import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from benchmarks import sevir_data as data


@pytest.fixture(autouse=True)
def threads():
    """Restore the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_writes_reading_and_preparation(tmp_path, monkeypatch, capsys):
    passed = {}
    monkeypatch.setattr(data, "time_ranks", lambda *_, **options: passed.update(options) or {1: 10.0, 2: 11.0})
    words = ["--events", "2", "--size", "32", "--repetitions", "2", "--parts", "reading", "preparing"]
    assert data.main([*words, "--csv", str(tmp_path / "new")]) == 0
    reading = rows_of(tmp_path / "new" / "data_reading.csv")
    assert len(reading) == 4 * 2 * 2 * 2, "four layouts, two orders, two cache states, two providers"
    assert all(float(row["windows_per_core_s"]) > 0 and row["public_commit"] == "" for row in reading)
    preparing = rows_of(tmp_path / "new" / "data_preparation.csv")
    ways = [(row["way"], row["layout"], row["codec"], row["ranks"], row["repetitions"]) for row in preparing]
    assert ways == [
        ("in process", "contiguous", "lz4", "1", "2"), ("in process", "contiguous", "zstd", "1", "2"),
        ("in process", "gzip", "lz4", "1", "2"), ("in process", "gzip", "zstd", "1", "2"),
        ("command", "gzip", "lz4", "1", "1"), ("command", "gzip", "lz4", "2", "1"),
    ]  # fmt: skip
    assert all(float(row["bare_ms"]) > 0 and float(row["ours_ms"]) > 0 for row in preparing[:4])
    assert preparing[5]["ours_ms"] == "11.0" and preparing[5]["bare_ms"] == "" and passed["repetitions"] == 1
    for row in reading + preparing:
        assert (row["events"], row["frames"], row["size"]) == ("2", "49", "32")
        assert row["load"] and row["commit"] and row["h5py"] and row["device"].endswith("CPU, 1 threads")
    output = capsys.readouterr().out
    assert "windows_per_core_s" in output and "data_preparation.csv" in output


def test_writes_opening(tmp_path, monkeypatch, capsys):
    made, run = [], subprocess.run
    monkeypatch.setattr(data.data_index, "make", lambda root, events: made.append((root, events)))

    def opened(words, **options):
        if "--open" not in words:
            return run(words, **options)
        windows = 3 * next(events for root, events in made if str(root) == words[-1])
        return SimpleNamespace(stdout=json.dumps({"windows": windows, "seconds": 0.5, "mib": 20.0}))

    monkeypatch.setattr(data.subprocess, "run", opened)
    assert data.main(["--parts", "opening", "--csv", str(tmp_path)]) == 0
    found = [
        [row[name] for name in ("events", "windows", "seconds", "mib")]
        for row in rows_of(tmp_path / "data_opening.csv")
    ]
    assert found == [["18979", "56937", "0.5", "20.0"], ["189790", "569370", "0.5", "20.0"]]
    assert [path.name for path in tmp_path.iterdir()] == ["data_opening.csv"], "only the selected part"
    assert "data_opening.csv" in capsys.readouterr().out
