"""CF files on a rotated pole: positions by spherical trigonometry, from the file to the forecast file and the map."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.forecast.cf_dataset import as_dataset
from simcast_hpc.forecast.forecast_fields import Forecast
from simcast_hpc.radar import RadarFrame, read_frames
from simcast_hpc.report.map_axes import MapAxes
from tests.radar.radar_files import START, compliance_errors
from tests.radar.test_cf_reading import RAIN, read

POLE = {
    "grid_mapping_name": "rotated_latitude_longitude",
    "grid_north_pole_latitude": 39.25,
    "grid_north_pole_longitude": -162.0,
}
AXES = {"y": ("grid_latitude", "degrees"), "x": ("grid_longitude", "degrees")}
Y, X = np.array([3.0, 2.0]), np.array([-1.0, 0.0, 1.0])


def position(grid_latitude: Any, grid_longitude: Any, turn: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return latitude and longitude in degrees of positions relative to POLE, on a sphere."""
    rows, columns, pole = np.deg2rad(grid_latitude), np.deg2rad(np.asarray(grid_longitude) - turn), np.deg2rad(39.25)
    latitude = np.arcsin(np.sin(rows) * np.sin(pole) + np.cos(rows) * np.cos(columns) * np.cos(pole))
    longitude = np.arctan2(
        np.cos(rows) * np.sin(columns), np.cos(rows) * np.cos(columns) * np.sin(pole) - np.sin(rows) * np.cos(pole)
    )
    return np.rad2deg(latitude), (np.rad2deg(longitude) - 162.0 + 180.0 + 180.0) % 360.0 - 180.0


def forecast_of(frame: RadarFrame) -> Forecast:
    return Forecast(START, 5.0, frame.grid, "mm/h", -32.0, frame.values, (0.5,), np.stack([[frame.values] * 2]))


@pytest.mark.parametrize("over", [{}, {"earth_radius": 6_371_229.0}, {"north_pole_grid_longitude": 20.0}])
def test_positions_of_the_forecast_file(tmp_path, over):
    frame = read(tmp_path, axes=AXES, y=Y, x=X, mapping=POLE | over)
    assert frame.grid.unit == "degree" and (frame.grid.left, frame.grid.top) == (-1.5, 3.5)
    np.testing.assert_array_equal(frame.values, RAIN)
    dataset = as_dataset(forecast_of(frame))
    assert dataset.rainfall_rate.dims == ("time", "rlat", "rlon")
    np.testing.assert_array_equal(dataset.rlat, Y)
    np.testing.assert_array_equal(dataset.rlon, X)
    latitude, longitude = position(Y[:, None], X[None], over.get("north_pole_grid_longitude", 0.0))
    np.testing.assert_allclose(dataset.latitude, latitude, atol=1e-5)
    np.testing.assert_allclose(dataset.longitude, longitude, atol=1e-5)
    assert dataset.crs.attrs["grid_mapping_name"] == "rotated_latitude_longitude"
    assert dataset.crs.attrs["grid_north_pole_latitude"] == 39.25
    # One degree of the rotated sphere at latitude 2.5: 111.2 km to the north, 111.2 cos(2.5) to the east.
    assert frame.grid.spacing_km == pytest.approx(111.195 * np.cos(np.deg2rad(2.5)) ** 0.5)


def test_the_forecast_file_passes_the_checker_and_is_read_back(tmp_path):
    frame = read(tmp_path, axes=AXES, y=Y, x=X, mapping=POLE)
    path: Path = tmp_path / "forecast.nc"
    as_dataset(forecast_of(frame)).to_netcdf(path, engine="h5netcdf")
    assert not compliance_errors(path)
    again = read_frames(path)
    assert len(again) == 2 and not again[0].grid.difference(frame.grid)
    np.testing.assert_array_equal(again[0].values, RAIN)


def test_the_map_has_geographic_lines(tmp_path):
    frame = read(tmp_path, axes=AXES, y=Y, x=X, mapping=POLE)
    degrees = MapAxes(frame.grid)._degrees
    assert degrees is not None
    latitude, longitude = position(np.linspace(3.5, 1.5, 61)[:, None], np.linspace(-1.5, 1.5, 61)[None])
    np.testing.assert_allclose(degrees[0], longitude, atol=1e-5)
    np.testing.assert_allclose(degrees[1], latitude, atol=1e-5)


def test_rejects_a_rotated_grid_without_its_pole(tmp_path):
    with pytest.raises(DataError, match=r"rain is on a rotated-pole grid \(y, x\) without a grid_mapping of rotated"):
        read(tmp_path, axes=AXES, y=Y, x=X)
    latitude_longitude = {"grid_mapping_name": "latitude_longitude"}
    with pytest.raises(DataError, match="without a grid_mapping of rotated_latitude_longitude"):
        read(tmp_path, axes=AXES, y=Y, x=X, mapping=latitude_longitude)


def test_a_rotated_pole_decides_about_axes_that_are_named_latitude(tmp_path):
    axes = {"y": ("latitude", "degrees_north"), "x": ("longitude", "degrees_east")}
    frame = read(tmp_path, axes=axes, y=Y, x=X, mapping=POLE)
    assert "+proj=ob_tran" in frame.grid.projection
    np.testing.assert_array_equal(frame.values, RAIN)
