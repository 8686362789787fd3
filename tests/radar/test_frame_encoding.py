"""Encoding of radar frames for a model: averaging, unit conversion, pixel size, and the error of each mismatch."""

from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataConfig, DataError
from simcast_hpc.data.dataset_spec import Coverage, PixelGrid, ZRRelation
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.radar import ModelEncoding, RadarFrame, RadarGrid, encode_frame, encoding_of_run
from simcast_hpc.radar.frame_description import encoding_of_frames
from simcast_hpc.radar.frame_files import list_files, require_unique_times
from tests.radar.radar_files import LAEA, START

GRID = RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, 2, 4)


def frame(values, unit="mm/h") -> RadarFrame:
    return RadarFrame(np.asarray(values, np.float32), unit, START, GRID, Path("0100.h5"))


def encoding_of(dataset: str, *, block_mean: int = 1, **options) -> ModelEncoding:
    return encoding_of_run(DataConfig(dataset=dataset, block_mean=block_mean), **options)


@pytest.mark.parametrize(("shape", "padded"), [((12, 15), True), ((16, 16), False), ((40, 16), False), ((0, 3), False)])
def test_frames_of_an_import_are_padded_to_its_grid(shape, padded):
    """With rows at the south and columns at the east, so that baselines forecast as in ``evaluate``."""
    spec = encoding_of("fmi").spec.model_copy(
        update={
            "grid": PixelGrid(height=16, width=16, spacing_km=1.0),
            "coverage": Coverage(file=Path("coverage.h5"), min_percent=1.0, percent=50.0),
        }
    )
    codes = np.ones((2, *shape), np.uint8)
    made = ModelEncoding(spec, 5.0, 1.0).padded(codes)
    assert made.shape == ((2, 16, 16) if padded else codes.shape)
    assert (made[:, : shape[0], : shape[1]] == 1).all() and (made == 1).sum() == codes.size
    if padded:
        assert np.isnan(ModelEncoding(spec, 5.0, 1.0).padded(codes.astype(np.float32))[:, 12:]).all()
        without = ModelEncoding(spec.model_copy(update={"coverage": None}), 5.0, 1.0)
        assert without.padded(codes).shape == codes.shape


def test_a_folder_without_matching_files_names_those_in_subfolders(tmp_path):
    (tmp_path / "2024" / "11").mkdir(parents=True)
    for name in ("a.h5", "b.h5", ".hidden.h5", "c.txt"):
        (tmp_path / "2024" / "11" / name).touch()
    with pytest.raises(
        ConfigError, match=r"'\*\.h5'; 2 matching files are in its subfolders, which --pattern '\*\*/\*\.h5'"
    ):
        list_files([tmp_path], "*.h5")
    assert len(list_files([tmp_path], "**/*.h5")) == 2
    with pytest.raises(ConfigError, match=r"'\*\.nc'$"):
        list_files([tmp_path], "*.nc")


def test_rejects_two_files_of_one_time():
    with pytest.raises(DataError, match=r"b and a both contain the time 2024-11-26 01:00:00"):
        require_unique_times({Path("a"): [START], Path("b"): [START]})


def test_averages_in_mm_per_hour_over_valid_pixels():
    values = [[1.0, 3.0, np.nan, np.nan], [2.0, np.nan, np.nan, np.nan]]
    encoding = encoding_of("knmi", block_mean=2)
    encoded = encode_frame(frame(values), encoding)
    assert encoded.codes.tolist() == [[int(encoding.spec.encoding.encode(np.array(2.0))), MISSING_CODE]]
    assert encoded.grid.shape == (1, 2) and encoded.grid.spacing_x == 2000.0


def test_averages_reflectivity_as_linear_z():
    values = [[30.0, -np.inf, 30.0, 30.0], [-np.inf, -np.inf, 30.0, 30.0]]
    encoded = encode_frame(frame(values, "dBZ"), encoding_of("fmi", block_mean=2))
    # A quarter of Z is 6.02 dB less, rounded to half decibels.
    assert encoded.codes.tolist() == [[round(2 * (24.0 + 32)), 2 * (30 + 32)]]


def test_converts_reflectivity_to_rain_rate_by_marshall_palmer_or_a_given_relation():
    values = np.full((2, 4), 10 * np.log10(200.0) + 16.0)  # 10 mm/h
    np.testing.assert_allclose(encoding_of("knmi").linear(frame(values, "dBZ")), 10.0, rtol=1e-5)
    expected = (10 ** ((10 * np.log10(200.0) + 16.0) / 10) / 223.0) ** (1 / 1.53)
    given = encoding_of("knmi", z_r=ZRRelation(a=223.0, b=1.53))
    np.testing.assert_allclose(given.linear(frame(values, "dBZ")), expected, rtol=1e-5)


def test_converts_rain_rate_to_reflectivity_only_by_the_relation_of_the_description():
    rain = frame(np.full((2, 4), 10.0))
    with pytest.raises(DataError, match=r"in mm/h and the model fmi in dBZ; .*give a relation with --z-r A B"):
        encoding_of("fmi").linear(rain)
    encoding = encoding_of("hko7")
    reflectivity = encoding.from_linear(encoding.linear(rain))
    np.testing.assert_allclose(reflectivity, encoding.spec.z_r.reflectivity(10.0), rtol=1e-5)


def test_rejects_rain_rate_for_a_model_of_vertically_integrated_liquid():
    with pytest.raises(
        DataError, match=r"in mm/h and the model sevir in kg/m\^2; no option .*docs/guides/own-radar\.md"
    ):
        encoding_of("sevir").linear(frame(np.ones((2, 4))))


def test_rejects_another_pixel_size_unless_allowed():
    finer = RadarGrid(LAEA, 0.0, 0.0, 700.0, 700.0, 2, 4)
    with pytest.raises(DataError, match=r"pixels of 0\.7 km and the model was trained on 1 km.*--any-spacing"):
        encoding_of("knmi").factor(finer)
    assert encoding_of("knmi", any_spacing=True).factor(finer) == 1
    oblong = RadarGrid(LAEA, 0.0, 0.0, 2000.0, 500.0, 2, 4)  # the area of a pixel of 1 km
    with pytest.raises(DataError, match=r"pixels of 2 x 0\.5 km .* square pixels of 1 km.*--any-spacing"):
        encoding_of("knmi").factor(oblong)
    assert encoding_of("mrms-4km").factor(GRID) == 4


def test_forecast_between_two_codes_lies_between_their_values():
    encoding = encoding_of("knmi")
    forecast = np.array([0.0, 0.5, 1.0, 100.0, 100.5, 101.0, 254.0]) / 255
    values = encoding.linear_of_forecast(forecast.astype(np.float32))
    table = encoding.spec.encoding.decode(np.array([0, 1, 100, 101, 254], np.uint8))
    np.testing.assert_allclose(values[[0, 2, 3, 5, 6]], table, rtol=1e-5)
    assert 0 < values[1] < 0.1 and table[2] < values[4] < table[3]


@pytest.mark.parametrize(("unit", "expected"), [("mm/h", (0.5, 2.0, 5.0, 10.0, 30.0)), ("kg/m^2", (0.5, 3, 6, 12, 32))])
def test_thresholds_are_those_stated(unit, expected):
    grid = RadarGrid("+proj=laea +lat_0=50", 0.0, 0.0, 1000.0, 1000.0, 8, 8)
    assert encoding_of_frames(unit, grid, step_minutes=5.0).thresholds() == expected
