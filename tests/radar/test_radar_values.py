"""Validation of fields: infinities are missing, rounding noise is 0, and every reader is validated alike."""

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import RadarFrame, RadarGrid, read_frames
from tests.radar.radar_files import LAEA, START, write_cf, write_odim


def frame_of(values: list[list[float]], unit: str) -> RadarFrame:
    array = np.array(values, np.float32)
    return RadarFrame(array, unit, START, RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, *array.shape), Path("a.nc"))


@pytest.mark.parametrize("unit", ["mm/h", "kg/m^2"])
def test_infinities_of_rates_and_liquid_are_missing(unit, caplog):
    with caplog.at_level(logging.WARNING):
        values = frame_of([[np.inf, 1.0], [-np.inf, 0.0]], unit).values
    np.testing.assert_array_equal(values, [[np.nan, 1.0], [np.nan, 0.0]])
    assert f"a.nc: 2 infinite pixels in {unit} are missing" in caplog.text


def test_plus_infinity_of_dbz_is_missing_and_minus_infinity_is_no_echo():
    np.testing.assert_array_equal(
        frame_of([[np.inf, 1.0], [-np.inf, -9.0]], "dBZ").values, [[np.nan, 1.0], [-np.inf, -9]]
    )


def test_rejects_a_field_of_infinities():
    with pytest.raises(DataError, match="all pixels are missing"):
        frame_of([[np.inf, np.nan], [np.inf, np.inf]], "mm/h")


@pytest.mark.parametrize("unit", ["mm/h", "kg/m^2"])
def test_rounding_noise_is_no_rain_and_larger_negative_values_are_an_error(unit):
    values = frame_of([[-1e-7, 2.5], [-9e-4, -0.0]], unit).values
    np.testing.assert_array_equal(values, [[0.0, 2.5], [0.0, 0.0]])
    assert values.dtype == np.float32
    with pytest.raises(DataError, match=r"values from -0\.0011 to 2\.5 are outside the valid range"):
        frame_of([[-1.1e-3, 2.5]], unit)


def test_single_negative_rates_are_missing(caplog):
    values = np.ones((40, 50))
    values[3, :2] = -0.6, 2.5  # as in accumulations of the Bureau of Meteorology
    with caplog.at_level(logging.WARNING):
        read = frame_of(values, "mm/h").values
    assert np.isnan(read[3, 0]) and np.isnan(read).sum() == 1 and read[3, 1] == 2.5
    assert "1 negative pixels in mm/h are missing" in caplog.text
    with pytest.raises(DataError, match="outside the valid range"):
        frame_of(np.where(np.arange(50) < 3, -0.6, values), "mm/h")


def test_small_negative_dbz_is_a_measurement():
    np.testing.assert_array_equal(frame_of([[-1e-4, 2.5]], "dBZ").values, np.array([[-1e-4, 2.5]], np.float32))


def test_infinities_of_files_are_missing(tmp_path):
    values = np.array([[[np.inf, 1.0], [-1e-7, np.nan]]], np.float32)
    (frame,) = read_frames(write_cf(tmp_path / "a.nc", values, [START]))
    np.testing.assert_array_equal(frame.values, [[np.nan, 1.0], [0.0, np.nan]])
    path = write_odim(tmp_path / "a.h5", np.array([[1.0, 2.0], [3.0, 4.0]]), START, quantity="RATE")
    with h5py.File(path, "r+") as file:
        file["dataset1/data1/data"][0] = [np.inf, -1e-7]
    (frame,) = read_frames(path)
    np.testing.assert_array_equal(frame.values, [[np.nan, 0.0], [3.0, 4.0]])


def test_grids_of_too_many_pixels_are_rejected():
    values = np.broadcast_to(np.float32(0), (8193, 8193))
    with pytest.raises(DataError, match=r"a\.nc declares 8193 x 8193 pixels; 1 to 67108864 are valid"):
        RadarFrame(values, "dBZ", START, RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, 8193, 8193), Path("a.nc"))
