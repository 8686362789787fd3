"""Entries from files and baselines; protocols of a data set, intervals, CSV, leaderboard, and the SEVIR reference."""

import csv
import io
import json

import h5py
import numpy as np
import pytest
from rich.console import Console

from simcast_hpc.config import ConfigError, DataConfig, DataError, EvaluationConfig, SequenceConfig
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.evaluation import TestSet, baseline_entry, evaluate, file_entry, protocols_of
from simcast_hpc.evaluation.sevir_reference import TEST_WINDOWS, sevir_reference
from simcast_hpc.report import ResultsError, print_leaderboard, print_scores, read_boards
from simcast_hpc.report.findings_text import thresholds_of_the_mean
from simcast_hpc.report.pipeline_results import ScoreFile
from tests.archives import Row, random_codes, write_catalog, write_file

SEQUENCE = SequenceConfig(frames_in=4, frames_out=4, teacher_frames_out=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    root = tmp_path_factory.mktemp("entries") / "storms"
    write_archive(root, seed=4, events={"train": 1, "val": 1, "test": 5}, size=32, frames_per_event=12)
    return DataConfig(dataset="synthetic", root=root, window_stride=4)


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """Return a folder with persistence plus noise: npz of floats, HDF5 of uint8, npz of members."""
    source = open_windows(data, split="test", frames=8)
    keys = [source.key(k) for k in range(len(source))]
    last = np.stack([source.read(k)[3:4] for k in range(len(source))]).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 8, (len(keys), 3, 4, 32, 32))
    members = np.clip(np.where(last[:, None] == 255, 0, last[:, None]) + noise, 0, 254)
    folder = tmp_path_factory.mktemp("files")
    named = {"event": np.array([key.event for key in keys]), "start": np.array([key.start for key in keys])}
    order = np.random.default_rng(1).permutation(len(keys))  # rows are found by key, not by position
    named = {name: values[order] for name, values in named.items()}
    floats = (members[:, 0] / 255).astype(np.float32)
    np.savez(folder / "floats.npz", forecast=floats[order], **named)
    np.savez(folder / "members.npz", forecast=(members / 255).astype(np.float32)[order], **named)
    with h5py.File(folder / "bytes.h5", "w") as file:
        file["forecast"] = np.round(members[:, 0]).astype(np.uint8)[order]
        file["event"] = named["event"].astype("S")
        file["start"] = named["start"]
    return folder


def run(data, entries, folder, **settings):
    return evaluate(
        TestSet("test", data, "test"),
        entries,
        sequence=SEQUENCE,
        settings=EvaluationConfig(min_observed_pixels=50, min_observed_events=2, **{"draws": 40} | settings),
        folder=folder,
    )


def test_file_and_baseline_have_intervals_and_differences(data, files, tmp_path):
    entries = [baseline_entry("persistence", data), file_entry("noisy", files / "floats.npz")]
    result = run(data, entries, tmp_path)
    for name in ("persistence", "noisy"):
        low, high = result["intervals"][name]["synthetic-global"]["csi/mean"]
        assert low <= result["scores"][name]["synthetic-global"]["csi/mean"] <= high
    (pair,) = [one for one in result["differences"] if one["key"] == "mae" and one["protocol"] == "synthetic-global"]
    assert (pair["first"], pair["second"]) == ("noisy", "persistence")
    scores = {name: result["scores"][name]["synthetic-global"]["mae"] for name in ("noisy", "persistence")}
    assert pair["value"] == pytest.approx(scores["noisy"] - scores["persistence"]) and pair["low"] <= pair["value"]
    assert result["heavy_rain"]["noisy"]["synthetic-global"]["219"].keys() == {"pod", "far", "frequency_bias", "csi"}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "test.csv").read_text())))
    row = next(
        row for row in rows if (row["entry"], row["key"], row["protocol"]) == ("noisy", "mae", "synthetic-global")
    )
    assert float(row["value"]) == pytest.approx(scores["noisy"]) and row["low"] and len(row["hash"]) == 12


def test_packed_file_adds_rounding_to_every_protocol(data, files, tmp_path):
    packed = file_entry("packed", files / "bytes.h5")
    result = run(data, [packed, file_entry("floats", files / "floats.npz")], tmp_path, draws=0)
    assert set(result["protocols"]) == {"synthetic-global-packed", "synthetic-lead-mean-packed"}
    one, other = (result["scores"][name]["synthetic-global-packed"]["csi/mean"] for name in ("packed", "floats"))
    assert one == pytest.approx(other), "rounded to integers, both forecasts are equal"
    plain = run(data, [file_entry("floats", files / "floats.npz")], tmp_path, draws=0)
    assert plain["protocols"]["synthetic-global"]["hash"] != result["protocols"]["synthetic-global-packed"]["hash"]


def test_members_in_file_are_scored_as_ensemble(data, files, tmp_path):
    result = run(data, [file_entry("members", files / "members.npz")], tmp_path, draws=0)
    scores = result["scores"]["members"]["synthetic-global"]
    assert scores["crps"] < scores["mae"] and scores["spread_skill"] > 0 and "roc_area/16" in scores


