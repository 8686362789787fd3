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
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        sc.laod  # noqa: B018


def test_every_input_type_gives_the_same_forecast(student: sc.Forecaster, runs: Path):
    expected = load_trained(runs / "student").forecast(torch.from_numpy(CODES), frames_out=4).numpy()
    big_endian, strided = FLOATS.astype(">f4"), np.asfortranarray(CODES)
    masked = np.ma.masked_equal(CODES, MISSING_CODE)
    for frames in (CODES, FLOATS, FLOATS.astype(np.float64), big_endian, strided, masked, masked.filled(255)):
        forecast = student.forecast(frames)
        assert isinstance(forecast, np.ndarray) and forecast.dtype == np.float32
        np.testing.assert_array_equal(forecast, expected)
    np.testing.assert_array_equal(student.forecast(np.ma.masked_invalid(FLOATS)), expected)
    tensor = student.forecast(torch.from_numpy(CODES))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    np.testing.assert_allclose(student.forecast(CODES[1]), expected[1], atol=1e-6)


def test_lead_times_select_and_extend_the_horizon(student: sc.Forecaster):
    complete = student.forecast(CODES)
    np.testing.assert_array_equal(student.forecast(CODES, lead_times=2), complete[:, :2])
    np.testing.assert_array_equal(student.forecast(CODES, lead_times=[1, 4]), complete[:, [0, 3]])
    rolled_out = student.forecast(CODES, lead_times=7)
    assert rolled_out.shape == (2, 7, 16, 16)
    np.testing.assert_array_equal(rolled_out[:, :4], complete)


def test_members_are_the_same_for_codes_and_floats(ensemble: sc.Forecaster):
    assert ensemble.forecast(CODES).shape == (2, 5, 4, 16, 16)
    members = ensemble.forecast(CODES, members=3)
    assert members.shape == (2, 3, 4, 16, 16)
    np.testing.assert_array_equal(ensemble.forecast(FLOATS, members=3), members)
    np.testing.assert_array_equal(ensemble.forecast(CODES, lead_times=[2], members=3), members[:, :, 1:2])
    assert ensemble.forecast(CODES[0], members=1).shape == (1, 4, 16, 16)
    assert np.abs(members[:, 0] - members[:, 1]).max() > 0


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
        (np.full_like(FLOATS, np.nan), ValueError, "every value of frames is NaN"),
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


@pytest.mark.parametrize("lead_times", [0, -1, [], [2, 1], [1, 1], [0, 1], [1.5]])
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
    with pytest.raises(ConfigError, match="needs dataset="):
        sc.load("persistence")
    with pytest.raises(ConfigError, match="is for baselines"):
        sc.load(runs / "student", dataset="sevir")
    with pytest.raises(ConfigError, match="is not a finished training run"):
        sc.load(tmp_path)
    with pytest.raises(ConfigError, match="run of stage autoencoder; a finished"):
        sc.load(runs / "autoencoder")


def test_baselines_have_the_interface_of_models():
    persistence = sc.load("persistence", dataset="sevir")
    forecast = persistence.forecast(CODES, lead_times=[1, 12])
    expected = np.nan_to_num(FLOATS[:, -1:])
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
    with pytest.raises(TypeError, match="dtype int64"):
        sevir.to_physical(codes.astype(np.int64))


def test_package_exports_scores_and_configurations(student: sc.Forecaster):
    observed = random_codes(2, 4, seed=1)
    scores = sc.score(observed, student.forecast(CODES), protocol="sevir-global")
    assert 0 <= scores["csi/mean"] <= 1 and scores["mse"] > 0
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
