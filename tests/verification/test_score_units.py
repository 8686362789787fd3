"""``score`` in physical units: NumPy, torch and xarray, thresholds, special values, missing pixels, DataArray axes."""

import math

import numpy as np
import pytest
import torch

from simcast_hpc.verification import PROTOCOLS, Pool, physical_protocol, score
from tests.verification.score_comparisons import REQUESTED, library_values

THRESHOLDS = (0.1, 0.7, 2.0, 5.0)


def same(expected, tolerance=0.0):
    return pytest.approx(expected, rel=0, abs=tolerance, nan_ok=True)


def rain(seed, shape=(2, 3, 24, 20)):
    """Return rain rates in mm/h, half of them 0, with the values of the thresholds and missing pixels."""
    generator = np.random.default_rng(seed)
    field = (generator.gamma(0.7, 3, shape) - 0.5).clip(min=0)
    field.reshape(-1)[: 4 * len(THRESHOLDS)] = np.tile(THRESHOLDS, 4)
    field[0, 1, :3, seed] = np.nan
    return field


@pytest.mark.parametrize("unit", ["mm/h", "mm h-1", "dBZ"])
@pytest.mark.parametrize("strict", [False, True])
def test_scores_in_a_unit_equal_other_libraries(unit, strict):
    observed, forecast = rain(1), rain(2)
    if unit == "dBZ":
        observed, forecast = 3 * observed - 5, 3 * forecast - 5
    protocol = physical_protocol(unit, THRESHOLDS, strict=strict)
    ours = score(observed, forecast, protocol=protocol, unit=unit, scores=REQUESTED, per_lead=True)
    for name, value in library_values(observed, forecast, THRESHOLDS, strict=strict).items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name
    assert "psnr" not in ours and {"mae", "rmse_both/0.7/lead/3", "crps"} <= ours.keys()


