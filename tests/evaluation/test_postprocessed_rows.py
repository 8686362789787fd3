"""Post-processed rows: `simcast calibrate`, then `simcast evaluate --postprocess`, the Python API, and the errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

import simcast_hpc as sc
from simcast_hpc.cli import app
from simcast_hpc.config import ConfigError, DataConfig, EvaluationConfig, SequenceConfig
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.evaluation import Entry, TestSet, baseline_entry, evaluate, with_postprocessing
from simcast_hpc.evaluation.count_entries import count_entries
from simcast_hpc.evaluation.dataset_protocols import protocols_of
from simcast_hpc.inference.calibration import fit_quantile_mapping
from simcast_hpc.inference.quantile_mapping import FILE_NAME, QuantileMapping
from simcast_hpc.inference.trained_ensemble import load_run
from simcast_hpc.models.advection import extrapolate
from tests.archives import tiny_config, write_trained


def simcast(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A calibrated run of random weights."""
    folder = tmp_path_factory.mktemp("rows")
    write_archive(folder / "storms", seed=5, events={"train": 2, "val": 3, "test": 3}, size=32, frames_per_event=12)
    torch.manual_seed(0)
    data = {"dataset": "synthetic", "root": str(folder / "storms"), "window_stride": 2}
    run_dir = write_trained(tiny_config(folder / "student", data=data))
    assert simcast("calibrate", run_dir).strip() == f"quantile mapping: {run_dir / FILE_NAME}"
    return run_dir


@pytest.fixture(scope="module")
def scores(run: Path, tmp_path_factory) -> tuple[str, dict]:
    out = tmp_path_factory.mktemp("scores")
    names = ["--postprocess", "quantile-mapping", "--postprocess", "probability-matching"]
    text = simcast("evaluate", run, "--out", out, "--draws", 20, "--tables-only", *names)
    return text, json.loads((out / "test.json").read_text())


def test_rows_are_named_and_described(scores):
    text, result = scores
    rows = {entry["name"]: entry for entry in result["entries"]}
    assert list(rows) == ["persistence", "student", "student+quantile-mapping", "student+probability-matching"]
    assert [rows[name]["postprocessing"] for name in rows] == [None, None, "quantile-mapping", "probability-matching"]
    assert "quantile mapping fitted on 9 validation windows" in rows["student+quantile-mapping"]["note"]
    assert rows["student+probability-matching"]["note"].endswith("probability matching with the last input frame")
    assert all(name in text for name in rows)


def test_frequency_bias_is_one_on_the_validation_split_and_improves_on_the_test_split(run: Path, scores, tmp_path):
    simcast("evaluate", run, "--split", "val", "--out", tmp_path, "--draws", 0, "--tables-only", "--postprocess",
            "quantile-mapping")  # fmt: skip
    val = json.loads((tmp_path / "val.json").read_text())["scores"]
    for threshold in (16, 74, 133):
        bias = val["student+quantile-mapping"]["synthetic-global"][f"frequency_bias/{threshold}"]
        assert bias == pytest.approx(1, abs=0.05)
    raw, mapped = (
        scores[1]["scores"][name]["synthetic-global"]["frequency_bias/16"]
        for name in ("student", "student+quantile-mapping")
    )
    assert abs(mapped - 1) < 0.6 * abs(raw - 1)


def test_scores_equal_those_of_the_mapped_forecasts(run: Path, scores):
    """Mean squared error of the mapped forecast, summed in NumPy."""
    _, result = scores
    model, mapping = load_run(run), QuantileMapping.load(run / FILE_NAME)
    source = open_windows(model.config.data, split="test", frames=7)
    windows = np.stack([source.read(k) for k in range(len(source))])
    past, truth = torch.from_numpy(windows[:, :3]), windows[:, 3:]
    mapped = mapping.apply(model.forecast(past, frames_out=4)).double().numpy()
    error = ((mapped - truth / 255.0) ** 2)[truth != 255].mean()
    assert result["scores"]["student+quantile-mapping"]["synthetic-global"]["mse"] == pytest.approx(error, rel=1e-5)


def test_api_equals_the_mapping(run: Path):
    codes = open_windows(load_run(run).config.data, split="test", frames=7).read(0)[:3]
    raw = sc.load(run, device="cpu").forecast(codes)
    mapped = sc.load(run, device="cpu", postprocess="quantile-mapping")
    expected = QuantileMapping.load(run / FILE_NAME).apply(torch.from_numpy(raw)[None])[0].numpy()
    np.testing.assert_array_equal(mapped.forecast(codes), expected)
    np.testing.assert_array_equal(mapped.forecast(codes, lead_times=[2, 4]), expected[[1, 3]])
    with pytest.raises(ConfigError, match="has 4 lead times, the forecast 5"):
        mapped.forecast(codes, lead_times=5)
    matched = sc.load("persistence", dataset="synthetic", postprocess="probability-matching").forecast(codes, 2)
    assert (matched[0][codes[-1] != 255] * 255 == codes[-1][codes[-1] != 255]).mean() > 0.9  # 1 to 5 mean no echo
    with pytest.raises(ConfigError, match="fitted for a run; the baseline persistence has none"):
        sc.load("persistence", dataset="synthetic", postprocess="quantile-mapping")
    with pytest.raises(ConfigError, match="postprocess 'pm' is unknown"):
        sc.load(run, postprocess="pm")


