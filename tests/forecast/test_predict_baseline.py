"""`simcast predict` with a baseline: unit, pixels and time step of the frames, and equality with `simcast evaluate`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from simcast_hpc.baselines import load_baseline
from simcast_hpc.commands.predict import _check_prometheus
from simcast_hpc.config import ConfigError
from simcast_hpc.forecast.border_blending import weight_of_model
from simcast_hpc.forecast.choose_frames import FrameRequest, choose_frames
from simcast_hpc.forecast.load_predictor import (
    FramePlaces,
    PredictorSettings,
    WithoutModel,
    load_baseline_predictor,
)
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.radar import encoding_of_run
from simcast_hpc.radar.frame_description import infer_step_minutes
from simcast_hpc.radar.frame_files import index_times, read_encoded
from tests.radar.radar_files import moment, predict, storm, write_cf


def field_of(path: Path, name: str = "reflectivity") -> np.ndarray:
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        return dataset[name].values


@pytest.fixture(scope="module")
def radar(storm_frames) -> Path:
    return storm_frames[0].parent


@pytest.mark.parametrize("name", ["extrapolation", "persistence"])
def test_values_are_those_of_the_baseline_in_evaluate(model, radar, tmp_path, name):
    """Bitwise, from the codes that a model would receive: 3 frames in, 4 out."""
    (path,) = predict(name, radar, "--like", model, "--at", "2024-11-26T01:50", "--out", tmp_path, "--write", "nc")
    code = encoding_of_run(load_trained(model).config.data)
    files = index_times(sorted(radar.glob("*.nc")), skip_unreadable=False)
    times = [moment(number) for number in (8, 9, 10)]
    frames = read_encoded(files, times, code)
    codes = np.stack([frames[time].codes for time in times])
    want = load_baseline(name, code.spec.encoding).forecast(torch.from_numpy(codes)[None], 4)[0].numpy()
    physical = code.linear_of_forecast(want)
    code.make_physical(physical, codes[-1] == 255)
    np.testing.assert_array_equal(field_of(path), physical)
    assert np.nanmax(physical) > 40


def test_frames_keep_unit_pixels_and_cadence(tmp_path):
    """In mm/h, 0.25 km and 10 minutes: no encoding of training data rounds the values, and drizzle is kept."""
    radar = tmp_path / "radar"
    radar.mkdir()
    field = np.random.default_rng(3).gamma(0.3, 3.0, (12, 15)).astype(np.float32)
    field[0, :3], field[1, :3] = np.nan, (0.0, 0.03, 123.456)
    for number in range(3):
        write_cf(radar / f"{number}.nc", field[None], [moment(number, minutes=10)])
    (path,) = predict("persistence", radar, "--out", tmp_path / "out", "--write", "nc")
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        assert dataset["forecast_period"].values.tolist() == [10.0 * (k + 1) for k in range(12)]
        assert dataset.attrs["simcast_model"] == "persistence" and dataset.attrs["simcast_fallback"] == "none"
        assert dataset.attrs["source"] == "SimCast-HPC, baseline persistence"
        values = dataset["rainfall_rate"].values
    for lead in values:
        np.testing.assert_allclose(lead, field, rtol=1e-5, atol=1e-6)


def test_lead_times(radar, tmp_path):
    options = ["--step", 10, "--minutes", 60, "--out", tmp_path, "--write", "nc", "--no-validity"]
    (path,) = predict("extrapolation", radar, *options)
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        assert dataset["forecast_period"].values.tolist() == [10, 20, 30, 40, 50, 60] and "validity" not in dataset
        assert [one["time"][11:16] for one in json.loads(dataset.attrs["simcast_inputs"])] == [
            "02:55", "03:05", "03:15", "03:25",
        ]  # fmt: skip
    given = {"frames_out": 3}, {"minutes": 20.0}, {"minutes": 4.99 + 0.01}, {}
    assert [WithoutModel(**one).lead_times(5.0) for one in given] == [3, 4, 1, 24]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extrapolaton"], r"extrapolaton is neither a run directory nor a baseline; did you mean extrapolation\?"),
        (["STEP"], r"STEP is neither .* did you mean steps\?"),
        (["extrapolation", "--tile", 32, 32], r"--tile: only for a trained model"),
        (
            ["extrapolation", "--set", "members=3"],
            r"--set: only for a trained model.*the baseline with members is steps",
        ),
        (["steps", "--set", "sampler=ddpm"], r"--set sampler: only for a trained model; steps has only members"),
        (["extrapolation", "--accumulate", 60], r"require a Z-R relation.*--z-r 200 1.6"),
        (["extrapolation", "--frames-in", 1], r"--frames-in 1: extrapolation needs at least 2 frames"),
        (["extrapolation", "--frames-out", 2, "--minutes", 9], r"--frames-out and --minutes are both given"),
        (["extrapolation", "--minutes", 3], r"--minutes 3 is below the time step of 5 minutes"),
        (["extrapolation", "--step", 0], r"--step 0.0 must be above 0"),
        (["extrapolation", "--mask-inflow", "--no-validity"], r"--mask-inflow and --no-validity"),
        (["MODEL", "--minutes", 60], r"--minutes: only for a baseline or with --fallback"),
        (["MODEL", "--fallback", "extrapolate"], r"did you mean extrapolation\?"),
    ],
)
def test_errors_name_the_option(model, radar, tmp_path, arguments, message):
    given = [model if one == "MODEL" else one for one in arguments]
    with pytest.raises(ConfigError, match=message):
        predict(given[0], radar, *given[1:], "--out", tmp_path)


def test_a_folder_with_the_name_of_a_baseline_is_a_run(radar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steps").mkdir()
    with pytest.raises(ConfigError, match="steps is not a finished training run"):
        predict("steps", radar)


@pytest.mark.slow
def test_ensemble_of_steps_has_mean_and_probability(radar, tmp_path):
    pytest.importorskip("pysteps")
    options = ["--frames-out", 2, "--out", tmp_path, "--write", "nc"]
    (path,) = predict("steps", radar, *options)
    members, mean = field_of(path), field_of(path, "reflectivity_mean")
    assert members.shape == (10, 2, 40, 52) and mean.shape == (2, 40, 52)
    linear = 10 * np.log10((10 ** (members / 10)).mean(axis=0))
    np.testing.assert_allclose(mean, linear, atol=0.05)
    probability = field_of(path, "probability_of_exceedance")
    np.testing.assert_allclose(probability[1], (members >= 30).mean(axis=0) + 0 * members[0], atol=1e-6)


def test_cadence_of_frames_with_jitter_and_gaps():
    assert infer_step_minutes([moment(k) for k in (0, 1, 2, 5, 6)]) == 5
    assert infer_step_minutes([moment(0), moment(1, minutes=4.9), moment(1, minutes=9.95)]) == 5
    assert infer_step_minutes([moment(k, minutes=2.5) for k in range(9)]) == 2.5
    assert infer_step_minutes([moment(k, minutes=2.2) for k in range(9)]) == pytest.approx(2.2, abs=0.01)
    with pytest.raises(ConfigError, match="cannot be inferred from 1 frames; give --step"):
        infer_step_minutes([moment(0)])


def test_fewer_frames_suffice_down_to_the_smallest_number():
    request = FrameRequest(4, 5.0, fewest=2)
    chosen = choose_frames([moment(k) for k in (0, 2, 3)], moment(3), request)
    assert chosen.frames == (moment(2), moment(3))
    bridged = choose_frames([moment(k) for k in (0, 2, 3)], moment(3), FrameRequest(4, 5.0, bridge=1, fewest=2))
    assert bridged.frames == (moment(0), None, moment(2), moment(3))
    with pytest.raises(ValueError, match=r"1 of 2 frames every 5 minutes are missing: 01:05"):
        choose_frames([moment(0), moment(2)], moment(2), request)


def test_rain_that_comes_from_outside_is_not_determined(tmp_path):
    """A pattern that moves 2 pixels per frame to the east: after k frames, 2 k columns at the western edge are unknown.

    A quarter of the domain that no radar sees is unknown itself, and so are the pixels that its air reaches.
    """
    radar = tmp_path / "radar"
    radar.mkdir()
    rng = np.random.default_rng(1)
    row, column = np.mgrid[:64, :120]
    waves = [(rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5), rng.uniform(0, 6)) for _ in range(12)]
    for number in range(4):
        field = 20 + sum(3 * np.sin(a * row + b * (column - 2 * number) + c) for a, b, c in waves)
        field[:, 80:] = np.nan
        write_cf(
            radar / f"{number}.nc", field[None].astype(np.float32), [moment(number)],
            name="equivalent_reflectivity_factor", units="dBZ",
        )  # fmt: skip
    options = ["--frames-out", 6, "--write", "nc"]
    (path,) = predict("extrapolation", radar, *options, "--out", tmp_path / "marked")
    validity = field_of(path, "validity")
    for lead in range(6):
        edges = validity[lead, 8:56].argmax(axis=1)  # the first determined column
        assert abs(np.median(edges) - 2 * (lead + 1)) <= 1.0 and validity[lead, 30, 20:70].all()
        assert not validity[lead, 30, 90 + 2 * lead : 115].any()
    values = field_of(path)
    assert np.isfinite(values[..., :80]).all()  # no data are removed
    (path,) = predict("extrapolation", radar, *options, "--out", tmp_path / "masked", "--mask-inflow")
    masked = field_of(path)
    is_marked = (validity == 0) & np.isfinite(values)
    assert np.isnan(masked[is_marked]).all() and is_marked.sum() > 64 * 20
    np.testing.assert_array_equal(masked[validity == 1], values[validity == 1])


def test_model_is_blended_with_extrapolation_near_the_border(model, radar, tmp_path):
    options = [radar, "--at", "2024-11-26T01:50", "--write", "nc", "--tile", 40, 52]
    outputs = {}
    for name, own in (("plain", ()), ("blended", ("--blend-border", 10))):
        outputs[name] = field_of(predict(model, *options, *own, "--out", tmp_path / name)[0])
    (path,) = predict("extrapolation", radar, "--like", model, *options[1:5], "--out", tmp_path / "extrapolation")
    extrapolated = field_of(path)
    np.testing.assert_array_equal(outputs["blended"][:, 10:30, 10:38], outputs["plain"][:, 10:30, 10:38])
    np.testing.assert_allclose(outputs["blended"][:, 39], extrapolated[:, 39], atol=1e-4)
    linear = [10 ** (one[:, 34, 20] / 10) for one in (outputs["plain"], extrapolated, outputs["blended"])]
    np.testing.assert_allclose(
        linear[2], 0.5 * linear[0] + 0.5 * linear[1], rtol=1e-4, atol=1e-3
    )  # 5 of 10 pixels inside
    weight = weight_of_model(np.zeros((5, 7), bool), 2)
    np.testing.assert_array_equal(weight[2], [0, 0.5, 1, 1, 1, 0.5, 0])
    hole = np.zeros((5, 7), bool)
    hole[2, 6] = True
    np.testing.assert_array_equal(weight_of_model(hole, 1)[2], [0, 1, 1, 1, 1, 0, 0])


def test_storm_moves_with_the_extrapolation(radar, tmp_path):
    """The cell of the frames moves 1.5 pixels per frame to the east."""
    picture, path = predict("extrapolation", radar, "--at", "2024-11-26T01:40", "--frames-out", 3, "--out", tmp_path)
    assert picture.suffix == ".png"
    forecast = field_of(path)[2]
    future = storm(11)
    error = np.abs(np.nan_to_num(forecast, nan=0, neginf=0).clip(0) - np.nan_to_num(future, nan=0, neginf=0).clip(0))
    still = np.abs(np.nan_to_num(storm(8), neginf=0).clip(0) - np.nan_to_num(future, neginf=0).clip(0))
    assert error.mean() < 0.6 * still.mean()


def rain(number: int) -> np.ndarray:
    """Return the rain rate in mm/h of a frame of the storm, by Z = 200 R^1.6."""
    return (10.0 ** (np.maximum(storm(number), -99.0) / 10) / 200.0) ** (1 / 1.6)


def test_amounts_read_the_observed_frames_that_they_need(radar, tmp_path):
    """An hour with a forecast of 30 minutes from 4 frames: by the trapezoidal rule of 12 observed frames and more."""
    options = ["--minutes", 30, "--accumulate", 60, "--window=-45:15", "--z-r", 200, 1.6, "--write", "nc"]
    (path,) = predict("persistence", radar, *options, "--at", "2024-11-26T02:00", "--out", tmp_path)
    rates = np.stack([rain(number) for number in (*range(1, 13), *[12] * 6)])
    steps = (rates[1:] + rates[:-1]) / 2 * 5 / 60  # from -55 to 30 minutes
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        assert len(json.loads(dataset.attrs["simcast_inputs"])) == 4
        assert len(json.loads(dataset.attrs["simcast_earlier_frames"])) == 8
        assert dataset["forecast_period_60min"].values.tolist() == [5, 10, 15, 20, 25, 30]
        for number, amount in enumerate(dataset["rainfall_amount_60min"].values):
            np.testing.assert_allclose(amount, steps[number : number + 12].sum(0), rtol=2e-4, atol=1e-4)
        window = dataset["rainfall_amount_m45_to_15min"].values.squeeze()
    np.testing.assert_allclose(window, steps[2:14].sum(0), rtol=2e-4, atol=1e-4)


def test_amounts_without_enough_observed_frames_are_omitted_and_named(radar, tmp_path):
    """The forecast is issued; it states what it lacks."""
    options = ["--minutes", 30, "--accumulate", 60, "--window=-45:15", "--accumulate", 30, "--z-r", 200, 1.6]
    (path,) = predict("extrapolation", radar, *options, "--at", "2024-11-26T01:20", "--out", tmp_path, "--write", "nc")
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        assert dataset.attrs["simcast_products_omitted"] == "--accumulate 60, --window -45:15"
        assert dataset["forecast_period_30min"].values.tolist() == [10, 15, 20, 25, 30]


def test_members_of_steps(radar):
    pytest.importorskip("pysteps")
    settings = PredictorSettings(change_sampling=lambda own: own.model_copy(update={"members": 3}))
    predictor = load_baseline_predictor("steps", settings, FramePlaces([radar]))
    forecast = predictor.baseline.forecast(torch.randint(0, 200, (1, 3, 32, 32), dtype=torch.uint8), 2)
    assert predictor.is_ensemble and forecast.shape == (1, 3, 2, 32, 32)
    assert predictor.identity != load_baseline_predictor("steps", PredictorSettings(), FramePlaces([radar])).identity
    assert predictor._fixed["simcast_sampling"] == '{"members": 3}'


def test_folder_of_the_prometheus_file(tmp_path):
    (tmp_path / "exists").mkdir()
    for valid in (tmp_path / "out" / "simcast.prom", tmp_path / "exists" / "simcast.prom", None):
        _check_prometheus(valid, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"the folder .*other does not exist; create it, or choose --out"):
        _check_prometheus(tmp_path / "other" / "simcast.prom", tmp_path / "out")
    with pytest.raises(ConfigError, match="exists is a folder; give a file in it"):
        _check_prometheus(tmp_path / "exists", tmp_path / "out")
