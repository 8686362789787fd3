"""The public Python API: forecasts from arrays, and the errors for invalid arrays."""

import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

import simcast_hpc as sc
from simcast_hpc.config import ConfigError
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.inference.trained_model import load_trained
from tests.archives import random_codes

CODES = random_codes(2, 3, missing=0.05)  # [B, T, H, W] = [2, 3, 16, 16]
FLOATS = np.where(CODES == MISSING_CODE, np.nan, CODES / np.float32(255)).astype(np.float32)


def with_missing(frames: np.ndarray, sample: int | slice, frame: int) -> np.ndarray:
    """Return frames ``[B, T, H, W]`` with one frame of one sample, or of all samples, missing."""
    changed = frames.copy()
    changed[sample, frame] = MISSING_CODE if frames.dtype == np.uint8 else np.nan
    return changed


@pytest.fixture(scope="module")
def student(runs: Path) -> sc.Forecaster:
    return sc.load(runs / "student", device="cpu")


@pytest.fixture(scope="module")
def ensemble(runs: Path) -> sc.Forecaster:
    return sc.load(str(runs / "diffusion"), device="cpu")


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, time; begin = time.process_time(); import simcast_hpc as sc; spent = time.process_time() - begin;"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; assert 'load' in dir(sc); print(spent)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5  # generous for a busy machine; the import takes milliseconds


def test_rejects_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'lead'"):
        sc.lead  # noqa: B018


def test_every_input_type_gives_the_same_forecast(student: sc.Forecaster, runs: Path):
    expected = load_trained(runs / "student").forecast(torch.from_numpy(CODES), frames_out=4).numpy()
    expected[np.isnan(FLOATS).any(axis=1)[:, None].repeat(4, axis=1)] = np.nan
    big_endian, strided = FLOATS.astype(">f4"), np.asfortranarray(CODES)
    masked = np.ma.masked_equal(CODES, MISSING_CODE)
    for frames in (CODES, FLOATS, FLOATS.astype(np.float64), big_endian, strided, masked, masked.filled(255)):
        forecast = student.forecast(frames)
        assert isinstance(forecast, np.ndarray) and forecast.dtype == np.float32
        np.testing.assert_array_equal(forecast, expected)
    np.testing.assert_array_equal(student.forecast(np.ma.masked_invalid(FLOATS)), expected)
    np.testing.assert_array_equal(student.forecast(FLOATS.astype(np.longdouble)), expected)
    read_only = CODES.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(student.forecast(read_only), expected)
    zeros = np.zeros_like(FLOATS)
    np.testing.assert_array_equal(student.forecast(zeros - np.float32(2e-7)), student.forecast(zeros))
    tensor = student.forecast(torch.from_numpy(CODES))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    np.testing.assert_allclose(student.forecast(CODES[1]), expected[1], atol=1e-6)


def test_lead_times_select_and_extend_the_horizon(student: sc.Forecaster):
    complete = student.forecast(CODES)
    np.testing.assert_array_equal(student.forecast(CODES, lead_times=2), complete[:, :2])
    np.testing.assert_array_equal(student.forecast(CODES, lead_times=[1, 4]), complete[:, [0, 3]])
    for two in (2.0, np.uint8(2), np.array(2), torch.tensor([1, 2]), range(1, 3), np.array([1.0, 2.0])):
        np.testing.assert_array_equal(student.forecast(CODES, lead_times=two), complete[:, :2])
    rolled_out = student.forecast(CODES, lead_times=7)
    assert rolled_out.shape == (2, 7, 16, 16)
    np.testing.assert_array_equal(rolled_out[:, :4], complete)


