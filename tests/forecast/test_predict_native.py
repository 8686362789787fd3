"""Forecasts from real radar files of four services: CF-compliant netCDF on the map of the input."""

from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pyproj
import pytest
import xarray as xr

from tests.radar.radar_files import LAEA, compliance_errors, predict, small_model, write_odim
from tests.shared_data import shared

NATIVE = "data/radar/native"
SEQUENCE = {"frames_out": 2, "teacher_frames_out": 2}
# Folder, dataset, issue time, and a location (longitude, latitude, in degrees) inside the domain.
SERVICES = {
    "fmi": ("fmi_pgm", "fmi", datetime(2016, 9, 28, 15, 0), (24.94, 60.17)),
    "knmi": ("knmi_h5", "knmi", datetime(2010, 8, 26, 0, 15), (5.18, 52.10)),
    "mch": ("mch_gif", "mch", datetime(2015, 5, 15, 16, 0), (7.44, 46.95)),
}


def open_checked(path: Path, issue: datetime) -> xr.Dataset:
    """Open a forecast file after checking CF compliance, times and projection."""
    assert compliance_errors(path) == ""
    dataset = xr.open_dataset(path, decode_timedelta=False)
    moment = np.datetime64(issue.replace(tzinfo=None))
    assert dataset.forecast_reference_time.values == moment
    np.testing.assert_array_equal(dataset.time.values, moment + np.array([5, 10]) * np.timedelta64(1, "m"))
    assert {"crs_wkt", "grid_mapping_name"} <= set(dataset.crs.attrs)
    return dataset


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_forecast_from_native_frames_is_on_their_map(service, tmp_path):
    folder, description, issue, (longitude, latitude) = SERVICES[service]
    data = {"dataset": description, "crop": 384}
    model = small_model(tmp_path / "run", data=data, sequence={"frames_in": 4, **SEQUENCE})
    (path,) = predict(model, shared(f"{NATIVE}/{folder}"), "--out", tmp_path / "out", "--write", "nc")
    with open_checked(path, issue) as dataset:
        name = "reflectivity" if service == "fmi" else "rainfall_rate"
        values = dataset[name].values
        x, y = pyproj.Proj(pyproj.CRS.from_cf(dataset.crs.attrs))(longitude, latitude)
        pixel = dataset.sel(x=x, y=y, method="nearest")
        assert abs(float(pixel.longitude) - longitude) < 0.02 and abs(float(pixel.latitude) - latitude) < 0.02
    assert 0.05 < np.isnan(values).mean() < 0.95  # radars cover only part of the domain
    assert np.nanmax(values) > np.nanmin(values)


def test_forecast_of_europe_from_a_real_odim_file(tmp_path):
    """One frame of 4400 x 3800 pixels of 1 km; the model takes one frame with pixels of 8 km."""
    (file,) = shared(f"{NATIVE}/opera_odim").iterdir()
    data = {"dataset": "fmi", "block_mean": 8, "crop": 48}
    model = small_model(tmp_path / "run", data=data, sequence={"frames_in": 1, **SEQUENCE})
    (path,) = predict(model, file.parent, "--out", tmp_path / "out", "--write", "nc")
    with open_checked(path, datetime(2024, 11, 26, 1, 0)) as dataset, h5py.File(file) as native:
        where = native["where"].attrs
        assert dataset.reflectivity.shape == (2, int(where["ysize"]) // 8, int(where["xsize"]) // 8)
        assert pyproj.CRS.from_cf(dataset.crs.attrs) == pyproj.CRS.from_user_input(where["projdef"].decode())
        # The map's upper left corner is half a coarse pixel from the first center.
        corner = pyproj.Proj(where["projdef"].decode())(where["UL_lon"], where["UL_lat"])
        np.testing.assert_allclose([dataset.x.values[0], dataset.y.values[0]], np.add(corner, [4000, -4000]), atol=1.0)
        missing = np.isnan(dataset.reflectivity.values)
    assert 0.05 < missing.mean() < 0.95


def test_forecast_from_thirteen_odim_frames(tmp_path):
    with h5py.File(shared("data/radar/dbz/2024/DBZ_OPERA_20241126.h5"), "r") as file:
        codes, times, (top, left) = file["dbz"][0], file["time"][0], file["crop_yx"][0]
        projection = file.attrs["projection"]
    with h5py.File(next(shared(f"{NATIVE}/opera_odim").iterdir()), "r") as file:
        assert file["where"].attrs["projdef"].decode() == projection == LAEA
    values = np.where(codes == 255, np.nan, np.where(codes == 0, -np.inf, 0.5 * codes - 32.0))
    for k, moment in enumerate(times):
        write_odim(
            tmp_path / f"T_PABV21_{k:02d}.hdf", values[..., k], datetime.fromtimestamp(int(moment), UTC),
            left=1000.0 * left, top=-1000.0 * top,
        )  # fmt: skip
    sequence = {"frames_in": 13, **SEQUENCE}
    model = small_model(tmp_path / "run", data={"dataset": "fmi", "crop": 384}, sequence=sequence)
    (path,) = predict(model, tmp_path, "--pattern", "*.hdf", "--out", tmp_path / "out", "--write", "nc")
    with open_checked(path, datetime(2024, 11, 26, 2, 0)) as dataset:
        assert dataset.reflectivity.shape == (2, 384, 384)
        assert pyproj.CRS.from_cf(dataset.crs.attrs) == pyproj.CRS.from_user_input(projection)
        np.testing.assert_allclose(dataset.x.values[[0, -1]], 1000.0 * left + np.array([500.0, 383_500.0]), atol=0.01)
        np.testing.assert_allclose(dataset.y.values[0], -1000.0 * top - 500.0, atol=0.01)
        np.testing.assert_array_equal(np.isnan(dataset.reflectivity.values[0]), np.isnan(values).any(axis=-1))
