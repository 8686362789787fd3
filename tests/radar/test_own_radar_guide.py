"""The commands on the page docs/guides/own-radar.md, run in order on a few synthetic ODIM files."""

import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import xarray as xr
from typer.testing import CliRunner

from simcast_hpc.cli import app
from simcast_hpc.config import PipelineConfig, read_config
from tests.radar.radar_files import storm, write_odim

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "own-radar.md").read_text(encoding="utf-8")
# Frames per day of June 2024: training, validation and test by the dates of the page, and the day that is appended.
DAYS = {1: 24, 6: 24, 8: 24, 10: 28}
SMALL = ["max_steps=1", "batch.global_size=1", "batch.micro_size=1", "validation.every_steps=1", "validation.windows=1"]
# Fewer steps than on the page and no intervals, for a short test.
SHORT = {
    "train": [word for field in [*SMALL, "data.workers=0"] for word in ("--set", field)],
    "evaluate": ["--tables-only", "--draws", "0"],
    "score-issued": ["--draws", "0"],
}
PLACES = {"/products": "forecasts", "/radar/incoming": "radar/2024/06/10"}


def commands() -> list[list[str]]:
    """Return the words of the commands of the page, in order, without `simcast`."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", TEXT, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("simcast ")]


def is_of_the_example(words: list[str]) -> bool:
    """Return whether a command uses the folders of the example: others need a GPU, a network or never end."""
    return not any(word.startswith(("/raw", "data.root=/")) for word in words) and "--watch" not in words


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Change to a folder with the frames of the example and the configuration of the pipeline."""
    monkeypatch.chdir(tmp_path)
    for day, frames in DAYS.items():
        place = tmp_path / "radar" / "2024" / "06" / f"{day:02d}"
        place.mkdir(parents=True)
        for k in range(frames):
            time = datetime(2024, 6, day, 12, tzinfo=UTC) + timedelta(minutes=5 * k)
            write_odim(place / f"composite_{time:%Y%m%d%H%M}.h5", storm(k, shape=(64, 72)), time)
    (pipeline,) = re.findall(r'```yaml title="my-pipeline.yaml"\n(.*?)\n```', TEXT, re.DOTALL)
    (tmp_path / "my-pipeline.yaml").write_text(pipeline, encoding="utf-8")
    return tmp_path


def run(words: list[str], *more: str) -> str:
    """Run a command and return its output."""
    result = CliRunner().invoke(app, [*(PLACES.get(word, word) for word in words), *more])
    assert result.exit_code == 0, f"{' '.join(words)}: {result.output} {result.exception!r}"
    return result.output


@pytest.mark.parametrize("charts", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_commands_of_the_page_run_in_order(folder, charts):
    done = []
    for words in filter(is_of_the_example, commands()):
        if words[:2] == ["data", "inspect"] and not charts:
            words = words[:3]
        if words[0] != "pipeline":
            done.append((words[0], run(words, *SHORT.get(words[0], []))))
    assert [name for name, _ in done] == [
        *["data"] * 4, "evaluate", "train", *["predict"] * 3, "score-issued",
    ]  # fmt: skip
    assert "cadence        5 minutes" in done[0][1] and "description data/mine/dataset.yaml" in done[1][1]
    assert "data/mine: 0 problems, 0 allowed" in done[3][1]
    with xr.open_dataset(folder / "forecasts" / "forecast_20240610T1400Z.nc") as forecast:
        assert forecast.attrs["simcast_data_description"] == "mine" and "direct trial" in forecast.attrs["source"]
        assert forecast.attrs["license"] == "CC BY 4.0" and "rainfall_amount_60min" in forecast
    assert list((folder / "forecasts" / "forecast_20240610T1400Z.cog").glob("*.tif"))
    assert (folder / "issued-scores" / "index.html").stat().st_size
    assert (folder / "look.html").exists() is charts


def test_pipeline_of_the_page_is_valid(folder):
    pipeline = read_config(PipelineConfig, folder / "my-pipeline.yaml")
    assert pipeline.data.dataset is None and pipeline.data.crop is not None


@pytest.mark.slow
def test_pipeline_of_the_page_trains_from_the_imported_folder(folder):
    for words in commands():
        if words[:2] == ["data", "import"] and is_of_the_example(words):
            run(words)
    steps = "stages={teacher: {max_steps: 2}, student: {max_steps: 2}, direct: {max_steps: 2}}"
    run(["pipeline", "my-pipeline.yaml"], "--set", steps, "--set", "evaluation.tables_only=true")
    assert (folder / "runs" / "mine" / "report" / "index.html").exists()