def test_members_are_the_same_for_codes_and_floats(ensemble: sc.Forecaster):
    assert ensemble.forecast(CODES).shape == (2, 5, 4, 16, 16)
    members = ensemble.forecast(CODES, members=np.int64(3))  # type: ignore[arg-type]
    assert members.shape == (2, 3, 4, 16, 16)
    np.testing.assert_array_equal(ensemble.forecast(FLOATS, members=3), members)
    np.testing.assert_array_equal(ensemble.forecast(CODES, lead_times=[2], members=3), members[:, :, 1:2])
    assert ensemble.forecast(CODES[0], members=1).shape == (1, 4, 16, 16)
    assert np.nanmax(np.abs(members[:, 0] - members[:, 1])) > 0


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (CODES.astype(np.int64), TypeError, "dtype int64; give uint8"),
        (CODES.astype(np.uint16), TypeError, "dtype uint16; give uint8"),
        (CODES > 3, TypeError, "dtype bool; give uint8"),
        (torch.from_numpy(CODES).int(), TypeError, r"dtype torch\.int32; give uint8"),
        (CODES.tolist(), TypeError, "frames are a list"),
        (CODES.astype(np.float32), ValueError, r"floats from 0 to 255, which must lie in \[0, 1\]"),
        (FLOATS - 0.5, ValueError, r"which must lie in \[0, 1\]"),
        (np.where(FLOATS > 0.5, np.inf, FLOATS), ValueError, "floats from .* to inf"),
        (np.full_like(FLOATS, np.nan), ValueError, r"every value of frames is missing \(255 or NaN\) in sample 0, 1"),
        (np.full_like(CODES, MISSING_CODE), ValueError, "every value of frames is missing"),
        (np.ma.masked_all(FLOATS.shape, np.float32), ValueError, "every value of frames is missing"),
        (np.stack([CODES[0], np.full_like(CODES[0], MISSING_CODE)]), ValueError, r"missing .* in sample 1"),
        (with_missing(CODES, 1, -1), ValueError, r"no pixel of sample 1 .*: .*, 100 % of frame 3 of 3 \(the last\)"),
        (with_missing(FLOATS, 1, -1), ValueError, r"no pixel of sample 1 .*, 100 % of frame 3 of 3 \(the last\)"),
        (with_missing(CODES, 0, 0), ValueError, r"sample 0: 100 % of frame 1 of 3, [\d.]+ % of frame 2 of 3, "),
        (with_missing(FLOATS, slice(None), 1), ValueError, r"no pixel of sample 0, 1 .*100 % of frame 2 of 3, "),
        (np.full_like(FLOATS, 1.00001), ValueError, r"floats from 1\.0000\d+ to"),
        (torch.empty(2, 3, 16, 16, device="meta"), TypeError, "a tensor of device meta; give a dense tensor"),
        (torch.zeros(2, 3, 16, 16).to_sparse(), TypeError, r"layout torch\.sparse_coo; give a dense tensor"),
        (CODES[0, 0], ValueError, r"shape \(16, 16\); \[T, H, W\] or \[B, T, H, W\]"),
        (CODES[None], ValueError, r"shape \(1, 2, 3, 16, 16\)"),
        (CODES[:, :0], ValueError, "at least one pixel"),
        (CODES[:, :2], ValueError, r"have 2 time steps .* needs exactly 3: give the last ones"),
        (np.moveaxis(CODES, 1, -1), ValueError, "have 16 time steps"),
        (CODES[..., :15], ConfigError, "multiples of 2, got 16 x 15"),
    ],
)
def test_rejects_invalid_frames(student: sc.Forecaster, frames, error, message: str):
    with pytest.raises(error, match=message):
        student.forecast(frames)


@pytest.mark.parametrize("lead_times", ["2", b"2", [True], [1, "a"], [None], [[1]], {1, 2}, np.timedelta64(5, "m")])
def test_rejects_lead_times_that_are_not_numbers(student: sc.Forecaster, lead_times):
    with pytest.raises(TypeError, match=r"lead_times=.* must be an int or a sequence of ints"):
        student.forecast(CODES, lead_times=lead_times)


