"""From real files of four services to netCDF that the CF checker passes and xarray opens."""

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
# Folder, description, issue time, a place (longitude, latitude, degrees) that lies in the domain.
SERVICES = {
    "fmi": ("fmi_pgm", "fmi", datetime(2016, 9, 28, 15, 0), (24.94, 60.17)),
    "knmi": ("knmi_h5", "knmi", datetime(2010, 8, 26, 0, 15), (5.18, 52.10)),
    "mch": ("mch_gif", "mch", datetime(2015, 5, 15, 16, 0), (7.44, 46.95)),
}


def checked(path: Path, issue: datetime) -> xr.Dataset:
    """Return the opened file after what every file has to hold."""
    assert compliance_errors(path) == ""
    found = xr.open_dataset(path, decode_timedelta=False)
    moment = np.datetime64(issue.replace(tzinfo=None))
    assert found.forecast_reference_time.values == moment
    np.testing.assert_array_equal(found.time.values, moment + np.array([5, 10]) * np.timedelta64(1, "m"))
    assert {"crs_wkt", "grid_mapping_name"} <= set(found.crs.attrs)
    return found


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_four_native_frames_give_a_forecast_on_their_map(service, tmp_path):
    folder, dataset, issue, (east, north) = SERVICES[service]
    data = {"dataset": dataset, "crop": 384}
    model = small_model(tmp_path / "run", data=data, sequence={"frames_in": 4, **SEQUENCE})
    (path,) = predict(model, shared(f"{NATIVE}/{folder}"), "--out", tmp_path / "out", "--write", "nc")
    with checked(path, issue) as found:
        name = "reflectivity" if service == "fmi" else "rainfall_rate"
        values = found[name].values
        x, y = pyproj.Proj(pyproj.CRS.from_cf(found.crs.attrs))(east, north)
        there = found.sel(x=x, y=y, method="nearest")
        assert abs(float(there.longitude) - east) < 0.02 and abs(float(there.latitude) - north) < 0.02
    assert 0.05 < np.isnan(values).mean() < 0.95  # a radar sees neither everything nor nothing
    assert np.nanmax(values) > np.nanmin(values)


def test_the_real_odim_file_gives_a_forecast_of_all_europe(tmp_path):
    """One frame of 4400 x 3800 pixels of 1 km, to a model that sees one frame in pixels of 8 km."""
    (file,) = shared(f"{NATIVE}/opera_odim").iterdir()
    data = {"dataset": "fmi", "block_mean": 8, "crop": 48}
    model = small_model(tmp_path / "run", data=data, sequence={"frames_in": 1, **SEQUENCE})
    (path,) = predict(model, file.parent, "--out", tmp_path / "out", "--write", "nc")
    with checked(path, datetime(2024, 11, 26, 1, 0)) as found, h5py.File(file) as native:
        where = native["where"].attrs
        assert found.reflectivity.shape == (2, int(where["ysize"]) // 8, int(where["xsize"]) // 8)
        assert pyproj.CRS.from_cf(found.crs.attrs) == pyproj.CRS.from_user_input(where["projdef"].decode())
        # The map's upper left corner is half a coarse pixel from the first centre.
        corner = pyproj.Proj(where["projdef"].decode())(where["UL_lon"], where["UL_lat"])
        np.testing.assert_allclose([found.x.values[0], found.y.values[0]], np.add(corner, [4000, -4000]), atol=1.0)
        missing = np.isnan(found.reflectivity.values)
    assert 0.05 < missing.mean() < 0.95


def test_thirteen_odim_frames_of_opera_give_a_forecast(tmp_path):
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
    with checked(path, datetime(2024, 11, 26, 2, 0)) as found:
        assert found.reflectivity.shape == (2, 384, 384)
        assert pyproj.CRS.from_cf(found.crs.attrs) == pyproj.CRS.from_user_input(projection)
        np.testing.assert_allclose(found.x.values[[0, -1]], 1000.0 * left + np.array([500.0, 383_500.0]), atol=0.01)
        np.testing.assert_allclose(found.y.values[0], -1000.0 * top - 500.0, atol=0.01)
        np.testing.assert_array_equal(np.isnan(found.reflectivity.values[0]), np.isnan(values).any(axis=-1))
