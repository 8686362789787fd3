"""Grid mappings of CF files that are incomplete, unknown or contradict themselves."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import read_frames
from tests.radar.test_cf_reading import METERS, center, cf_dataset

LAMBERT = {
    "grid_mapping_name": "lambert_azimuthal_equal_area", "latitude_of_projection_origin": 52.0,
    "longitude_of_projection_origin": 10.0, "false_easting": 0.0, "false_northing": 0.0,
    "semi_major_axis": 6378137.0, "inverse_flattening": 298.257223563,
}  # fmt: skip
# The upper left pixel is at the origin of the projection.
AXES: dict[str, Any] = {"axes": METERS, "x": (0.0, 1000.0, 2000.0), "y": (0.0, -1000.0)}
TEXT = "+proj=laea +lat_0=52 +lon_0=10 +datum=WGS84 +units=m"


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in LAMBERT.items() if key not in names}


def grid_mapping(tmp_path: Path, mapping: dict[str, Any], axes: dict[str, Any] = AXES) -> Any:
    cf_dataset(mapping=mapping, **axes).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    (frame,) = read_frames(tmp_path / "a.nc")
    return frame


@pytest.mark.parametrize(
    "text",
    [
        {"crs_wkt": pyproj.CRS.from_epsg(3067).to_wkt()}, {"spatial_ref": pyproj.CRS.from_epsg(3067).to_wkt()},
        {"proj4": TEXT.replace("lon_0=10", "lon_0=11")}, {"crs_wkt": pyproj.CRS(TEXT.replace("52", "51")).to_wkt()},
        {"crs_wkt": pyproj.CRS("EPSG:4326").to_wkt()},
    ],
)  # fmt: skip
def test_attributes_have_priority_over_a_text_that_contradicts_them(tmp_path, caplog, text):
    frame = grid_mapping(tmp_path, LAMBERT | text)
    np.testing.assert_allclose(center(frame), (10.0, 52.0), atol=1e-9)
    assert f"a.nc: {next(iter(text))} contradicts the attributes of crs, which are used" in caplog.text


@pytest.mark.parametrize("text", [{"crs_wkt": pyproj.CRS(TEXT).to_wkt()}, {"proj4": TEXT}])
@pytest.mark.parametrize(
    "attributes",
    [
        LAMBERT, {}, without("semi_major_axis", "inverse_flattening"), without("inverse_flattening"),
        without("longitude_of_projection_origin"), {"grid_mapping_name": "lambert_azimuthal_equal_area"},
        LAMBERT | {"longitude_of_projection_origin": 370.0},
    ],
)  # fmt: skip
def test_a_text_completes_attributes_that_agree_with_it(tmp_path, caplog, text, attributes):
    with caplog.at_level(logging.WARNING):
        frame = grid_mapping(tmp_path, {**attributes, **text})
    np.testing.assert_allclose(center(frame), (10.0, 52.0), atol=1e-9)
    assert "contradicts" not in caplog.text


def test_forms_of_one_projection_do_not_contradict_each_other(tmp_path, caplog):
    # Snyder (1987), equation 21-7: the scale factor at the pole of a sphere is (1 + sin(60 degrees)) / 2.
    text = "+proj=stere +lat_0=90 +lon_0=25 +lat_ts=60 +R=6371000 +units=m"
    attributes = {
        "grid_mapping_name": "stereographic", "latitude_of_projection_origin": 90.0,
        "longitude_of_projection_origin": 25.0, "scale_factor_at_projection_origin": (1 + np.sin(np.pi / 3)) / 2,
        "earth_radius": 6371000.0,
    }  # fmt: skip
    axes = {"axes": METERS, "x": (0.0, 1000.0, 2000.0), "y": (-2e6, -2.001e6)}
    frame = grid_mapping(tmp_path, attributes | {"crs_wkt": pyproj.CRS(text).to_wkt()}, axes)
    # Equation 21-15: colatitude 2 atan(rho / (2 R k)).
    colatitude = 2 * np.arctan(2e6 / (2 * 6371000.0 * attributes["scale_factor_at_projection_origin"]))
    np.testing.assert_allclose(center(frame), (25.0, 90 - np.rad2deg(colatitude)), atol=1e-9)
    assert "contradicts" not in caplog.text


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"grid_mapping_name": "lambert_azimuthal_equal_area"},
         "crs: the grid_mapping_name lambert_azimuthal_equal_area needs latitude_of_projection_origin, "
         "longitude_of_projection_origin"),
        (without("longitude_of_projection_origin"), "needs longitude_of_projection_origin"),
        ({"grid_mapping_name": "polar_stereographic", "latitude_of_projection_origin": 90.0,
          "straight_vertical_longitude_from_pole": 10.0},
         "needs standard_parallel or scale_factor_at_projection_origin"),
        ({"grid_mapping_name": "transverse_mercator"}, "needs longitude_of_central_meridian, "),
        (LAMBERT | {"latitude_of_projection_origin": "52 north"},
         "crs: latitude_of_projection_origin is '52 north'; it must be a number"),
        (LAMBERT | {"grid_mapping_name": "Lambert_Conformal"}, "the grid_mapping crs is not supported or not complete"),
        ({"long_name": "the projection"}, "the grid_mapping crs is not supported or not complete"),
        ({"crs_wkt": "PROJCS[garbage]"}, "the crs_wkt of the grid_mapping crs is not supported"),
    ],
)  # fmt: skip
def test_incomplete_and_unknown_mappings_are_named_and_not_called_damaged(tmp_path, mapping, message):
    with pytest.raises(DataError) as caught:
        grid_mapping(tmp_path, mapping)
    assert message in str(caught.value) and "a.nc: " in str(caught.value) and "damaged" not in str(caught.value)
