"""Evaluation: all entries are scored on the same windows under every protocol, and the report can read the files."""

import json

import numpy as np
import pytest
import torch

from simcast_hpc.config import ConfigError, DataConfig, EvaluationConfig, SequenceConfig
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.encoding import code_to_unit
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.evaluation import Entry, TestSet, baseline_entry, evaluate, protocols_of
from simcast_hpc.report.example_window import read_example
from simcast_hpc.report.pipeline_results import ScoreFile
from simcast_hpc.verification import Statistics

SEQUENCE = SequenceConfig(frames_in=4, frames_out=4, teacher_frames_out=2)


class _ShiftedMembers:
    """Four members: the last frame, shifted by k pixels in member k."""

    def forecast(self, frames, /, *, frames_out):
        last = code_to_unit(frames[:, -1:]).expand(-1, frames_out, -1, -1)
        return torch.stack([last.roll(shift, dims=-1) for shift in range(4)], dim=1)


class _PerfectForecast:
    """Returns the observed frames of the archive."""

    def __init__(self, source):
        self._observed = {source.read(i)[:4].tobytes(): source.read(i)[4:] for i in range(len(source))}

    def forecast(self, frames, /, *, frames_out):
        observed = [torch.from_numpy(self._observed[one.numpy().tobytes()].copy()) for one in frames]
        return code_to_unit(torch.stack(observed))[:, :frames_out]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    root = tmp_path_factory.mktemp("evaluate") / "storms"
    write_archive(root, seed=3, events={"train": 2, "test": 6}, size=24, frames_per_event=12)
    return DataConfig(dataset="synthetic", root=root, window_stride=4)


@pytest.fixture(scope="module")
def result(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    oracle = Entry("oracle", _PerfectForecast(open_windows(data, split="test", frames=8)), "model", "perfect", steps=0)
    settings = EvaluationConfig(
        protocols=("global", "lead-mean", "sevir-global-released"), min_observed_pixels=50, min_observed_events=2
    )
    entries = [baseline_entry("persistence", data), oracle]
    result_json = evaluate(
        TestSet("test", data, "test"),
        entries,
        sequence=SEQUENCE,
        settings=settings,
        folder=folder,
        train_dates=("2017-01-01",),
    )
    return folder, result_json


def test_perfect_forecast_and_persistence(result):
    _, result_json = result
    perfect, persistence = (result_json["scores"][name]["synthetic-global"] for name in ("oracle", "persistence"))
    assert perfect["csi/mean"] == 1.0 and perfect["far/16"] == 0.0 and perfect["mse"] == 0.0
    assert 0.1 < persistence["csi/mean"] < 0.95
    assert result_json["mean_csi_by_lead"]["oracle"] == [1.0] * 4
    by_lead = result_json["mean_csi_by_lead"]["persistence"]
    assert by_lead[0] > by_lead[-1], "persistence loses skill with lead time"


def test_means_of_all_entries_use_the_supported_thresholds(result):
    _, result_json = result
    supported = result_json["supported_thresholds"]
    assert supported == [
        label
        for label, seen in result_json["observed"].items()
        if seen["pixels"] >= result_json["min_observed_pixels"] and seen["events"] >= result_json["min_observed_events"]
    ]
    assert "16" in supported
    for name in ("oracle", "persistence"):
        row = result_json["scores"][name]["synthetic-global"]
        assert row["csi/mean"] == pytest.approx(np.mean([row[f"csi/{label}"] for label in supported]))


def test_json_file_equals_the_result_without_nan(result):
    folder, result_json = result
    text = (folder / "test.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not valid JSON"))
    assert read["scores"]["persistence"]["synthetic-global"]["csi/16"] == pytest.approx(
        result_json["scores"]["persistence"]["synthetic-global"]["csi/16"]
    )
    assert ScoreFile.model_validate_json(text).train_dates == ("2017-01-01",)


def test_statistics_are_written(result):
    folder, result_json = result
    files = sorted(folder.glob("test.persistence.*.npz"))
    assert len(files) == 2, "global and lead-mean share their counts; the released comparison has its own"
    assert all(len(Statistics.load(path).events) == result_json["events"] == 6 for path in files)


def test_example_is_the_window_with_most_heavy_rain(result, data):
    folder, _ = result
    source = open_windows(data, split="test", frames=8)
    heavy = [int((source.read(i)[4:] >= 181).sum()) for i in range(len(source))]
    with np.load(folder / "test.example.npz") as example:
        assert str(example["event"]) == str(source.key(int(np.argmax(heavy))))
        assert example["inputs"].shape == (4, 24, 24) and example["inputs"].dtype == np.uint8
        assert example["forecast/persistence"].shape == (4, 24, 24)


