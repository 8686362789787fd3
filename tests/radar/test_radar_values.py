"""Validation of fields: infinities are missing, rounding noise is 0, and every reader is validated alike."""

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import RadarFrame, RadarGrid, read_frames
from tests.radar.radar_files import LAEA, START, moment, write_cf, write_odim


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


@pytest.mark.parametrize(("unit", "invalid"), [("mm/h", -0.6), ("mm/h", 3276.7), ("dBZ", -9999.0), ("kg/m^2", -1.0)])
def test_single_values_out_of_range_are_missing_and_counted(unit, invalid, caplog):
    """At most 0.1 % of the valid pixels: 2 of 2000, as codes next to the missing code of the Bureau of Meteorology."""
    values = np.ones((41, 50))
    values[40], values[3, :2], values[0, 0] = np.nan, invalid, 0.0
    frame = frame_of(values, unit)
    assert np.isnan(frame.values[3, :2]).all() and np.isnan(frame.values).sum() == 52 and np.nanmax(frame.values) == 1
    assert frame.values.dtype == np.float32 and frame.metadata == {"implausible_pixels": 2}
    assert "a.nc: 2 of 2000 valid pixels are missing because their values" in caplog.text
    values[3, 2] = invalid
    with pytest.raises(DataError, match=r"outside the valid range of .* at 3 of 2000 valid pixels; .*0\.1 %"):
        frame_of(values, unit)


def test_missing_pixels_do_not_count_as_valid():
    """The only valid pixel of 2000 is invalid: the frame is an error and not all missing."""
    values = np.full((40, 50), np.nan)
    values[3, 0] = -0.6
    with pytest.raises(DataError, match="at 1 of 1 valid pixels"):
        frame_of(values, "mm/h")


def test_counts_belong_to_their_frame_and_pass_the_reader_process(tmp_path):
    values = np.ones((2, 40, 50), np.float32)
    values[1, 3, 0] = -0.6
    one, other = read_frames(write_cf(tmp_path / "a.nc", values, [moment(0), moment(1)]))
    assert "implausible_pixels" not in one.metadata and other.metadata["implausible_pixels"] == 1


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