def test_rejects_invalid_forecast_files(data, files, tmp_path):
    with pytest.raises(DataError, match=r"absent\.npz does not contain forecasts"):
        file_entry("x", tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", forecast=np.zeros((2, 4, 8, 8), np.float32), event=np.array(["a", "b"]))
    with pytest.raises(DataError, match="start"):
        file_entry("x", tmp_path / "other.npz")
    two = {"event": np.array(["a", "a"]), "start": np.array([0, 0])}
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["event"], file["start"] = np.array(["a"], dtype=object), [0]
        file["forecast"] = h5py.ExternalLink(str(files / "bytes.h5"), "forecast")
    with pytest.raises(DataError, match=r"linked\.h5: /forecast is a link to another file"):
        file_entry("x", tmp_path / "linked.h5")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file["event"], file["start"] = np.array(["a"], dtype=object), [0]
        file.create_dataset("forecast", (1, 2**40, 8, 8), "u1", chunks=(1, 8, 8, 8))
    with pytest.raises(DataError, match=r"bomb\.h5: /forecast declares 70368744177664 bytes"):
        file_entry("x", tmp_path / "bomb.h5")
    np.savez(tmp_path / "twice.npz", forecast=np.zeros((2, 4, 8, 8), np.float32), **two)
    with pytest.raises(DataError, match="two rows have the same event and start"):
        file_entry("x", tmp_path / "twice.npz")
    np.savez(tmp_path / "few.npz", forecast=np.zeros((1, 4, 32, 32), np.float32), event=np.array(["a"]), start=[0])
    with pytest.raises(DataError, match="has no forecast of window"):
        run(data, [file_entry("few", tmp_path / "few.npz")], tmp_path / "scores")


def test_thresholds_of_a_protocol_keep_their_unit(tmp_path):
    """Data in dBZ under ``hko7``: 10 log10(58.53 R^1.56) is 13.0 dBZ for 0.5 mm/h and 40.7 dBZ for 30 mm/h."""
    codes = random_codes(2, 8, size=32)
    write_file(tmp_path / "storms.h5", np.moveaxis(codes, 1, -1), name="dbz")
    write_catalog(tmp_path, [Row(f"E{n}", n, "storms.h5", "dbz", "2019-08-01 12:00:00") for n in range(2)])
    path = tmp_path / "own.yaml"
    path.write_text(
        "{name: own, title: own radar, quantity: reflectivity, image_type: dbz, folder: ., step_minutes: 5,\n"
        "encoding: {kind: linear, unit: dBZ, gain: 0.5, offset: -32.0, zero_is_no_echo: true},\n"
        "frames_per_event: null, grid: {height: 32, width: 32, spacing_km: 1.0}, license: none, citation: none,\n"
        "thresholds: {values: [10, 20, 30, 40, 50], unit: dBZ}, source: none,\n"
        "splits: {kind: dates, train_until: '2019-01-01T00:00:00', val_until: '2019-06-01T00:00:00'}}\n"
    )
    data = DataConfig(dataset=str(path), root=tmp_path)
    settings = EvaluationConfig(protocols=("hko7",), draws=0, tables_only=True, min_observed_pixels=1)
    result = evaluate(
        TestSet("test", data, "test"), [baseline_entry("persistence", data)], sequence=SEQUENCE, settings=settings,
        folder=tmp_path / "scores",
    )  # fmt: skip
    assert result["unit"] == "mm/h" and result["supported_thresholds"] == ["0.5", "2", "5", "10", "30"]
    included = thresholds_of_the_mean(ScoreFile.model_validate_json((tmp_path / "scores" / "test.json").read_text()))
    assert "0.5 mm/h" in included and "30 mm/h" in included and "dBZ" not in included
    with np.load(tmp_path / "scores" / "test.example.npz") as example:
        np.testing.assert_allclose(example["thresholds"] * 0.5 - 32.0, [13.0, 22.4, 28.6, 33.3, 40.7], atol=0.05)
    with pytest.raises(ConfigError, match=r"different units \(global in dBZ, hko7 in mm/h\); evaluate them separately"):
        protocols_of(read_spec(str(path)), ("global", "hko7"))


def test_protocols_of_datasets():
    (pysteps,) = protocols_of(read_spec("mrms-4km"), ("pysteps",))
    assert pysteps.strict and pysteps.unit == "mm/h" and pysteps.labels == ("0.5", "2", "5", "10", "30")
    assert pysteps.fss_windows == (1, 4, 16) and pysteps.fss_km == (4.0, 16.0, 64.0)
    with pytest.raises(ConfigError, match="hko7 requires data in dBZ, but sevir is encoded in"):
        protocols_of(read_spec("sevir"), ("hko7",))
    spec = read_spec("fmi")
    if spec.encoding.unit == "dBZ":
        (hko,) = protocols_of(spec, ("hko7",))
        assert hko.thresholds[0] == pytest.approx(float(spec.encoding.code_of(12.978)), abs=0.02)
        with pytest.raises(ConfigError, match="encoded values of fmi are not dBZ"):
            protocols_of(spec, ("meteonet-cascast-released",))
    (tables,) = protocols_of(read_spec("sevir"), ("sevir-lead-mean",), tables_only=True)
    assert not tables.ssim and not tables.fss_km and tables.hash == "a81b2d82da2d"


def reference_result(csi: float, **changes):
    row = {"csi/mean": csi, "mse": 0.01152859, "mae": 0.04434994}
    released = {"csi/mean": 0.26951, "mse": 0.01152834, "mae": 0.0443489}
    return {
        "dataset": "sevir",
        "split": "test",
        "windows": TEST_WINDOWS,
        "frames_in": 13,
        "frames_out": 12,
        "protocols": {name: {"hash": "x"} for name in ("sevir-lead-mean", "sevir-lead-mean-released")},
        "scores": {"persistence": {"sevir-lead-mean": row, "sevir-lead-mean-released": released}},
    } | changes


def test_persistence_on_sevir_is_compared_with_published_values():
    lines = "\n".join(sevir_reference(reference_result(0.269448)))
    assert "published 0.26945   agrees" in lines and "differs" not in lines
    assert "Earthformer, appendix" in lines and "sevir-vil-nowcasting-lab" in lines
    assert "csi/mean  here 0.2700000   published 0.26945   differs" in "\n".join(
        sevir_reference(reference_result(0.27))
    )
    assert "will differ" in sevir_reference(reference_result(0.3, windows=10))[0]
    assert sevir_reference(reference_result(0.3, dataset="mrms-4km")) == []
    assert sevir_reference(reference_result(0.3, split="val")) == []


@pytest.fixture
def two_results(data, files, tmp_path):
    run(data, [baseline_entry("persistence", data), file_entry("model", files / "floats.npz")], tmp_path / "a")
    run(data, [baseline_entry("persistence", data), file_entry("model", files / "members.npz")], tmp_path / "b")
    return tmp_path


def test_leaderboard_ranks_forecasts_by_protocol(two_results, capsys):
    boards = read_boards([two_results / "a", two_results / "b" / "test.json"])
    assert [board.protocol for board in boards] == ["synthetic-global", "synthetic-lead-mean"]
    names = [row.name for row in boards[0].rows]
    assert sorted(names) == ["b/model", "model", "persistence"], "equal rows are joined"
    values = [row.scores["csi/mean"] for row in boards[0].rows]
    assert values == sorted(values, reverse=True)
    by_error = read_boards([two_results / "a", two_results / "b"], by="mae")[0].rows
    errors = [row.scores["mae"] for row in by_error]
    assert errors == sorted(errors)
    print_leaderboard([two_results / "a", two_results / "b"], csv_path=two_results / "board.csv")
    printed = capsys.readouterr().out
    assert "csi/mean" in printed and boards[0].hash in printed
    rows = list(csv.DictReader(io.StringIO((two_results / "board.csv").read_text())))
    assert {row["name"] for row in rows} == set(names)


def test_additional_scores_are_written_printed_and_ranked(data, files, tmp_path, capsys):
    entries = [baseline_entry("persistence", data), file_entry("model", files / "floats.npz")]
    names = ("sedi", "mean_error", "conditional_errors")
    result = run(data, entries, tmp_path, scores=names, tables_only=True, protocols=("global",))
    (protocol,) = result["protocols"]
    assert result["protocols"][protocol]["additional_scores"] == list(names)
    keys = {row["key"]: row for row in csv.DictReader(io.StringIO((tmp_path / "test.csv").read_text()))}
    assert {"sedi_pool4/74", "mean_error/lead/4", "rmse_either/16"} <= keys.keys()
    assert "correlation" not in keys and float(keys["mean_error"]["low"]) <= float(keys["mean_error"]["value"])
    assert "mean_error" in {one["key"] for one in result["differences"]}
    print_scores(tmp_path / "test.json", console=Console(width=200))
    printed = capsys.readouterr().out
    assert "Additional scores under protocol" in printed and "Mean error" in printed and "observed ≥" in printed
    errors = [abs(row.scores["mean_error"]) for row in read_boards([tmp_path], by="mean_error")[0].rows]
    assert errors == sorted(errors)
    print_leaderboard([tmp_path], by="mean_error")
    assert "0 is best" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"evaluation\.scores: unknown score 'bias'.*choose from ets"):
        run(data, entries, tmp_path, scores=("bias",))


def test_leaderboard_rejects_unknown_scores_and_invalid_files(two_results):
    with pytest.raises(ResultsError, match=r"no forecast has the score 'csi/99' .* choose from csi/"):
        read_boards([two_results / "a"], by="csi/99")
    (two_results / "empty").mkdir()
    with pytest.raises(ResultsError, match="contains no scores"):
        read_boards([two_results / "empty"])
    damaged = two_results / "a" / "test.json"
    damaged.write_text(json.dumps({"name": "x"}))
    with pytest.raises(ResultsError, match=r"test\.json does not contain scores"):
        read_boards([damaged])