@pytest.mark.parametrize("lead_times", [0, -1, 10**30, [], [2, 1], [1, 1], [0, 1], [1.5], [np.nan], np.inf])
def test_rejects_invalid_lead_times(student: sc.Forecaster, lead_times):
    with pytest.raises(ValueError, match="lead_times="):
        student.forecast(CODES, lead_times=lead_times)


def test_rejects_members_and_lead_times_that_the_model_lacks(student: sc.Forecaster, ensemble: sc.Forecaster):
    with pytest.raises(ValueError, match="members=3 needs an ensemble"):
        student.forecast(CODES, members=3)
    with pytest.raises(ValueError, match="members=0 must be a positive int"):
        ensemble.forecast(CODES, members=0)
    with pytest.raises(ValueError, match="lead time 5 is beyond the ensemble's horizon; it has 1 to 4"):
        ensemble.forecast(CODES, lead_times=5)
    with pytest.raises(ConfigError, match=r"multiples of .*, got 16 x 15"):
        ensemble.forecast(CODES[..., :15])
    with pytest.raises(TypeError, match="lead_times=True must be an int"):
        student.forecast(CODES, lead_times=True)


def data_array(minutes: float = 5, **coordinates) -> xarray.DataArray:
    start = datetime(2024, 6, 1, 11, 50)
    times = np.array([start + timedelta(minutes=minutes * k) for k in range(3)], dtype="datetime64[ns]")
    coords = {"time": times, "y": np.arange(16) * 1e3, "x": np.arange(16) * 2e3, "crs": 0} | coordinates
    return xarray.DataArray(CODES[0], dims=("time", "y", "x"), coords=coords, name="vil", attrs={"long_name": "VIL"})


def test_data_array_keeps_coordinates(student: sc.Forecaster, ensemble: sc.Forecaster):
    frames = data_array()
    forecast = student.forecast(frames)
    assert forecast.dims == ("time", "y", "x") and forecast.name == "vil" and forecast.attrs == frames.attrs
    np.testing.assert_array_equal(forecast.values, student.forecast(CODES[0]))
    last = np.datetime64("2024-06-01T12:00", "ns")
    steps = np.array([5, 10, 15, 20], dtype="timedelta64[m]")
    np.testing.assert_array_equal(forecast.time.values, last + steps)
    np.testing.assert_array_equal(forecast.lead_time.values, steps)
    assert forecast.forecast_reference_time.values == last
    np.testing.assert_array_equal(forecast.y, frames.y)
    assert "crs" in forecast.coords
    # Time last, as archives store it, and a batch dimension.
    time_last = student.forecast(frames.transpose("y", "x", "time"))
    np.testing.assert_array_equal(time_last.values, forecast.values)
    members = ensemble.forecast(frames.expand_dims(event=["a"]), members=2)
    assert members.dims == ("event", "member", "time", "y", "x") and list(members.member) == [0, 1]
    # Rows and columns are recognized by name, in any order.
    swapped = student.forecast(frames.expand_dims(band=[1]).transpose("x", "time", "y", "band"))
    assert swapped.dims == ("band", "time", "y", "x")
    np.testing.assert_array_equal(swapped.values[0], forecast.values)
    with pytest.raises(ValueError, match="the forecast adds lead_time and member"):
        ensemble.forecast(frames.expand_dims(member=[0, 1]), members=2)


def test_data_array_loses_the_attributes_of_its_encoding(student: sc.Forecaster):
    frames = data_array().assign_attrs(_FillValue=255, scale_factor=0.1, units="kg m-2", valid_range=[0, 254])
    forecast = student.forecast(frames)
    assert forecast.attrs == {"long_name": "VIL"}
    physical = student.to_physical(forecast)
    assert physical.attrs == {"long_name": "VIL", "units": "kg/m^2"} and "lead_time" in physical.coords
    np.testing.assert_array_equal(physical.values, student.to_physical(forecast.values))
    assert student.from_physical(physical).attrs == {"long_name": "VIL"}