def test_quantile_mapping_of_a_baseline_is_fitted_on_the_validation_split(run: Path, tmp_path: Path, caplog):
    words = ["evaluate", "persistence", "--dataset", "synthetic", "--root", run.parent / "storms", "--frames-in", 3]
    words += ["--frames-out", 4, "--window-stride", 2, "--draws", 0, "--postprocess", "quantile-mapping"]
    simcast(*words, "--out", tmp_path)
    rows = json.loads((tmp_path / "test.json").read_text())["entries"]
    assert [row["name"] for row in rows] == ["persistence", "persistence+quantile-mapping"]
    assert rows[1]["note"].endswith("quantile mapping fitted on 9 validation windows")
    assert "too good" not in caplog.text


def test_warns_about_scores_on_the_fitted_split(run: Path, tmp_path: Path, caplog):
    data = load_run(run).config.data
    entry = Entry("one", load_run(run), "model", "").with_postprocessing(QuantileMapping.load(run / FILE_NAME))
    settings = EvaluationConfig(draws=0, tables_only=True)
    evaluate(
        TestSet("val", data, "val"), [entry], sequence=load_run(run).config.sequence, settings=settings, folder=tmp_path
    )
    assert "one+quantile-mapping: fitted on the split val, which is scored here" in caplog.text


def test_rejects_quantile_mapping_of_a_file(run: Path, tmp_path: Path):
    np.savez(tmp_path / "mine.npz", forecast=np.zeros((1, 4, 32, 32), np.uint8), event=np.array(["a"]), start=[0])
    with pytest.raises(ConfigError, match="needs forecasts of the split val, which a file lacks"):
        simcast("evaluate", tmp_path / "mine.npz", "--dataset", "synthetic", "--root", run.parent / "storms",
                "--frames-in", 3, "--frames-out", 4, "--out", tmp_path,
                "--postprocess", "quantile-mapping")  # fmt: skip
    with pytest.raises(ConfigError, match="postprocess"):
        simcast("evaluate", run, "--out", tmp_path, "--postprocess", "none-such")


def test_forecast_is_computed_once_for_all_its_rows(run: Path):
    class Counted:
        calls = 0

        def forecast(self, frames, /, *, frames_out):
            self.calls += len(frames)
            return torch.full((len(frames), frames_out, *frames.shape[-2:]), 0.2)

    data: DataConfig = load_run(run).config.data
    source, method = open_windows(data, split="test", frames=7), Counted()
    entries = with_postprocessing(Entry("one", method, "model", ""), ["probability-matching"], data)
    entries += with_postprocessing(baseline_entry("persistence", data), ["probability-matching"], data)
    protocols = protocols_of(read_spec("synthetic"), ["global"], tables_only=True)
    counted, _ = count_entries(source, entries, protocols, frames_in=3, batch_size=4, heavy=100.0)
    assert method.calls == len(source)
    assert list(counted) == ["one", "one+probability-matching", "persistence", "persistence+probability-matching"]


def test_smooth_forecast_gains_heavy_rain_and_loses_mean_squared_error(tmp_path: Path):
    """Extrapolation smoothed more with lead time, as a network's mean: what both methods change, on the test split."""

    class Smooth:
        def forecast(self, frames, /, *, frames_out):
            values = torch.where(frames == 255, 0, frames) / 255.0
            fields = extrapolate(values, frames_out).numpy()
            for lead in range(frames_out):
                fields[:, lead] = gaussian_filter(fields[:, lead], (0, 0.8 * (lead + 1), 0.8 * (lead + 1)))
            return torch.from_numpy(fields)

    write_archive(tmp_path, seed=9, events={"train": 1, "val": 12, "test": 12}, size=48, frames_per_event=16)
    data = DataConfig(dataset="synthetic", root=tmp_path, window_stride=4)
    sequence = SequenceConfig(frames_in=4, frames_out=4, teacher_frames_out=2)
    names = ["quantile-mapping", "probability-matching"]
    entries = with_postprocessing(
        Entry("smooth", Smooth(), "baseline", ""), names, data,
        fit=lambda method: fit_quantile_mapping(method, data, sequence),
    )  # fmt: skip
    settings = EvaluationConfig(draws=0, tables_only=True)
    result = evaluate(
        TestSet("test", data, "test"), entries, sequence=sequence, settings=settings, folder=tmp_path / "scores"
    )
    raw, *changed = (one["synthetic-global"] for one in result["scores"].values())
    assert raw["frequency_bias/133"] < 0.6
    for row in changed:
        assert row["frequency_bias/133"] == pytest.approx(1, abs=0.25)
        assert row["csi/133"] > raw["csi/133"] + 0.05 and row["mse"] > raw["mse"]
