"""`simcast predict --any-interval` and `--dataset`: what is read from radar files, and what the output records."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import ZRRelation
from simcast_hpc.forecast.choose_frames import FrameRequest
from simcast_hpc.forecast.forecast_files import Publisher
from simcast_hpc.forecast.predictor import Predictor
from simcast_hpc.forecast.watch_folder import FolderWatcher, WatchSettings
from simcast_hpc.forecast.watch_health import HEALTH
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.radar import encoding_of_run
from tests.radar.radar_files import moment, predict, small_model, storm, write_cf, write_odim


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture(scope="module")
def hourly(tmp_path_factory) -> Path:
    """Running sums of an hour, every 5 minutes."""
    folder = tmp_path_factory.mktemp("hourly")
    for number in range(3):
        amount = np.where(np.isfinite(storm(number)), 12.0, storm(number))
        write_odim(folder / f"{number}.h5", amount, moment(number), quantity="ACRR", minutes=60)
    return folder


def inputs_of(path: Path) -> list[dict]:
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        return json.loads(dataset.attrs["simcast_inputs"])


def test_long_accumulation_is_an_error_unless_requested_and_is_recorded(model, hourly, tmp_path):
    with pytest.raises(DataError, match=r"h5 is an accumulation over 60 minutes and the time step of the model is 5"):
        predict(model, hourly, "--out", tmp_path, "--z-r", 200, 1.6)
    (path,) = predict(model, hourly, "--out", tmp_path, "--z-r", 200, 1.6, "--write", "nc", "--any-interval")
    inputs = inputs_of(path)
    assert len(inputs) == 3 and all(one["accumulation_minutes"] == 60.0 for one in inputs)
    assert all((one["quantity"], one["group"]) == ("ACRR", "dataset1/data1") for one in inputs)


@pytest.mark.parametrize("any_interval", [False, True])
def test_watcher_lists_a_long_accumulation_as_a_problem(model, hourly, tmp_path, any_interval):
    trained = load_trained(model)
    encoding = encoding_of_run(trained.config.data, z_r=ZRRelation(a=200.0, b=1.6), any_interval=any_interval)
    predictor = Predictor(trained, encoding, FrameRequest(3, 5.0), (32, 32), 8)
    watcher = FolderWatcher(predictor, Publisher(tmp_path, ("nc",)), hourly, WatchSettings(every_seconds=0.0))
    watcher.scan()  # the frames have been seen
    watcher.scan()
    problems = json.loads((tmp_path / HEALTH).read_text(encoding="utf-8"))["problems"]
    assert any("accumulation over 60 minutes" in problem["problem"] for problem in problems) != any_interval
    assert len(list(tmp_path.glob("*.nc"))) == any_interval


@pytest.fixture(scope="module")
def filtered(tmp_path_factory) -> Path:
    """Frames with the reflectivity in two datasets, the second 10 dB weaker."""
    folder = tmp_path_factory.mktemp("filtered")
    for number in range(3):
        path = write_odim(folder / f"{number}.h5", storm(number), moment(number))
        weaker = write_odim(folder / "weaker", storm(number) - 10.0, moment(number))
        with h5py.File(path, "r+") as file, h5py.File(weaker, "r") as other:
            other.copy("dataset1", file, "dataset2")
        weaker.unlink()
    return folder


def test_dataset_is_read_and_recorded(model, filtered, tmp_path):
    means = {}
    for number in (1, 2):
        (path,) = predict(model, filtered, "--out", tmp_path / str(number), "--write", "nc", "--dataset", number)
        assert {one["group"] for one in inputs_of(path)} == {f"dataset{number}/data1"}
        with xr.open_dataset(path, decode_timedelta=False) as dataset:
            means[number] = float(dataset["reflectivity"].mean())
    assert means[1] != means[2]


@pytest.mark.parametrize("number", [1, 2])
def test_watcher_reads_the_dataset(model, filtered, tmp_path, number):
    trained = load_trained(model)
    predictor = Predictor(
        trained, encoding_of_run(trained.config.data, dataset=number), FrameRequest(3, 5.0), (32, 32), 8
    )
    watcher = FolderWatcher(predictor, Publisher(tmp_path, ("nc",)), filtered, WatchSettings(every_seconds=0.0))
    watcher.scan()
    watcher.scan()
    (path,) = tmp_path.glob("*.nc")
    assert {one["group"] for one in inputs_of(path)} == {f"dataset{number}/data1"}


def test_absent_dataset_is_an_error_that_names_those_that_exist(model, filtered, tmp_path):
    first = filtered / "0.h5"
    with pytest.raises(DataError, match=r"dataset3; the datasets are dataset1 \(DBZH\), dataset2 \(DBZH\)"):
        predict(model, first, "--out", tmp_path, "--dataset", 3)
    path = write_cf(tmp_path / "a.nc", np.ones((1, 40, 52), np.float32), [moment(0)])
    with pytest.raises(DataError, match=r"a\.nc is CF netCDF without numbered datasets; --dataset applies to ODIM"):
        predict(model, path, "--out", tmp_path, "--dataset", 1)
