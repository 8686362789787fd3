"""Script, description and pipeline on the page docs/guides/own-radar.md, on a folder of synthetic ODIM files."""

import csv
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from simcast_hpc.cli import app
from simcast_hpc.config import DataConfig, PipelineConfig, read_config
from simcast_hpc.radar import encode_frame, encoding_of_run, read_frames
from tests.radar.radar_files import moment, storm, write_odim

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "own-radar.md"
EVENT, LOST = 4, 9  # frames per event, and the frame that is absent


def block(title: str) -> str:
    """Return the code block of the page with this title."""
    found = re.search(rf'```\w+ title="{re.escape(title)}"\n(.*?)\n```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, title
    return found[1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Return a folder with radar files, the description of the page and the archive that its script writes."""
    root = tmp_path_factory.mktemp("own")
    (root / "radar" / "day").mkdir(parents=True)
    for number in range(3 * EVENT + 2):
        if number != LOST:
            late = (number % 3 - 1) * 0.05  # jitter of 15 s
            write_odim(root / "radar" / "day" / f"{number:02d}.h5", storm(number), moment(number, minutes=5 + late))
    (root / "radar" / "notes.txt").write_text("no radar file")
    description = yaml.safe_load(block("my-radar.yaml"))
    description |= {"frames_per_event": EVENT, "splits": {"kind": "single", "split": "test"}}
    (root / "my-radar.yaml").write_text(yaml.safe_dump(description))
    script: dict = {"__name__": "write_archive"}
    exec(compile(block("write_archive.py"), "write_archive.py", "exec"), script)
    assert script["write_archive"](root / "radar", root / "archive", root / "my-radar.yaml") == 3
    return root


def test_archive_contains_the_encoded_frames_without_gaps(archive):
    with (archive / "archive" / "CATALOG.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["time_utc"][11:16] for row in rows] == ["01:00", "01:20", "01:50"]  # 01:45 is absent
    encoding = encoding_of_run(DataConfig(dataset=str(archive / "my-radar.yaml")))
    for row, first in zip(rows, (0, 4, 10), strict=True):
        with h5py.File(archive / "archive" / row["file_name"]) as file:
            stored = file["dbz"][0]
        for k in range(EVENT):
            (frame,) = read_frames(archive / "radar" / "day" / f"{first + k:02d}.h5")
            np.testing.assert_array_equal(stored[..., k], encode_frame(frame, encoding).codes)


def test_archive_has_no_problem_and_its_baselines_are_scored(archive):
    data = ["--dataset", str(archive / "my-radar.yaml")]
    inspected = CliRunner().invoke(app, ["data", "inspect", str(archive / "archive"), *data])
    assert inspected.exit_code == 0, inspected.output
    words = ["evaluate", "persistence", *data, "--root", str(archive / "archive"), "--frames-in", "2", "--tables-only"]
    words += ["--frames-out", "2", "--draws", "0", "--out", str(archive / "scores")]
    scored = CliRunner().invoke(app, words)
    assert scored.exit_code == 0, scored.output
    assert (archive / "scores" / "test.json").exists()


def test_pipeline_of_the_page_is_valid(tmp_path):
    (tmp_path / "my-pipeline.yaml").write_text(block("my-pipeline.yaml"), encoding="utf-8")
    pipeline = read_config(PipelineConfig, tmp_path / "my-pipeline.yaml")
    assert pipeline.data.dataset == "my-radar.yaml" and pipeline.data.max_percent_missing is None