@pytest.fixture(scope="module")
def ensemble(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    settings = EvaluationConfig(min_observed_pixels=50, min_observed_events=2, draws=20)
    entries = [baseline_entry("persistence", data), Entry("shifted", _ShiftedMembers(), "model", "four members")]
    result_json = evaluate(TestSet("test", data, "test"), entries, sequence=SEQUENCE, settings=settings, folder=folder)
    return folder, result_json


def test_diagram_data_are_written(ensemble):
    folder, result_json = ensemble
    scores = ScoreFile.model_validate_json((folder / "test.json").read_text(encoding="utf-8"))
    assert (scores.grid, scores.spacing_km, scores.ensembles) == ((24, 24), 8.0, ("shifted",))
    for name, kinds in (("persistence", {"observed", "forecast"}), ("shifted", {"observed", "forecast", "members"})):
        spectra = result_json["diagrams"][name]["spectra"]
        assert set(spectra) - {"wavelength_km", "frames"} == kinds
        assert spectra["wavelength_km"][0] == 24 * 8.0 and spectra["wavelength_km"][-1] == pytest.approx(
            24 * 8 / 11, rel=1e-5
        )
        assert all(np.shape(spectra[kind]) == (4, 11) for kind in kinds)
        assert spectra["frames"] == [result_json["windows"]] * 4
    diagrams = result_json["diagrams"]["shifted"]
    assert diagrams["members"] == 4 and np.shape(diagrams["ranks"]) == (4, 5)
    assert np.sum(diagrams["ranks"]) == result_json["windows"] * 4 * 24 * 24
    curve = diagrams["reliability"]["16"]
    assert curve["probability"] == [0.0, 0.25, 0.5, 0.75, 1.0] and curve["observed_frequency"][-1] > 0.5
    assert {one["key"] for one in result_json["differences"]} >= {"crps"}


def test_example_contains_the_products_of_an_ensemble(ensemble):
    folder, _ = ensemble
    example = read_example(folder / "test.example.npz")
    assert example is not None and set(example.ensembles) == {"shifted"}
    products, last = example.ensembles["shifted"], example.inputs[-1] / 255
    mean = np.mean([np.roll(last, k, axis=-1) for k in range(4)], axis=0)
    np.testing.assert_allclose(products.members[2, 0], np.roll(last, 2, axis=-1), atol=1e-3)
    np.testing.assert_allclose(products.mean[0], mean, atol=1e-3)
    assert products.probability.shape == (6, 4, 24, 24)
    assert set(np.unique(products.probability)) <= {0, 0.25, 0.5, 0.75, 1}
    np.testing.assert_allclose(example.forecasts["shifted"], products.members[0], atol=1e-3)


def test_tables_only_sums_no_spectra(data, tmp_path):
    settings = EvaluationConfig(tables_only=True, draws=0, min_observed_pixels=50)
    entries = [baseline_entry("persistence", data)]
    result_json = evaluate(
        TestSet("test", data, "test"), entries, sequence=SEQUENCE, settings=settings, folder=tmp_path
    )
    assert result_json["diagrams"] == {"persistence": {}}


def test_protocols_by_name():
    spec = read_spec("mrms-4km")
    (rain,) = protocols_of(spec, ("global",))
    assert rain.labels == ("0.5", "2", "5", "10", "30") and rain.unit == "mm/h"
    with pytest.raises(
        ConfigError, match="sevir-global requires the VIL encoding of SEVIR, but mrms-4km is encoded in mm/h"
    ):
        protocols_of(spec, ("sevir-global",))
    sevir, named, released = protocols_of(read_spec("sevir"), ("global", "sevir-global", "sevir-lead-mean-released"))
    assert released.epsilon == 1e-4
    assert sevir.hash == named.hash, "the thresholds of SEVIR are those of sevir-global"
    with pytest.raises(ConfigError, match=r"unknown verification protocol 'sevir-globl'.*sevir-global"):
        protocols_of(spec, ("sevir-globl",))


def test_rejects_unknown_baseline(data):
    with pytest.raises(ConfigError, match=r"evaluation.baselines: unknown baseline 'persistance'.*'persistence'"):
        baseline_entry("persistance", data)


def test_rejects_too_few_input_frames_for_a_baseline(data, tmp_path):
    sequence = SEQUENCE.model_copy(update={"frames_in": 1})
    entries = [baseline_entry(name, data) for name in ("persistence", "extrapolation")]
    with pytest.raises(ConfigError, match=r"extrapolation needs at least 2 input frames, but sequence\.frames_in is 1"):
        evaluate(
            TestSet("test", data, "test"), entries, sequence=sequence, settings=EvaluationConfig(), folder=tmp_path
        )


def test_small_test_set_requires_all_of_its_events(data, tmp_path):
    """Otherwise no threshold could be part of the mean."""
    settings = EvaluationConfig(min_observed_pixels=50, min_observed_events=5)
    result_json = evaluate(
        TestSet("few", data, "train"),
        [baseline_entry("persistence", data)],
        sequence=SEQUENCE,
        settings=settings,
        folder=tmp_path,
    )
    assert result_json["events"] == result_json["min_observed_events"] == 2
    assert "16" in result_json["supported_thresholds"]
    assert all(
        seen["events"] == 2
        for label, seen in result_json["observed"].items()
        if label in result_json["supported_thresholds"]
    )