def test_types_and_layouts_give_equal_scores():
    observed, forecast = (rain(seed).astype(np.float32) for seed in (1, 2))
    options = {"unit": "mm/h", "thresholds": THRESHOLDS, "scores": "all"}
    expected = score(observed, forecast, **options)
    assert score(torch.from_numpy(observed), torch.from_numpy(forecast), **options) == same(expected)
    assert score(np.asfortranarray(observed), forecast[:, :, ::-1][:, :, ::-1], **options) == same(expected)
    assert score(observed.astype(">f4"), forecast.astype(np.float64), **options) == same(expected)
    masked = (np.ma.masked_invalid(field) for field in (observed, forecast))
    assert score(*masked, **options) == same(expected)
    assert score(observed, forecast[:, None], **options) == same(expected)
    valid = np.isfinite(forecast)
    filled = np.where(valid, forecast, np.float32(1))
    assert score(observed, filled, valid=valid, **options)["mae"] == pytest.approx(expected["mae"], abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_value_equal_to_a_threshold_reaches_it(dtype):
    level = np.full((1, 1, 8, 8), 0.7, dtype)
    protocol = physical_protocol("mm/h", (0.1, 0.7), pools=(Pool(size=4), Pool(size=4, kind="avg")), fss_km=(3,))
    found = score(level, level, protocol=protocol)
    assert [found[f"csi{pool}/0.7"] for pool in ("", "_pool4", "_pool4_avg")] == [1.0, 1.0, 1.0]
    assert found["fss/3/0.7"] == 1.0
    members = np.repeat(level[:, None], 7, axis=1)
    assert score(level, members, unit="mm/h", thresholds=(0.7,))["csi/0.7"] == 1.0
    below = level * dtype(1 - 1e-6)
    assert math.isnan(score(below, below, unit="mm/h", thresholds=(0.7,))["csi/0.7"])


@pytest.mark.parametrize("strict", [False, True])
def test_packed_values_decoded_in_float32_are_on_the_side_of_their_decimal(strict):
    codes = np.random.default_rng(0).integers(0, 120, (2, 1, 1, 40, 40))
    # 1337 of the first 5000 multiples of 0.01 are below their decimal in float32.
    for scale, offset, unit, thresholds in (
        (0.01, 0.0, "mm/h", (0.05, 0.1, 0.58)),
        (0.1, -4.0, "dBZ", (-1.7, 0.0, 3.9)),
    ):
        observed, forecast = codes.astype(np.float32) * np.float32(scale) + np.float32(offset)
        protocol = physical_protocol(unit, thresholds, strict=strict)
        found = score(observed, forecast, protocol=protocol)
        for threshold in thresholds:
            first, second = (
                codes > (level := round((threshold - offset) / scale))
                if strict
                else codes >= (level := round((threshold - offset) / scale))
            )
            assert found[f"csi/{threshold:g}"] == (first & second).sum() / (first | second).sum(), level


def test_errors_are_in_the_unit_and_the_encoded_field_has_the_same_tables():
    codes = np.random.default_rng(0).integers(0, 255, (2, 2, 2, 16, 16), dtype=np.uint8)
    observed, forecast = codes
    encoded = score(observed, forecast, scores=("ets", "mean_error"))
    physical = physical_protocol("kg/m^2", PROTOCOLS["sevir-global"].thresholds, pools=PROTOCOLS["sevir-global"].pools)
    found = score(observed * 1.0, forecast * 1.0, protocol=physical, scores=("ets", "mean_error"))
    tables = [key for key in found if key.startswith(("csi", "ets"))]
    assert {key: found[key] for key in tables} == same({key: encoded[key] for key in tables})
    for key, power in (("mae", 1), ("rmse", 1), ("mean_error", 1), ("mse", 2)):
        assert found[key] == pytest.approx(encoded[key] * 255**power, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (-1.5, {}, "observation: values contain -1.5, outside of the valid range of mm/h"),
        (math.inf, {}, "observation: values contain plus infinity"),
        (-math.inf, {}, "observation: values contain -inf"),
        (9999.0, {}, "contain 9999"),
        (-0.5, {"unit": "mm", "thresholds": (1,)}, "observation contains -0.5 mm, which must not be negative"),
        (-math.inf, {"unit": "dBZ"}, "observation contains -inf .no echo.; give no_echo"),
        (math.inf, {"unit": "dBZ"}, "plus infinity"),
        (-math.inf, {"unit": "dBZ", "no_echo": 30.0}, "no_echo=30 must be a reflectivity below the lowest threshold"),
        (1.0, {"no_echo": -10.0}, "applies only to fields in dBZ"),
        (1.0, {"unit": "m/s"}, "unit='m/s' is not one of mm/h, dBZ, kg/m\\^2, mm"),
        (1.0, {"unit": "kg m-2 s-1"}, "multiply the fields by 3600 and give unit='mm/h'"),
        (1.0, {"unit": 5}, "unit=5 is not one of mm/h"),
        (1.0, {"unit": "kg/m^2"}, "fields in kg/m.2 require at least one"),
        (1.0, {"thresholds": 5}, "thresholds=5 must be a sequence of numbers"),
        (1.0, {"thresholds": "15"}, "thresholds='15' must be a sequence of numbers"),
        (1.0, {"scores": 5}, "scores=5 must be names"),
        (1.0, {"unit": "dBZ", "no_echo": "low"}, "no_echo='low' must be a number in dBZ"),
        (1.0, {"thresholds": (2.0, 1.0)}, "must ascend"),
        (1.0, {"thresholds": (math.nan,)}, "must be finite"),
        (1.0, {"thresholds": (-1.0, 1.0)}, "must be finite values in mm/h"),
        (1.0, {"thresholds": ()}, "require at least one"),
        (1.0, {"protocol": "sevir-global"}, "is of encoded values; .*choose from global, lead-mean"),
        (1.0, {"protocol": PROTOCOLS["hko7"]}, "'hko7' defines unit mm/h and thresholds"),
        (1.0, {"unit": None, "thresholds": (1.0,)}, "require unit"),
        (1.0, {"scores": ("bias",)}, "unknown score 'bias'"),
    ],
)
def test_invalid_values_and_options_are_named(value, options, message):
    observed = rain(1)
    observed[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=message):
        score(observed, rain(2), **{"unit": "mm/h", **options})


