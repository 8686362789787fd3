"""`simcast score-issued`: equal to `simcast evaluate` on the same windows, by month, cached, and robust."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from simcast_hpc.cli import app
from simcast_hpc.config import DataConfig, DataError, EvaluationConfig, SequenceConfig, SimcastError
from simcast_hpc.data.encoding import Decibel
from simcast_hpc.evaluation import Entry, TestSet, baseline_entry, evaluate, model_entry
from simcast_hpc.evaluation.issued import IssuedSettings, score_issued
from simcast_hpc.evaluation.issued.issue_counts import IssueCounter
from simcast_hpc.forecast.baseline_predictor import BaselinePredictor
from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.forecast.predictor import Predictor
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.radar import encoding_of_run
from simcast_hpc.radar.frame_files import index_times, list_files, read_encoded
from simcast_hpc.verification.error_sums import CONDITIONS
from tests.evaluation.issued_radar import (
    DBZ,
    FRAMES_IN,
    FRAMES_OUT,
    GRID,
    RAIN,
    SIZE,
    issue,
    issue_times,
    spec_of,
    storm_codes,
    unit_of,
    write_description,
    write_event,
    write_frames,
)
from tests.radar.radar_files import moment, small_model, write_odim

SEQUENCE = SequenceConfig(frames_in=FRAMES_IN, frames_out=FRAMES_OUT, teacher_frames_out=2)

ADDITIONAL = ("ets", "mean_error", "correlation", "conditional_errors")


def evaluated(root: Path, description: Path, entries: list[Entry], out: Path, **over) -> dict:
    data = DataConfig(dataset=str(description), root=root, window_stride=1, frame_stride=1, max_percent_missing=None)
    settings = EvaluationConfig(
        protocols=("global", "pysteps", "lead-mean"), baselines=(), draws=0, min_observed_pixels=1,
        min_observed_events=1, scores=ADDITIONAL, **over,
    )  # fmt: skip
    return evaluate(TestSet("test", data, "test"), entries, sequence=SEQUENCE, settings=settings, folder=out)


def assert_equal_scores(issued: dict, reference: dict, *, keys: int, exact: bool = False) -> None:
    """All scores are those of the evaluation within 1e-9, and with ``exact`` all of them.

    Otherwise positions differ by up to 1e-7, because several have one value. In most scores these average out; a PSNR
    or RMSE of small errors, and a mean over few pixels, depend on single positions.
    """
    compared = 0
    for protocol, expected in reference.items():
        for key, value in issued[protocol].items():
            sensitive = key.startswith(("psnr", "rmse", "correlation")) or key.partition("/")[0].endswith(
                tuple(CONDITIONS)
            )
            tolerance = 1e-6 if sensitive and not exact else 1e-9
            assert value == pytest.approx(expected[key], abs=tolerance, rel=1e-12, nan_ok=True), (protocol, key)
            compared += not math.isnan(value)
    assert compared >= keys


class FixedMembers:
    """Forecasts by the bytes of the inputs, as a method of ``evaluate``."""

    def __init__(self, by_inputs: dict[bytes, np.ndarray]):
        self._by_inputs = by_inputs

    def forecast(self, frames, /, *, frames_out):
        return torch.from_numpy(np.stack([self._by_inputs[one.numpy().tobytes()] for one in frames]))


def settings(**over) -> IssuedSettings:
    return IssuedSettings(
        **{"protocols": ("global", "pysteps", "lead-mean"), "draws": 0, "encoded": True, "scores": ADDITIONAL} | over
    )


def test_model_and_baselines_score_as_in_evaluate(tmp_path):
    description = write_description(tmp_path / "mine.yaml")
    spec, codes = spec_of(description), storm_codes()
    frames, root = tmp_path / "radar", write_event(tmp_path / "archive", codes)
    write_frames(frames, codes, spec)
    model = {"hidden_spatial": 4, "hidden_temporal": 8, "temporal_blocks": 2, "inception_kernels": [3, 5], "groups": 2}
    sections = {"data": {"dataset": str(description), "crop": SIZE}, "model": {**model, "base": "persistence"}}
    trained = load_trained(small_model(tmp_path / "run", **sections))
    with torch.no_grad():  # an output layer of zeros would give persistence
        for parameter in trained.network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.01)
    code = encoding_of_run(trained.config.data)
    predictor = Predictor(trained, code, FrameRequest(FRAMES_IN, 5.0), (SIZE, SIZE), 8)
    files = index_times(list_files([frames]), skip_unreadable=False, encoding=code)
    encoded = read_encoded(files, files, code)
    for _, time in issue_times():
        Publisher(tmp_path / "products", ("nc",)).publish(predictor.predict(encoded, time))
    words = [
        tmp_path / "products",
        frames,
        "--dataset",
        description,
        "--out",
        tmp_path / "out",
        "--draws",
        20,
        "--encoded",
    ]
    for name in ("global", "pysteps", "lead-mean"):
        words += ["--protocol", name]
    for name in ADDITIONAL:
        words += ["--scores", name]
    done = CliRunner().invoke(
        app, ["score-issued", *map(str, words), "--baseline", "persistence", "--baseline", "extrapolation"],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0 and "mean CSI" in done.output
    result = json.loads((tmp_path / "out" / "issued.json").read_text(encoding="utf-8"))
    (series,) = result["series"]
    scored = series["periods"]["all"]["scores"]
    data = DataConfig(dataset=str(description), root=root)
    entries = [
        model_entry("forecast", trained),
        *(baseline_entry(one, data) for one in ("persistence", "extrapolation")),
    ]
    expected = evaluated(root, description, entries, tmp_path / "evaluated")
    # The last bits of a network depend on the batch, and predict forecasts one window at a time.
    issued = evaluated(root, description, entries, tmp_path / "as-issued", as_issued=True, batch_size=1)
    with_nan = {
        name: {protocol: {key: math.nan if value is None else value for key, value in by_key.items()}
               for protocol, by_key in by_protocol.items()}
        for name, by_protocol in scored.items()
    }  # fmt: skip
    for name in ("forecast", "persistence", "extrapolation"):
        assert_equal_scores(with_nan[name], expected["scores"][name], keys=300)
        assert_equal_scores(with_nan[name], issued["scores"][name], keys=300, exact=True)
        assert {"ets/mean", "correlation", "rmse_both/8/lead/1"} <= with_nan[name]["mine-global"].keys()
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "CC BY 4.0" in page and "extrapolation" in page and "2024-11" in page


def write_case(folder: Path, *, encoding: dict | None = None, thresholds=(0.5, 2, 8)) -> tuple[Path, np.ndarray]:
    """Write a description and frames; return the description and the codes."""
    description = write_description(folder / "mine.yaml", encoding=encoding, thresholds=thresholds)
    codes = storm_codes()
    write_frames(folder / "radar", codes, spec_of(description))
    return description, codes


def persistence(codes: np.ndarray, number: int) -> np.ndarray:
    """Return the persistence forecast ``[1, T, H, W]`` of the window that ends with a frame."""
    return np.repeat(unit_of(codes[number])[None, None], FRAMES_OUT, axis=1)


def test_ensemble_in_file_scores_as_in_evaluate(tmp_path):
    # At thresholds between pixel values, evaluate compares positions and the probabilities physical values.
    levels = Decibel(**RAIN).decode(np.array([48, 88, 128], np.uint8))
    description, codes = write_case(tmp_path, thresholds=tuple(map(float, levels)))
    spec, root = spec_of(description), write_event(tmp_path / "archive", codes)
    generator, by_inputs = np.random.default_rng(1), {}
    for number, time in issue_times():
        last = np.where(codes[number] == 255, 0, codes[number])
        field = np.repeat(unit_of(last)[None], FRAMES_OUT, axis=0)
        factors = generator.uniform(0.8, 1.05, 3).astype(np.float32)
        members = np.stack([np.roll(field, 2 * k, -1) * factor for k, factor in enumerate(factors)])
        by_inputs[codes[number - FRAMES_IN + 1 : number + 1].tobytes()] = members
        issue(tmp_path / "products", spec, members, time, ensemble=True)
    entry = Entry("forecast", FixedMembers(by_inputs), "model", "")
    expected = evaluated(root, description, [entry], tmp_path / "evaluated")
    issued = evaluated(root, description, [entry], tmp_path / "as-issued", as_issued=True)
    result = score_issued(
        tmp_path / "products", [tmp_path / "radar"], settings=settings(dataset=str(description)), out=tmp_path / "out"
    )
    (series,) = result["series"]
    whole = series["periods"]["all"]
    assert_equal_scores(whole["scores"]["forecast"], expected["scores"]["forecast"], keys=200)
    assert_equal_scores(whole["scores"]["forecast"], issued["scores"]["forecast"], keys=200, exact=True)
    assert "crps" in whole["scores"]["forecast"]["mine-global"]
    # The issued probabilities are those of the members, so their Brier score and diagram are those of the evaluation.
    diagrams = expected["diagrams"]["forecast"]["reliability"]
    for (label, curve), threshold in zip(diagrams.items(), whole["reliability"].values(), strict=True):
        assert threshold["forecasts"] == curve["forecasts"]
        expected_brier = expected["scores"]["forecast"]["mine-global"][f"brier/{label}"]
        assert threshold["brier"] == pytest.approx(expected_brier, abs=1e-9)


@pytest.mark.parametrize(
    ("encoding", "thresholds", "packed"),
    [(None, (0.5, 2, 8), False), (DBZ, (10.0, 18.19, 30.0), True)],
    ids=["mm/h", "dBZ packed"],
)
def test_forecasts_of_pixel_values_score_exactly(tmp_path, encoding, thresholds, packed):
    """Values at a threshold reach it, in both units and packed; no echo is no echo."""
    description, codes = write_case(tmp_path, encoding=encoding, thresholds=thresholds)
    spec, root = spec_of(description), write_event(tmp_path / "archive", codes)
    for number, time in issue_times():
        path = issue(tmp_path / "products", spec, persistence(codes, number), time)
        if packed:
            with xr.open_dataset(path, decode_timedelta=False) as dataset:
                dataset.load()
            dataset.reflectivity.encoding = {
                "dtype": "int16", "scale_factor": 0.01, "_FillValue": -32768, "add_offset": 10.0,
            }  # fmt: skip
            dataset.to_netcdf(path, engine="h5netcdf")
    data = DataConfig(dataset=str(description), root=root)
    expected = evaluated(root, description, [baseline_entry("persistence", data)], tmp_path / "evaluated")
    result = score_issued(
        tmp_path / "products", [tmp_path / "radar"], settings=settings(dataset=str(description)), out=tmp_path / "out"
    )
    scored = result["series"][0]["periods"]["all"]["scores"]["forecast"]
    assert_equal_scores(scored, expected["scores"]["persistence"], keys=120)


def test_radar_outages_are_scored_as_issued(tmp_path):
    """An issued forecast has no value where the last frame is missing; `evaluate --as-issued` does not score it."""
    description = write_description(tmp_path / "mine.yaml")
    spec, codes = spec_of(description), storm_codes()
    codes[FRAMES_IN, 8:20, 10:24] = 255  # in the last frame of one forecast, an input of others, and an observation
    root = write_event(tmp_path / "archive", codes)
    write_frames(tmp_path / "radar", codes, spec)
    code = encoding_of_run(DataConfig(dataset=str(description), root=root))
    predictor = BaselinePredictor("extrapolation", code, FrameRequest(FRAMES_IN, 5.0), FRAMES_OUT)
    files = index_times(list_files([tmp_path / "radar"]), skip_unreadable=False, encoding=code)
    encoded = read_encoded(files, files, code)
    for _, time in issue_times():
        Publisher(tmp_path / "products", ("nc",)).publish(predictor.predict(encoded, time))
    result = score_issued(
        tmp_path / "products", [tmp_path / "radar"], out=tmp_path / "out",
        settings=settings(dataset=str(description), baselines=("extrapolation",)),
    )  # fmt: skip
    scored = result["series"][0]["periods"]["all"]["scores"]
    data = DataConfig(dataset=str(description), root=root)
    entries = [baseline_entry("extrapolation", data)]
    expected = evaluated(root, description, entries, tmp_path / "evaluated", as_issued=True)["scores"]["extrapolation"]
    for name in ("forecast", "extrapolation"):
        assert_equal_scores(scored[name], expected, keys=150, exact=True)
    usual = evaluated(root, description, entries, tmp_path / "usual")["scores"]["extrapolation"]["mine-global"]
    assert usual["coverage"] == 1.0 and expected["mine-global"]["coverage"] < 0.99


def test_imported_folder_scores_as_the_radar_files(tmp_path):
    description, codes = write_case(tmp_path)
    spec, root = spec_of(description), write_event(tmp_path / "archive", codes)
    for number, time in issue_times()[:2]:
        issue(tmp_path / "products", spec, persistence(codes, number), time)
    imported = tmp_path / "imported"
    words = ["data", "prepare", root, imported, "--dataset", description]
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 0
    (imported / "dataset.yaml").write_text(description.read_text(encoding="utf-8"), encoding="utf-8")
    (imported / "import.json").write_text(json.dumps({"recipe": {"grid": asdict(GRID)}}), encoding="utf-8")
    results = [
        score_issued(tmp_path / "products", [frames], settings=settings(dataset=dataset), out=tmp_path / "out")
        for frames, dataset in ((tmp_path / "radar", str(description)), (imported, None))
    ]
    first, second = (json.dumps(result["series"][0]["periods"]) for result in results)
    assert first == second and results[0]["series"][0]["periods"]["all"]["verified"] == 2
    with pytest.raises(SimcastError, match="must be the only source of frames"):
        score_issued(tmp_path / "products", [imported, tmp_path / "radar"], settings=settings(), out=tmp_path / "out")


@pytest.fixture(scope="module")
def operation(tmp_path_factory) -> Path:
    """A folder of frames and products: two models, a fallback, one missing issue, a missing frame, odd files."""
    folder = tmp_path_factory.mktemp("operation")
    description, codes = write_case(folder)
    spec = spec_of(description)
    times = issue_times()
    for number, time in times:
        if number == times[2][0]:
            continue
        extra = {"simcast_fallback": "extrapolation"} if number == times[-1][0] else {}
        issue(folder / "products", spec, persistence(codes, number), time, **extra)
        ensemble = np.repeat(persistence(codes, number), 3, 0)
        issue(
            folder / "products" / "other", spec, ensemble, time, ensemble=True, keep_members=False,
            simcast_version="2", simcast_sampling='{"members": 3}',
        )  # fmt: skip
    (folder / "radar" / "radar009.h5").unlink()
    (folder / "products" / ".hidden.nc").write_bytes(b"being written")
    (folder / "products" / "broken.nc").write_bytes(b"\x89HDF\r\n\x1a\n and nothing")
    (folder / "radar" / "note.txt").write_text("no frame")
    return folder


@pytest.fixture(scope="module")
def scored(operation) -> dict:
    chosen = settings(dataset=str(operation / "mine.yaml"), protocols=("global",), draws=10)
    return score_issued(operation / "products", [operation / "radar"], settings=chosen, out=operation / "out")


def test_series_and_operation(operation, scored):
    names = {series["name"]: series for series in scored["series"]}
    assert len(names) == 3 and "mine fallback" in names
    log = scored["operation"]["2024-11"]
    assert (log["expected"], log["issued"], log["missing"], log["missing_with_frame"]) == (6, 5, 1, 1)
    assert log["missing_times"] == [f"{issue_times()[2][1]:%Y-%m-%dT%H:%MZ}"]
    assert log["fallbacks"] == 1 and log["latency"]["forecasts"] == 10 and log["latency"]["p50"] > 0
    assert any("broken.nc" in reason for reason in scored["skipped"])
    assert any("note.txt" in problem for problem in scored["frames"]["problems"])
    plain = next(
        series for series in scored["series"] if series["method"]["version"] == "1" and len(series["issues"]) > 1
    )
    whole = plain["periods"]["all"]
    # Frame 9 is a valid time of issues after frames 5, 6, 7 (lead times 4, 3, 2); that after 4 is the missing issue.
    assert whole["frames_missing"] == [0, 0, 1, 1] and whole["verified"] == 4
    mean = next(series for series in scored["series"] if series["method"]["field"] == "ensemble mean")
    curve = next(iter(mean["periods"]["all"]["reliability"].values()))
    assert len(curve["forecasts"]) == 4, "three members have four probabilities"
    assert curve["forecasts"][1:3] == [0, 0], "equal members agree"


def test_second_run_counts_only_what_is_new(operation, scored, monkeypatch):
    counted = []
    count = IssueCounter.count
    monkeypatch.setattr(IssueCounter, "count", lambda self, one: counted.append(one.path.name) or count(self, one))
    chosen = settings(dataset=str(operation / "mine.yaml"), protocols=("global",), draws=10)

    def again() -> dict:
        counted.clear()
        return score_issued(operation / "products", [operation / "radar"], settings=chosen, out=operation / "out")

    assert json.dumps(again()["series"]) == json.dumps(scored["series"]) and not counted
    # 1. Damaged entries are counted again, with the same result
    for entry in list((operation / "out" / "cache").glob("*/*.npz"))[:3]:
        entry.write_bytes(entry.read_bytes()[:100])
    result = again()
    assert len(counted) == 3
    assert json.dumps(result["series"]) == json.dumps(scored["series"])
    # 2. A late frame changes the forecasts that it verifies
    codes = storm_codes()
    write_frames(operation / "radar", codes[9:10], spec_of(operation / "mine.yaml"), first=9)
    result = again()
    assert len(counted) == 6, "issues after the frames 5, 6 and 7, of two series"
    assert all(series["periods"]["all"]["frames_missing"] == [0] * 4 for series in result["series"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": None}, "data description 'mine', which is not built in"),
        ({"dataset": "fmi"}, "is in mm/h and the description fmi in dBZ"),
        ({"thresholds": (1e6,)}, "--threshold 1e\\+06"),
        ({"protocols": ("globl",)}, "--protocol: unknown verification protocol 'globl'"),
        ({"baselines": ("persistance",)}, "--baseline: unknown baseline"),
    ],
)
def test_invalid_settings_name_the_option(operation, tmp_path, change, message):
    chosen = settings(**{"dataset": str(operation / "mine.yaml")} | change)
    with pytest.raises(SimcastError, match=message):
        score_issued(operation / "products", [operation / "radar"], settings=chosen, out=tmp_path)


def test_another_grid_is_an_error_that_names_both_files(operation, tmp_path):
    spec, codes = spec_of(operation / "mine.yaml"), storm_codes()
    number, time = issue_times()[0]
    issue(tmp_path / "shifted", spec, persistence(codes, number), time, grid=replace(GRID, left=GRID.left + 500))
    chosen = settings(dataset=str(operation / "mine.yaml"))
    with pytest.raises(DataError, match=r"radar003\.h5 has another grid than .*forecast_.*x from"):
        score_issued(tmp_path / "shifted", [operation / "radar"], settings=chosen, out=tmp_path / "out")
    with pytest.raises(SimcastError, match=r"PRODUCTS .*absent does not exist; give the folder of forecasts"):
        score_issued(tmp_path / "absent", [operation / "radar"], settings=chosen, out=tmp_path / "out")


def test_stated_thresholds_are_compared_in_physical_units(tmp_path):
    """Exactly the values from 30 mm/h reach 30, in frames, forecasts and baselines, without --dataset."""
    values = np.full((FRAMES_IN + FRAMES_OUT, SIZE, SIZE), 1.0)
    values[:, :8], values[:, 8:16], values[:, 16:20], values[:, 20:22] = 30.0, 29.95, 30.0, 31.0
    values[FRAMES_IN:, 8:16], values[FRAMES_IN:, 16:20] = 30.3, 29.95
    (tmp_path / "radar").mkdir()
    for number, field in enumerate(values):
        write_odim(tmp_path / "radar" / f"radar{number:03d}.h5", field, moment(number), quantity="RATE")
    issued = f"{moment(FRAMES_IN - 1):%Y-%m-%dT%H:%M}"
    words = ["predict", "persistence", tmp_path / "radar", "--at", issued, "--out", tmp_path / "products"]
    done = CliRunner().invoke(app, list(map(str, [*words, "--minutes", 20])))
    assert done.exit_code == 0, done.output
    csi = {}
    for encoded in (False, True):
        chosen = settings(protocols=("global",), baselines=("persistence",), encoded=encoded)
        result = score_issued(tmp_path / "products", [tmp_path / "radar"], settings=chosen, out=tmp_path / "out")
        scores = result["series"][0]["periods"]["all"]["scores"]
        csi[encoded] = [scores[name]["frames-rain-rate-global"]["csi/30"] for name in ("forecast", "persistence")]
    assert csi[False] == [10 / 22] * 2, "8 + 2 rows of hits, 8 of misses, 4 of false alarms"
    assert csi[True] == [1.0] * 2, "30 and 30.3 mm/h are rounded to 29.85: only 31 is an event"
