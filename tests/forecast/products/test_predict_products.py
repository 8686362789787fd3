"""`simcast predict` with products from radar files: every format, equal values, and options that are rejected."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import xarray as xr

from simcast_hpc.commands.product_options import numbers, windows
from simcast_hpc.config import ConfigError, SimcastError
from simcast_hpc.forecast.forecast_files import KINDS
from tests.radar.radar_files import compliance_errors, moment, predict, storm, write_odim


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number in range(3):
        write_odim(folder / f"{number}.h5", storm(number), moment(number))
    return folder


def test_all_formats_of_one_forecast(model, frames, tmp_path):
    (tmp_path / "points.csv").write_text("name,lon,lat\nA,24.5,63.6\n", encoding="utf-8")
    options = ["--accumulate", "10,20", "--window=-10:10", "--z-r", "200", "1.6", "--points", tmp_path / "points.csv"]
    options += ["--threshold", "0.5", "--accumulation-threshold", "1", "--neighborhood", "5", "--dtype", "int16"]
    written = predict(
        model, frames, "--out", tmp_path / "out", *options, *(word for kind in KINDS for word in ("--write", kind))
    )
    paths = {path.suffix[1:]: path for path in written}
    assert set(paths) == set(KINDS) and all(path.exists() for path in written)
    assert compliance_errors(paths["nc"]) == ""
    with xr.open_dataset(paths["nc"], decode_timedelta=False) as dataset, xr.open_zarr(paths["zarr"]) as store:
        amount = dataset.rainfall_amount_20min
        np.testing.assert_array_equal(store.rainfall_amount_20min.values, amount.values)
        assert list(dataset.forecast_period_20min.values) == [10.0, 15.0, 20.0]  # the first frame is at -10
        np.testing.assert_allclose(dataset.threshold_rate.values, [0.5])
        with rasterio.open(paths["cog"] / "rainfall_amount_20min_020min.tif") as file:
            error = 1.01 * amount.attrs["simcast_packing_error"]
            np.testing.assert_allclose(file.read(1), amount.values[-1], atol=error)
            exact = file.read(1)
    # The amounts of a model with random weights are beyond the values that the reader accepts.
    with h5py.File(paths["odim"] / "rainfall_amount_20min_020min.h5") as file:
        stored, about = file["dataset1/data1/data"][...], file["dataset1/what"].attrs
        assert (about["starttime"], about["endtime"]) == (b"011000", b"013000")
        np.testing.assert_array_equal(stored[exact > 0], exact[exact > 0])
        np.testing.assert_array_equal(stored == -9999000.0, np.isnan(exact))
    series = json.loads(paths["geojson"].read_text(encoding="utf-8"))["features"][0]["properties"]["series"]
    assert {entry["product"] for entry in series} >= {"reflectivity", "rainfall_amount_20min"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--percentile", "50"], "--percentile requires an ensemble"),
        (["--threshold", "5", "--z-r", "200", "1.6"], "0 or 1, is not a probability"),
        (["--accumulate", "15"], r"--z-r 200 1.6, or set z_r: \{a: 200, b: 1.6\} in the data description"),
        (["--window", "0:40", "--z-r", "200", "1.6"], "--window 0:40 must be from -15 to 20"),
        (["--write", "nc", "--write", "csv"], "requires places"),
        (["--points", "no-such.csv", "--write", "nc", "--write", "csv"], "--points no-such.csv cannot be read"),
        (["--polygon-statistic", "mean"], "--polygon-statistic requires --polygons"),
    ],
)
def test_options_that_are_rejected_before_the_forecast(model, frames, tmp_path, options, message):
    with pytest.raises(SimcastError, match=message):
        predict(model, frames, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [[], ["--fallback", "extrapolation"]])
def test_thresholds_of_one_field_are_rejected_before_frames_are_read(model, frames, tmp_path, monkeypatch, options):
    monkeypatch.setattr("simcast_hpc.radar.frame_files.read_encoded", None)
    for method in [model] if options else [model, "extrapolation"]:
        with pytest.raises(ConfigError, match="0 or 1, is not a probability"):
            predict(method, frames, "--out", tmp_path / "out", "--threshold", "5", "--z-r", "200", "1.6", *options)
    assert not (tmp_path / "out").exists()


def test_lists_of_numbers_and_windows():
    assert numbers(["15,60", " 30 "], "--accumulate") == (15.0, 60.0, 30.0)
    assert windows(["30:90, -30:0"]) == ((30.0, 90.0), (-30.0, 0.0))
    with pytest.raises(ConfigError, match="--accumulate 'hour' is not a number"):
        numbers(["15,hour"], "--accumulate")
    for text in ("30", "30:", "a:b", "1:2:3"):
        with pytest.raises(ConfigError, match="must be START:END"):
            windows([text])