def test_pixel_values_and_integers_are_rejected_with_a_unit():
    for dtype in (np.uint8, np.int16, np.bool_):
        with pytest.raises(TypeError, match=f"observation (has dtype|must be floats in mm/h, got).*{np.dtype(dtype)}"):
            score(np.ones((2, 3, 24, 20), dtype), rain(1), unit="mm/h")
    with pytest.raises(ValueError, match="requires encoded values"):
        physical_protocol("mm/h", ssim=True)


def test_rounding_noise_no_echo_and_only_missing_pixels():
    observed, forecast = rain(1), rain(2)
    noisy = np.where(forecast == 0, -1e-7, forecast)
    assert score(observed, noisy, unit="mm/h") == same(score(observed, forecast, unit="mm/h"))
    silent = np.where(observed == 0, -np.inf, observed)
    filled = np.where(observed == 0, -15.0, observed)
    assert score(silent, forecast, unit="dBZ", no_echo=-15) == same(score(filled, forecast, unit="dBZ"))
    empty = np.full((1, 1, 4, 4), np.nan)
    assert all(math.isnan(value) for value in score(empty, empty, unit="mm/h").values())


def test_missing_members_of_an_ensemble_in_a_unit():
    observed = rain(1)
    members = np.stack([rain(2), rain(3), rain(4)], axis=1)
    members[:, 0, :, :5] = np.nan
    mask, ignore = (score(observed, members, unit="mm/h", missing_members=how) for how in ("mask", "ignore"))
    assert mask["coverage"] < ignore["coverage"] <= 1.0
    mean = np.nanmean(members, axis=1)
    assert ignore["mae"] == pytest.approx(np.nanmean(np.abs(mean - observed)), abs=1e-12)


def arrays(observed, forecast):
    """Return an observation by time and a forecast by reference time and lead time, in other orders of axes."""
    xarray = pytest.importorskip("xarray")
    y, x = np.arange(24) * 1000.0, np.arange(20) * 1000.0
    start = np.datetime64("2024-05-01T00:00", "ns")
    times = start + np.arange(8) * np.timedelta64(10, "m")
    truth = xarray.DataArray(
        observed, dims=("time", "y", "x"), coords={"time": times, "y": y, "x": x}, attrs={"units": "mm h-1"}
    )
    leads = np.arange(1, 4) * np.timedelta64(10, "m")
    made = xarray.DataArray(
        forecast,
        dims=("init_time", "lead_time", "y", "x"),
        coords={"init_time": times[[0, 4]], "lead_time": leads, "y": y, "x": x},
    )
    return truth, made


def test_data_arrays_are_aligned_by_names_and_coordinates():
    observed, forecast = rain(1, (8, 3, 24, 20))[:, 0], rain(2)
    truth, made = arrays(observed, forecast)
    expected = score(observed[[[1, 2, 3], [5, 6, 7]]], forecast, unit="mm/h", per_lead=True)
    shuffled = made.transpose("y", "lead_time", "x", "init_time").isel(y=slice(None, None, -1))
    assert score(truth, shuffled, unit="mm/h", per_lead=True) == same(expected)
    assert score(truth.transpose("x", "time", "y"), made, unit="mm/h", per_lead=True) == same(expected)
    minutes = made.assign_coords(lead_time=("lead_time", [10.0, 20.0, 30.0], {"units": "minutes"}))
    assert score(truth, minutes, unit="mm/h", per_lead=True) == same(expected)
    one = made.isel(init_time=0)
    single = score(observed[1:4], forecast[0], unit="mm/h")
    assert score(truth, one, unit="mm/h") == same(single)
    valid = one.drop_vars("init_time").rename(lead_time="time").assign_coords(time=truth["time"].values[1:4])
    assert score(truth, valid, unit="mm/h") == same(single)
    assert score(truth.isel(time=slice(1, 4)), forecast[0], unit="mm/h") == same(single)
    assert score(observed[1:4], one.transpose("x", "lead_time", "y"), unit="mm/h") == same(single)
    other = made.isel(y=slice(None, None, -1)).rename(y="lat", x="lon").astype(np.float64)
    other = other.assign_coords(lat=(other["lat"] + 0.3).astype(np.float32))
    assert score(truth, other, unit="mm/h", per_lead=True) == same(expected)
    assert score(on_rotated_grid(truth), on_rotated_grid(made), unit="mm/h", per_lead=True) == same(expected)
    covered = (truth["x"] > 3000) & (truth["y"] > 2000)
    assert score(truth, made, valid=covered, unit="mm/h") == same(score(truth.where(covered), made, unit="mm/h"))
    assert score(truth, made, valid=covered[::-1], unit="mm/h") == same(score(truth, made, valid=covered, unit="mm/h"))
    with pytest.raises(ValueError, match="observation and valid have different coordinates x"):
        score(truth, made, valid=covered.assign_coords(x=covered["x"] + 500), unit="mm/h")
    with pytest.raises(TypeError, match="valid must be boolean"):
        score(truth, made, valid=covered.astype(float), unit="mm/h")