def test_data_array_times_of_other_calendars_and_time_zones(student: sc.Forecaster):
    cftime, pandas = pytest.importorskip("cftime"), pytest.importorskip("pandas")
    expected = student.forecast(data_array()).time.values
    dates = [cftime.DatetimeGregorian(2024, 6, 1, 11, 50 + 5 * k) for k in range(2)]
    dates.append(cftime.DatetimeGregorian(2024, 6, 1, 12))
    np.testing.assert_array_equal(student.forecast(data_array(time=dates)).time.values, expected)
    with pytest.raises(ValueError, match="s apart; tiny needs 300 s between frames, oldest first"):
        student.forecast(data_array(time=dates[::-1]))
    local = pandas.date_range("2024-06-01T13:50", periods=3, freq="5min", tz="Etc/GMT-2")
    np.testing.assert_array_equal(student.forecast(data_array(time=local)).time.values, expected)
    for times in ([0.0, 5.0, 10.0], ["a", "b", "c"], [*expected[:2], np.datetime64("NaT")]):
        with pytest.raises(ValueError, match=r"the coordinate time has dtype .*; dates \(datetime64\) are needed"):
            student.forecast(data_array(time=np.array(times)))


def test_rejects_data_array_of_another_cadence(student: sc.Forecaster):
    with pytest.raises(ValueError, match=r"\[600\.0\] s apart; tiny needs 300 s between frames"):
        student.forecast(data_array(minutes=10))
    with pytest.raises(ValueError, match="a time dimension"):
        student.forecast(data_array().rename(time="band"))
    without_times = student.forecast(data_array().drop_vars("time"))
    assert "time" not in without_times.coords and len(without_times.lead_time) == 4


def test_load_error_names_the_missing_run_or_baseline(tmp_path: Path, runs: Path):
    with pytest.raises(ConfigError, match=r"'persistance' is neither a run directory nor a baseline .*'persistence'"):
        sc.load("persistance")
    with pytest.raises(ConfigError, match=r"did you mean 'steps'"):
        sc.load("STEPS")
    with pytest.raises(ConfigError, match=r"config\.yaml is a file; give the run directory"):
        sc.load(runs / "student" / "config.yaml")
    with pytest.raises(ConfigError, match="'' is neither a run directory"):
        sc.load("")
    with pytest.raises(TypeError, match="run_or_name=None must be"):
        sc.load(None)  # type: ignore[arg-type]
    for device in ("gpu", "meta", ""):
        with pytest.raises(ConfigError, match=f"device='{device}' cannot be used"):
            sc.load(runs / "student", device=device)
    with pytest.raises(ConfigError, match="needs dataset="):
        sc.load("persistence")
    with pytest.raises(ConfigError, match="is for baselines"):
        sc.load(runs / "student", dataset="sevir")
    with pytest.raises(ConfigError, match="is not a finished training run"):
        sc.load(tmp_path)
    with pytest.raises(ConfigError, match="run of stage autoencoder; a finished"):
        sc.load(runs / "autoencoder")


@pytest.mark.parametrize(
    ("name", "frames_in", "members"), [("extrapolation", 2, None), ("darts", 5, None), ("steps", 3, 10)]
)
def test_baselines_have_their_number_of_frames_and_members(name: str, frames_in: int, members: int | None):
    pytest.importorskip("pysteps")
    pytest.importorskip("cv2")
    baseline = sc.load(name, dataset=sc.datasets.read_dataset("sevir"))
    assert (baseline.frames_in, baseline.members) == (frames_in, members)
    with pytest.raises(ValueError, match=f"have 1 time steps .* {name} needs at least {frames_in}"):
        baseline.forecast(CODES[:, :1], lead_times=1)
    with pytest.raises(ValueError, match=r"members=3 needs an ensemble of variable size"):
        baseline.forecast(CODES, lead_times=1, members=3)


