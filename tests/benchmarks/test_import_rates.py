"""The import benchmark at a small size: archives of every format can be read, and the CSV has a row per format."""

import csv
from datetime import timedelta

import pytest

from benchmarks import import_rates
from benchmarks.radar_archives import BEGIN, FORMATS, STEP, write_files
from simcast_hpc.radar import FieldChoice
from simcast_hpc.radar.read_frame import read_frames_in_process


@pytest.mark.parametrize("name", FORMATS)
def test_archives_have_a_frame_every_five_minutes(tmp_path, name):
    source = write_files(name, tmp_path / "source", 3)
    files = [source] if name == "zarr" else sorted(source.iterdir())
    frames = [frame for path in files for frame in read_frames_in_process(path, FieldChoice())]
    assert [frame.time for frame in frames] == [BEGIN + k * STEP for k in range(3)]
    assert all(frame.start in (None, frame.time - timedelta(minutes=5)) for frame in frames)
    assert 0.05 < (frames[0].values > 0.1).mean() < 0.5


def test_writes_a_row_per_format_and_checks_memory(tmp_path, capsys):
    words = ["--formats", "fmi", "--frames", "80", "--folder", str(tmp_path), "--csv", str(tmp_path / "csv")]
    assert import_rates.main([*words, "--limit-mb", "10"]) == 1
    assert "fmi: peak memory" in capsys.readouterr().out
    with (tmp_path / "csv/import_rates.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["format"], row["frames"], row["pixels"]) == ("fmi", "80", "96 x 112")
    assert float(row["frames_per_s"]) > 0 and 50 < float(row["peak_mb"]) < 1000
