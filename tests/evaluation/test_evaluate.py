"""Evaluation: all entries on the same windows, counted under every protocol, written so that a page can read it."""

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


class _Guesses:
    """Four members: the last frame, moved by as many pixels as the member's number."""

    def forecast(self, frames, /, *, frames_out):
        held = code_to_unit(frames[:, -1:]).expand(-1, frames_out, -1, -1)
        return torch.stack([held.roll(shift, dims=-1) for shift in range(4)], dim=1)


class _Oracle:
    """Knows the archive: answers with the frames that follow."""

    def __init__(self, source):
        self._after = {source.read(i)[:4].tobytes(): source.read(i)[4:] for i in range(len(source))}

    def forecast(self, frames, /, *, frames_out):
        later = [torch.from_numpy(self._after[one.numpy().tobytes()].copy()) for one in frames]
        return code_to_unit(torch.stack(later))[:, :frames_out]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    root = tmp_path_factory.mktemp("evaluate") / "storms"
    write_archive(root, seed=3, events={"train": 2, "test": 6}, size=24, frames_per_event=12)
    return DataConfig(dataset="synthetic", root=root, window_stride=4)


@pytest.fixture(scope="module")
def result(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    oracle = Entry("oracle", _Oracle(open_windows(data, split="test", frames=8)), "model", "knows the future", steps=0)
    settings = EvaluationConfig(
        protocols=("global", "lead-mean", "sevir-global-released"), min_observed_pixels=50, min_observed_events=2
    )
    entries = [baseline_entry("persistence", data), oracle]
    made = evaluate(
        TestSet("test", data, "test"),
        entries,
        sequence=SEQUENCE,
        settings=settings,
        folder=folder,
        train_dates=("2017-01-01",),
    )
    return folder, made


def test_a_perfect_forecast_scores_perfectly_and_persistence_does_not(result):
    _, made = result
    perfect, held = (made["scores"][name]["synthetic-global"] for name in ("oracle", "persistence"))
    assert perfect["csi/mean"] == 1.0 and perfect["far/16"] == 0.0 and perfect["mse"] == 0.0
    assert 0.1 < held["csi/mean"] < 0.95
    assert made["mean_csi_by_lead"]["oracle"] == [1.0] * 4
    by_lead = made["mean_csi_by_lead"]["persistence"]
    assert by_lead[0] > by_lead[-1], "persistence fades"


def test_one_set_of_thresholds_serves_all_entries(result):
    _, made = result
    supported = made["supported_thresholds"]
    assert supported == [
        label
        for label, seen in made["observed"].items()
        if seen["pixels"] >= made["min_observed_pixels"] and seen["events"] >= made["min_observed_events"]
    ]
    assert "16" in supported
    for name in ("oracle", "persistence"):
        row = made["scores"][name]["synthetic-global"]
        assert row["csi/mean"] == pytest.approx(np.mean([row[f"csi/{label}"] for label in supported]))


def test_the_file_holds_what_was_returned_without_nan(result):
    folder, made = result
    text = (folder / "test.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read["scores"]["persistence"]["synthetic-global"]["csi/16"] == pytest.approx(
        made["scores"]["persistence"]["synthetic-global"]["csi/16"]
    )
    assert ScoreFile.model_validate_json(text).train_dates == ("2017-01-01",)


def test_statistics_are_kept_for_later_intervals(result):
    folder, made = result
    files = sorted(folder.glob("test.persistence.*.npz"))
    assert len(files) == 2, "global and lead-mean share their counts; the released comparison has its own"
    kept = [Statistics.load(path) for path in files]
    assert all(len(one.events) == made["events"] == 6 for one in kept)


def test_the_example_is_chosen_by_weather_alone(result, data):
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
    entries = [baseline_entry("persistence", data), Entry("guesses", _Guesses(), "model", "four guesses")]
    made = evaluate(TestSet("test", data, "test"), entries, sequence=SEQUENCE, settings=settings, folder=folder)
    return folder, made


def test_what_figures_are_drawn_from_is_written(ensemble):
    folder, made = ensemble
    held = ScoreFile.model_validate_json((folder / "test.json").read_text(encoding="utf-8"))
    assert (held.grid, held.spacing_km, held.ensembles) == ((24, 24), 8.0, ("guesses",))
    for name, kinds in (("persistence", {"observed", "forecast"}), ("guesses", {"observed", "forecast", "members"})):
        spectra = made["diagrams"][name]["spectra"]
        assert set(spectra) - {"wavelength_km", "frames"} == kinds
        assert spectra["wavelength_km"][0] == 24 * 8.0 and spectra["wavelength_km"][-1] == pytest.approx(
            24 * 8 / 11, rel=1e-5
        )
        assert all(np.shape(spectra[kind]) == (4, 11) for kind in kinds)
        assert spectra["frames"] == [made["windows"]] * 4
    guesses = made["diagrams"]["guesses"]
    assert guesses["members"] == 4 and np.shape(guesses["ranks"]) == (4, 5)
    assert np.sum(guesses["ranks"]) == made["windows"] * 4 * 24 * 24
    curve = guesses["reliability"]["16"]
    assert curve["probability"] == [0.0, 0.25, 0.5, 0.75, 1.0] and curve["observed_frequency"][-1] > 0.5
    assert {one["key"] for one in made["differences"]} >= {"crps"}


def test_the_example_holds_the_products_of_an_ensemble(ensemble):
    folder, _ = ensemble
    example = read_example(folder / "test.example.npz")
    assert example is not None and set(example.ensembles) == {"guesses"}
    held, last = example.ensembles["guesses"], example.inputs[-1] / 255
    np.testing.assert_allclose(held.members[2, 0], np.roll(last, 2, axis=-1), atol=1e-3)
    np.testing.assert_allclose(held.mean[0], np.mean([np.roll(last, k, axis=-1) for k in range(4)], axis=0), atol=1e-3)
    assert held.probability.shape == (6, 4, 24, 24) and set(np.unique(held.probability)) <= {0, 0.25, 0.5, 0.75, 1}
    np.testing.assert_allclose(example.forecasts["guesses"], held.members[0], atol=1e-3)


def test_tables_only_sums_no_spectra(data, tmp_path):
    settings = EvaluationConfig(tables_only=True, draws=0, min_observed_pixels=50)
    entries = [baseline_entry("persistence", data)]
    made = evaluate(TestSet("test", data, "test"), entries, sequence=SEQUENCE, settings=settings, folder=tmp_path)
    assert made["diagrams"] == {"persistence": {}}


def test_protocols_by_name():
    spec = read_spec("mrms-4km")
    (rain,) = protocols_of(spec, ("global",))
    assert rain.labels == ("0.5", "2", "5", "10", "30") and rain.unit == "mm/h"
    with pytest.raises(ConfigError, match="sevir-global compares SEVIR's VIL codes, but mrms-4km is coded in mm/h"):
        protocols_of(spec, ("sevir-global",))
    sevir, named, released = protocols_of(read_spec("sevir"), ("global", "sevir-global", "sevir-lead-mean-released"))
    assert released.epsilon == 1e-4
    assert sevir.hash == named.hash, "SEVIR's own thresholds are the protocol that bears its name"
    with pytest.raises(ConfigError, match=r"unknown verification protocol 'sevir-globl'.*sevir-global"):
        protocols_of(spec, ("sevir-globl",))


def test_an_unknown_baseline_is_rejected_by_name(data):
    with pytest.raises(ConfigError, match=r"evaluation.baselines: unknown baseline 'persistance'.*'persistence'"):
        baseline_entry("persistance", data)


def test_a_test_set_of_few_events_asks_for_all_of_them(data, tmp_path):
    """Otherwise no threshold could enter the mean, however much rain its one event holds."""
    settings = EvaluationConfig(min_observed_pixels=50, min_observed_events=5)
    made = evaluate(
        TestSet("few", data, "train"),
        [baseline_entry("persistence", data)],
        sequence=SEQUENCE,
        settings=settings,
        folder=tmp_path,
    )
    assert made["events"] == made["min_observed_events"] == 2
    assert "16" in made["supported_thresholds"]
    assert all(seen["events"] == 2 for label, seen in made["observed"].items() if label in made["supported_thresholds"])