@pytest.mark.parametrize("shape", [(384, 384, 13), (2, 64, 64, 49), (480, 300, 24)])
def test_a_baseline_rejects_frames_whose_last_axis_is_time(shape):
    forecaster = sc.load("persistence", dataset="sevir")
    with pytest.raises(ValueError, match=r"seem to have the axes \[H, W, T\]; \[T, H, W\] is needed"):
        forecaster.forecast(np.zeros(shape, np.uint8), 2)
    assert forecaster.forecast(np.moveaxis(np.zeros(shape, np.uint8), -1, -3), 2).shape[-3:] == (2, *shape[-3:-1])


@pytest.mark.parametrize("convert", ["to_physical", "from_physical"])
@pytest.mark.parametrize("fields", [torch.zeros(3, device="meta"), torch.zeros(3).to_sparse()])
def test_conversions_reject_tensors_without_dense_data(convert, fields):
    with pytest.raises(TypeError, match=r"fields are a tensor of .*; give a dense tensor with data"):
        getattr(sc.load("persistence", dataset="sevir"), convert)(fields)


@pytest.mark.parametrize("frames", [CODES, FLOATS], ids=["codes", "floats"])
def test_missing_pixels_have_no_forecast(student: sc.Forecaster, ensemble: sc.Forecaster, frames: np.ndarray):
    """A network needs a pixel in all frames, as `simcast predict` does; a baseline in the frame that it moves."""
    some = frames.copy()
    some[0, -1, :8] = some[1, 0, :, :4] = MISSING_CODE if frames.dtype == np.uint8 else np.nan
    gaps = some == MISSING_CODE if frames.dtype == np.uint8 else np.isnan(some)
    used = gaps.any(axis=1)
    np.testing.assert_array_equal(np.isnan(student.forecast(some, lead_times=7)), used[:, None].repeat(7, axis=1))
    members = ensemble.forecast(some, members=2)
    np.testing.assert_array_equal(np.isnan(members), used[:, None, None].repeat(2, axis=1).repeat(4, axis=2))
    assert (np.isnan(student.to_physical(student.forecast(some))[:, 0]) == used).all()
    for name in ("persistence", "extrapolation"):
        forecast = sc.load(name, dataset="sevir").forecast(some, lead_times=2)
        np.testing.assert_array_equal(np.isnan(forecast), gaps[:, -1:].repeat(2, axis=1))


@pytest.mark.parametrize(("name", "needed"), [("persistence", 1), ("extrapolation", 2)])
def test_baselines_reject_missing_frames_that_they_need(name: str, needed: int):
    """An absent earlier frame is accepted: the motion is fitted to the pairs that exist."""
    baseline = sc.load(name, dataset="sevir")
    for frame in range(1, needed + 1):
        with pytest.raises(ValueError, match=rf"100 % of frame {needed - frame + 1} of {needed}"):
            baseline.forecast(with_missing(CODES, 1, -frame), lead_times=1)
    assert baseline.forecast(with_missing(CODES, 1, -needed - 1), lead_times=1).shape == (2, 1, 16, 16)


def test_baselines_have_the_interface_of_models():
    persistence = sc.load("persistence", dataset="sevir")
    forecast = persistence.forecast(CODES, lead_times=[1, 12])
    expected = FLOATS[:, -1:]
    np.testing.assert_array_equal(forecast, np.repeat(expected, 2, axis=1))
    with pytest.raises(ValueError, match="lead_times is required"):
        persistence.forecast(CODES)


