"""Arrays that look valid but have another meaning: missing codes as floats, decibels, physical units, other grids."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

import simcast_hpc as sc
from simcast_hpc.data.dataset_spec import read_spec
from tests.archives import random_codes

CODES = random_codes(1, 3, size=16, seed=2)[0]  # [T, H, W], without missing pixels
MISSING = CODES.copy()
MISSING[:, :4] = 255


@pytest.fixture(scope="module")
def student(runs: Path) -> sc.Forecaster:
    return sc.load(runs / "student", device="cpu")  # synthetic: VIL, pixels of 8 km


@pytest.fixture(scope="module")
def rain() -> sc.Forecaster:
    return sc.load("persistence", dataset="knmi")  # mm/h, pixels of 1 km


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_missing_codes_divided_by_255_are_rejected(student: sc.Forecaster, rain: sc.Forecaster, dtype):
    floats = (MISSING.astype(dtype) / dtype(255)).astype(dtype)
    for frames in (floats, torch.from_numpy(floats), xarray.DataArray(floats, dims=("time", "y", "x"))):
        with pytest.raises(ValueError, match=r"float 1 = 255 / 255, the missing code; give uint8"):
            student.forecast(frames)
    with pytest.raises(ValueError, match="float 1 = 255 / 255"):
        rain.forecast(floats * dtype(1), 2)
    with pytest.raises(ValueError, match="forecast contains the float 1 = 255 / 255"):
        student.to_physical(floats)
    with pytest.raises(ValueError, match="float observations contain 1 = 255 / 255"):
        sc.score(floats, CODES, protocol="sevir-global")
    # NaN is the valid form, and a mean absolute error of 0.1 remains one.
    valid = np.where(MISSING == 255, np.nan, np.float32(MISSING % 200) / 255).astype(np.float32)
    assert sc.score(valid, valid + np.float32(0.1), protocol="sevir-global")["mae"] == pytest.approx(0.1, abs=1e-6)


def test_forecasts_may_reach_one(student: sc.Forecaster):
    """A forecast clipped to 1 has the value of encoded value 254, exp((254 - 83.9) / 38.9) kg/m^2."""
    forecast = np.array([[[0.123, 0.5, 1.0]]], np.float32)
    assert student.to_physical(forecast)[0, 0, 2] == pytest.approx(79.26, abs=0.01)
    observed = np.array([[[31, 128, 254]]], np.uint8)
    assert sc.score(observed, forecast, protocol="sevir-global")["coverage"] == 1


def test_negative_and_implausible_amounts_are_rejected(student: sc.Forecaster, rain: sc.Forecaster):
    for forecaster, unit in ((student, r"kg/m\^2, 0 to 500"), (rain, "mm/h, 0 to 3000")):
        for value in (-15.0, -0.002, -np.inf, -9999.0, 5000.0):
            with pytest.raises(ValueError, match=rf"values contain {value:g}, outside of the valid range of {unit}"):
                forecaster.from_physical(np.array([[1.0, value]]))
        noise = forecaster.from_physical(np.array([-0.0009, 0.0, np.nan]))
        np.testing.assert_array_equal(noise, [0, 0, 255])
    reflectivity = sc.load("persistence", dataset="meteonet")
    assert (
        reflectivity.from_physical(np.array([-31.5, -np.inf])).tolist()
        == reflectivity.from_physical(np.array([-31.5, -90.0])).tolist()
    )
    with pytest.raises(ValueError, match="values contain -9999, outside of the valid range of dBZ, -100 to 100"):
        reflectivity.from_physical(np.array([20.0, -9999.0]))


def test_pysteps_method_rejects_the_other_transform(rain: sc.Forecaster):
    decibel = np.full((3, 16, 16), -15.0)
    decibel[:, 4:8] = 10.0  # 10 mm/h
    for dataset in ("knmi", "meteonet"):
        with pytest.raises(ValueError, match=r"values contain -15, .*10 log10 of an amount is in dB"):
            sc.PystepsNowcast(sc.load("persistence", dataset=dataset), unit="mm/h")(decibel, None, 2)
    np.testing.assert_allclose(sc.PystepsNowcast(rain, transform="dB")(decibel, None, 2)[:, 5, 5], 10.0, atol=0.1)
    with pytest.raises(ValueError, match=r"values contain 1e\+06, outside of the valid range of mm/h"):
        sc.PystepsNowcast(rain, transform="dB")(np.full((3, 16, 16), 60.0), None, 2)  # 60 mm/h, not in dB


def grid_array(values: np.ndarray, y, x, units: tuple[str, str] = ("m", "m"), names=("y", "x"), **attrs):
    coords = {name: (name, axis, {"units": unit}) for name, axis, unit in zip(names, (y, x), units, strict=True)}
    return xarray.DataArray(values, dims=("time", *names), coords=coords, attrs=attrs)


DOWN, RIGHT = -np.arange(16) * 8000.0, np.arange(16) * 8000.0
UNEVEN = np.arange(16) ** 2 * 1000.0


@pytest.mark.parametrize(
    ("y", "x", "units", "names", "message"),
    [
        (DOWN / 8, RIGHT / 8, ("m", "m"), ("y", "x"), r"pixels of 1 km and the model was trained on 8 km"),
        (DOWN / 8, RIGHT / 8, ("km", "km"), ("y", "x"), r"pixels of 1e\+03 km"),
        (DOWN * 2, RIGHT / 2, ("m", "m"), ("y", "x"), r"pixels of 4 x 16 km .* square pixels of 8 km"),
        (DOWN, UNEVEN, ("m", "m"), ("y", "x"), r"x is not evenly spaced \(steps from 1000 to 29000\)"),
        (UNEVEN, RIGHT, ("", ""), ("y", "x"), "y is not evenly spaced"),
        (DOWN * np.nan, RIGHT, ("m", "m"), ("y", "x"), "y is not evenly spaced"),
        (DOWN * 0, RIGHT, ("m", "m"), ("y", "x"), "y is not evenly spaced"),
        (DOWN, RIGHT / 1e5, ("m", "degrees_east"), ("y", "x"), "y is in m and x in degree; both must be"),
        # 0.01 degrees at the equator are 1.1 km.
        (0.08 - np.arange(16) / 100, np.arange(16) / 100, ("", ""), ("lat", "lon"), r"pixels of 1\.11 km"),
    ],
)
def test_grid_coordinates_are_compared_with_the_model(student: sc.Forecaster, y, x, units, names, message: str):
    with pytest.raises(ValueError, match=message):
        student.forecast(grid_array(CODES, y, x, units, names))


def test_other_pixel_sizes_are_accepted_on_demand(student: sc.Forecaster):
    expected = student.forecast(CODES)
    fine = student.forecast(grid_array(CODES, DOWN / 8, RIGHT / 8), any_spacing=True)
    np.testing.assert_array_equal(fine.values, expected)
    for y, x, units in ((DOWN * 1.1, RIGHT, ("m", "m")), (DOWN / 1000, RIGHT / 1000, ("km", "kilometers"))):
        np.testing.assert_array_equal(student.forecast(grid_array(CODES, y, x, units)).values, expected)
    numbers = student.forecast(grid_array(CODES, np.arange(16), np.arange(16), ("", "1")))
    np.testing.assert_array_equal(numbers.values, expected)
    # 0.1 degrees at 60 degrees north are 11.1 km by 5.6 km, the area of a pixel of 7.9 km; longitudes pass 180.
    north = grid_array(CODES, 60.8 - np.arange(16) / 10, 179 + np.arange(16) / 10, ("degrees_north", "degrees_east"))
    np.testing.assert_array_equal(student.forecast(north).values, expected)


def test_rows_from_south_to_north_are_reversed_for_the_model(student: sc.Forecaster):
    expected = student.forecast(CODES)
    south_first = student.forecast(grid_array(CODES[:, ::-1], DOWN[::-1], RIGHT))
    np.testing.assert_array_equal(south_first.values, expected[:, ::-1])
    np.testing.assert_array_equal(south_first.y, DOWN[::-1])
    east_first = student.forecast(grid_array(CODES[:, :, ::-1], DOWN, RIGHT[::-1]))
    np.testing.assert_array_equal(east_first.values, expected[:, :, ::-1])
    assert np.abs(student.forecast(CODES[:, ::-1]) - expected[:, ::-1]).max() > 0


def test_units_of_a_data_array_must_be_those_of_the_values(student: sc.Forecaster, rain: sc.Forecaster):
    drizzle = np.full((3, 16, 16), 0.4, np.float32)
    labeled = lambda units, values=drizzle: xarray.DataArray(  # noqa: E731
        values, dims=("time", "y", "x"), attrs={"units": units}
    )
    for units in ("mm h-1", "mm/h", "dBZ", "kg m-2", "%"):
        with pytest.raises(
            ValueError, match=rf"units='{units}', and forecast needs uint8 .* Forecaster\.from_physical"
        ):
            rain.forecast(labeled(units), 1)
        with pytest.raises(ValueError, match="and to_physical needs uint8"):
            rain.to_physical(labeled(units))
    with pytest.raises(ValueError, match="units='dBZ', and forecast needs"):
        rain.forecast(labeled("dBZ", CODES), 1)
    for fields in (labeled("1"), labeled(""), labeled("mm h-1", CODES), labeled("kg m-2 h-1", CODES)):
        np.testing.assert_array_equal(rain.forecast(fields, 1).values, rain.forecast(fields.values, 1))
    # 0.4 mm/h is 10 log10(0.4) = -3.98 dB
    codes = rain.from_physical(labeled("mm h**-1"))
    np.testing.assert_array_equal(codes, read_spec("knmi").encoding.encode(drizzle))
    for units in ("m s-1", "kg m-2", "dBZ", "mm", "1"):
        with pytest.raises(ValueError, match=f"units='{units}', and from_physical needs mm/h"):
            rain.from_physical(labeled(units))
    with pytest.raises(ValueError, match="units='mm h-1', and from_physical needs"):
        student.from_physical(labeled("mm h-1"))