def test_members_of_a_data_array():
    observed, forecast = rain(1, (8, 3, 24, 20))[:, 0], np.stack([rain(2), rain(3)])
    truth, made = arrays(observed, forecast[0])
    ensemble = made.expand_dims(realization=2).copy(data=forecast).transpose("lead_time", "realization", ...)
    expected = score(observed[[[1, 2, 3], [5, 6, 7]]], forecast.swapaxes(0, 1), unit="mm/h")
    assert score(truth, ensemble, unit="mm/h") == pytest.approx(expected, nan_ok=True)
    assert expected["spread"] > 0


def on_rotated_grid(field):
    """Return the field with two-dimensional latitudes in place of the coordinates of the grid."""
    lat = field["y"] * 2 + field["x"]
    return field.assign_coords(lat=lat).drop_vars(["y", "x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a.isel(time=slice(0, 6)), b), "no frame at 2 of 6 valid times of the forecast, .* 2024"),
        (lambda a, b: (a, b.assign_coords(x=b["x"] + 500)), "different coordinates x"),
        (lambda a, b: (a, b.isel(y=slice(1, None))), "different coordinates y"),
        (lambda a, b: (a, b.expand_dims(model=2)), r"the forecast has dimensions .*at most one dimension of windows"),
        (lambda a, b: (a.expand_dims(member=2), b), r"it cannot have members \(member\)"),
        (lambda a, b: (a.assign_attrs(units="dBZ"), b), "observation has units='dBZ', and unit='mm/h' was given"),
        (lambda a, b: (a, b.isel(lead_time=0)), "a lead time or time"),
        (lambda a, b: (a.isel(time=[0, 0, 1]), b), "time twice"),
        (lambda a, b: (a.rename(y="lat", x="lon"), b.assign_coords(y=b["y"] + 500)), "different coordinates lat"),
        (lambda a, b: (a, b.assign_coords(lead_time=[1, 2, 3])), "coordinates of the forecast .* give no valid times"),
        (lambda a, b: (a.assign_attrs(units="kg m-2 s-1"), b), "multiply the field by 3600 and set its units"),
        (lambda a, b: (on_rotated_grid(a), on_rotated_grid(b.isel(y=slice(None, None, -1)))), "coordinates lat of"),
    ],
)  # fmt: skip
def test_data_arrays_that_cannot_be_aligned(change, message):
    with pytest.raises(ValueError, match=message):
        score(*change(*arrays(rain(1, (8, 3, 24, 20))[:, 0], rain(2))), unit="mm/h")


def test_data_arrays_of_encoded_values():
    xarray = pytest.importorskip("xarray")
    codes = np.random.default_rng(0).integers(0, 256, (2, 2, 3, 16, 16), dtype=np.uint8)
    dims = ("event", "time", "y", "x")
    observed, forecast = (xarray.DataArray(field, dims=dims) for field in codes)
    assert score(observed, forecast.transpose("x", "y", "time", "event")) == same(score(*codes))
    rates = observed.astype(np.float32).assign_attrs(units="mm h-1")
    with pytest.raises(ValueError, match="observation has units='mm h-1', and encoded values are expected; give unit"):
        score(rates, rates)