def test_physical_values_are_encoded_back_to_the_same_codes():
    sevir = sc.load("persistence", dataset="sevir")
    codes = np.array([5, 18, 77, 219, 254, 255], dtype=np.uint8)
    physical = sevir.to_physical(codes)
    assert np.isnan(physical[-1]) and physical[0] == 0
    np.testing.assert_array_equal(sevir.from_physical(physical)[1:], codes[1:])
    floats = sevir.to_physical((codes[:-1] / np.float32(255)).astype(np.float32))
    np.testing.assert_allclose(floats, physical[:-1], rtol=1e-5, atol=1e-6)
    masked = np.ma.array(np.nan_to_num(physical), mask=np.isnan(physical))
    for values in (masked, torch.from_numpy(physical).requires_grad_(), physical.astype(">f4")):
        np.testing.assert_array_equal(sevir.from_physical(values), sevir.from_physical(physical))
    assert np.isnan(sevir.to_physical(np.ma.masked_equal(codes, 254))[-2:]).all()
    half = torch.tensor([0.5, torch.nan], dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(sevir.to_physical(half), sevir.to_physical(np.float32([0.5, np.nan])))
    with pytest.raises(ValueError, match=r"forecast contains 77; floats must be encoded values / 255 in \[0, 1\]"):
        sevir.to_physical(np.array([0.3, 77.0]))
    with pytest.raises(ValueError, match="values contain plus infinity"):
        sevir.from_physical(np.array([np.inf]))
    with pytest.raises(TypeError, match="values have dtype complex128"):
        sevir.from_physical(np.array([1j]))
    with pytest.raises(TypeError, match="dtype int64"):
        sevir.to_physical(codes.astype(np.int64))


def test_package_exports_scores_and_configurations(student: sc.Forecaster):
    observed = random_codes(2, 4, seed=1)
    scores = sc.score(observed, student.forecast(CODES), protocol="sevir-global")
    assert 0 <= scores["csi/mean"] <= 1 and scores["mse"] > 0
    forecast = student.forecast(CODES)
    masked = np.ma.masked_less(observed, 100)
    for one, other in (
        ((observed[0], forecast[0]), (observed[:1], torch.from_numpy(forecast[:1]))),
        ((observed, forecast.astype(">f4")), (observed, forecast)),
        ((masked, forecast), (masked.filled(MISSING_CODE), forecast)),
    ):
        np.testing.assert_equal(sc.score(*one), sc.score(*other))  # NaN equals NaN
    with pytest.raises(ValueError, match=r"observation has dimensions \('dim_0'.*a lead time or time"):
        sc.score(xarray.DataArray(observed), forecast)
    with pytest.raises(TypeError, match="observation must be a NumPy array, a torch tensor or a DataArray, got list"):
        sc.score(observed.tolist(), forecast)  # type: ignore[arg-type]
    assert sc.read_config("teacher/sevir", "seed=4").seed == 4
    teacher = sc.read_config("teacher/sevir", ["batch.micro_size=2"])
    assert (teacher.stage, teacher.batch.micro_size) == ("teacher", 2)
    assert list(sc.read_config("pipeline/quickstart").stages)
    with pytest.raises(ConfigError, match="teacher/sevir"):
        sc.read_config("teacher/sevirr")
    names = sc.datasets.dataset_names()
    assert {"sevir", "hko7", "meteonet"} <= set(names)
    assert sc.datasets.read_dataset("sevir").encoding.unit == "kg/m^2"


def test_opens_windows_by_keyword_arguments(root: Path):
    windows = sc.datasets.open_windows(root, dataset="synthetic", split="train", frames=7, max_percent_missing=None)
    assert windows.read(0).shape == (7, 16, 16) and windows.read(0).dtype == np.uint8
    stride = np.int64(2)
    assert len(sc.datasets.open_windows(root, dataset="synthetic", frames=7, window_stride=stride)) >= 1  # type: ignore
    for frames in (True, 7.0, "7", 0):
        with pytest.raises(ConfigError, match=r"frames=.* must be an int of at least 1"):
            sc.datasets.open_windows(root, dataset="synthetic", frames=frames)  # type: ignore[arg-type]
