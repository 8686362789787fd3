"""KNMI HDF5 against hand-computed values: calibration, missing codes, no echo, intervals, grids and attribute forms."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyproj
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import RadarFrame, frame_times, read_frames
from simcast_hpc.radar.knmi_reader import parse_formula
from tests.shared_data import shared

STEREO = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
CODES = np.array([[0, 1, 64], [100, 65534, 65535]], np.uint16)
END = datetime(2021, 6, 22, 20, 0, tzinfo=UTC)


def write_knmi(path: Path, codes: np.ndarray = CODES, **over: Any) -> Path:
    """Write a composite of stored ``codes``, 0.01 mm in 5 minutes; ``over`` replaces attributes, None removes one."""
    attributes: dict[str, dict[str, Any]] = {
        "overview": {
            "product_datetime_start": np.bytes_("22-JUN-2021;19:55:00.000"),
            "product_datetime_end": np.bytes_("22-JUN-2021;20:00:00.000"),
        },
        "geographic": {
            "geo_column_offset": np.array([0.0], np.float32),
            "geo_row_offset": np.array([3650.0], np.float32),
            "geo_pixel_size_x": np.array([1.0], np.float32),
            "geo_pixel_size_y": np.array([-1.0], np.float32),
            "geo_number_columns": np.array([codes.shape[1]], np.int32),
            "geo_number_rows": np.array([codes.shape[0]], np.int32),
            "geo_dim_pixel": np.bytes_("KM,KM"),
            "geo_pixel_def": np.bytes_("LU"),
        },
        "geographic/map_projection": {"projection_proj4_params": np.bytes_(STEREO)},
        "image1": {"image_geo_parameter": np.bytes_("ACCUMULATED_PRECIPITATION_[MM]")},
        "image1/calibration": {
            "calibration_formulas": np.bytes_("GEO=0.01*PV+0.0"),
            "calibration_missing_data": np.array([65534], np.int32),
            "calibration_out_of_image": np.array([65535], np.int32),
        },
    }
    with h5py.File(path, "w") as file:
        for group, content in attributes.items():
            content |= {key: value for key, value in over.items() if key in content or _belongs(key, group)}
            attrs = file.create_group(group).attrs
            for key, value in content.items():
                if value is not None:
                    attrs[key] = value
        file["image1/image_data"] = codes
    return path


def _belongs(key: str, group: str) -> bool:
    return (key == "geo_product_corners" and group == "geographic") or (
        key == "calibration_flag" and group == "image1/calibration"
    )


def read(tmp_path: Path, codes: np.ndarray = CODES, **over: Any) -> RadarFrame:
    (frame,) = read_frames(write_knmi(tmp_path / "a.h5", codes, **over), prefer="dBZ")
    return frame


def test_accumulation_is_divided_by_its_interval(tmp_path):
    frame = read(tmp_path)
    np.testing.assert_allclose(frame.values, [[0, 0.12, 7.68], [12.0, np.nan, np.nan]], rtol=1e-6)
    assert frame.unit == "mm/h" and frame.time == END and frame.values.dtype == np.float32
    hour = read(tmp_path, product_datetime_start="22-Jun-2021;19:00:00")
    np.testing.assert_allclose(hour.values, [[0, 0.01, 0.64], [1.0, np.nan, np.nan]], rtol=1e-6)
    assert hour.interval_minutes == 60.0
    for start in ("22-JUN-2021;20:00:00.000", "22-JUN-2021;20:05:00.000"):
        with pytest.raises(DataError, match=r"a\.h5: the interval of image1 is -?[05] minutes; it must be positive"):
            read(tmp_path, product_datetime_start=start)


REFLECTIVITY = {
    "image_geo_parameter": "REFLECTIVITY_[DBZ]",
    "calibration_formulas": "GEO = 0.500000 * PV + -32.000000",
    "product_datetime_start": "22-JUN-2021;20:00:00.000",
}


@pytest.mark.parametrize(
    ("missing", "outside", "codes_0_254_255"),
    [
        (0, 255, (-np.inf, 95.0, np.nan)),  # the code of no echo is also that of missing
        (255, 255, (-np.inf, 95.0, np.nan)),
        (254, 255, (-np.inf, np.nan, np.nan)),
        (0, 0, (np.nan, 95.0, 95.5)),
        (255, 0, (np.nan, 95.0, np.nan)),
        (0, None, (np.nan, 95.0, 95.5)),
    ],
)
def test_missing_codes_of_reflectivity(tmp_path, missing, outside, codes_0_254_255):
    codes = np.array([[0, 254, 255], [1, 64, 84]], np.uint8)
    over = {"calibration_missing_data": missing, "calibration_out_of_image": outside}
    frame = read(tmp_path, codes, **REFLECTIVITY, **over)
    np.testing.assert_array_equal(frame.values, [codes_0_254_255, (-31.5, 0.0, 10.0)])
    assert frame.unit == "dBZ"


@pytest.mark.parametrize(("missing", "outside", "dry"), [(0, 65535, 0.0), (0, 0, np.nan), (65535, 0, np.nan)])
def test_zero_as_missing_code_of_accumulations(tmp_path, missing, outside, dry):
    frame = read(tmp_path, CODES[:, :2] % 1000, calibration_missing_data=missing, calibration_out_of_image=outside)
    np.testing.assert_allclose(frame.values, [[dry, 0.12], [12.0, 534 * 0.12]], rtol=1e-6)


def test_rain_rate_is_not_divided(tmp_path):
    frame = read(tmp_path, image_geo_parameter="PRECIPITATION_RATE_[MM/H]", calibration_formulas="GEO=0.1*PV")
    np.testing.assert_allclose(frame.values, [[0, 0.1, 6.4], [10.0, np.nan, np.nan]], rtol=1e-6)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("GEO=0.01*PV+0.0", (0.01, 0.0)), ("GEO = 0.500000 * PV + -32.000000", (0.5, -32.0)),
        ("GEO=0.5*PV-32", (0.5, -32.0)), ("geo = .5 * pv - -32.", (0.5, 32.0)), ("GEO=1E-2*PV", (0.01, 0.0)),
        ("  GEO\t=\t0.5*PV\n+ 1e1 ", (0.5, 10.0)), ("GEO=0.5" + " " * 1_000_000 + "*PV+-32", (0.5, -32.0)),
    ],
)  # fmt: skip
def test_formula(formula, expected):
    assert parse_formula(formula, "a.h5") == expected


@pytest.mark.parametrize(
    "formula",
    ["", "GEO=PV", "GEO=0.5*PV+-32 dBZ", "x GEO=0.5*PV", "GEO=0.5*PV*2", "GEO=0.5*PV+", "GEO=0,5*PV", "GEO=0*PV+1",
     "GEO=1e999*PV", "GEO=0.5*PV+1e999", "GEO=nan*PV", "GEO=1 2*PV", "GEO=0.5*PV^2", "GEO=0.5*PV+-32;GEO=1*PV",
     "GEO=" + " 1" * 1_000_000, "GEO=" + "1" * 1_000_000],
)  # fmt: skip
def test_rejects_an_invalid_formula_in_linear_time(formula):
    begin = time.process_time()
    with pytest.raises(DataError, match=r"a\.h5: calibration_formulas is "):
        parse_formula(formula, "a.h5")
    assert time.process_time() - begin < 1.0


@pytest.mark.parametrize(
    "parameter", ["HEIGHT_[KM]", "ECHO_TOP_[M]", "RADIAL_VELOCITY_[M/S]", "PRECIPITATION_TYPE_[CLASS]", "HAIL_[MM]", ""]
)
def test_rejects_other_products_by_name(tmp_path, parameter):
    with pytest.raises(DataError, match=r"a\.h5 contains .*must contain precipitation in \[MM\]") as error:
        read(tmp_path, image_geo_parameter=parameter)
    assert repr(parameter) in str(error.value)


def test_rejects_several_accumulations_of_one_interval(tmp_path):
    path = write_knmi(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.copy("image1", "image2")
    with pytest.raises(DataError, match=r"a\.h5 contains 2 accumulations and one interval, as forecasts do"):
        read_frames(path)


def test_rejects_uncalibrated_images_and_invalid_codes(tmp_path):
    with pytest.raises(DataError, match="is not calibrated"):
        read(tmp_path, calibration_flag="N")
    with pytest.raises(DataError, match="calibration_missing_data is 'none'; it must be one number"):
        read(tmp_path, calibration_missing_data="none")


def lon_lat(frame: RadarFrame, row: int, column: int) -> tuple[float, float]:
    x, y = frame.grid.x[column], frame.grid.y[row]
    return pyproj.Proj(frame.grid.projection)(x, y, inverse=True) if frame.grid.unit == "m" else (x, y)


@pytest.mark.parametrize("projection", [STEREO, STEREO.replace("6378.137", "6378137").replace("6356.752", "6356752"),
    STEREO.replace("6378.137", "6378137").replace("6356.752", "6356752") + " +units=km",
    STEREO.replace(".137", ".14").replace(".752", ".75").replace("+y_0", "y_0")])  # fmt: skip
def test_grid_of_kilometers(tmp_path, projection):
    frame = read(tmp_path, projection_proj4_params=np.array([projection.encode()]))
    assert (frame.grid.left, frame.grid.top, frame.grid.spacing_x, frame.grid.unit) == (0, -3_650_000, 1000, "m")
    # The northwestern corner of the Dutch composite, from `geo_product_corners` of KNMI.
    corner = pyproj.Proj(frame.grid.projection)(frame.grid.left, frame.grid.top, inverse=True)
    np.testing.assert_allclose(corner, (0.0, 55.974), atol=2e-3)


def test_false_origin_is_in_the_unit_of_the_ellipsoid(tmp_path):
    shifted = read(tmp_path, projection_proj4_params=STEREO.replace("y_0=0", "y_0=3650"), geo_row_offset=0.0)
    plain = read(tmp_path)
    np.testing.assert_allclose(lon_lat(shifted, 1, 2), lon_lat(plain, 1, 2), atol=1e-9)


def test_pixel_definition_unit_and_direction(tmp_path):
    plain = read(tmp_path)
    center = read(tmp_path, geo_pixel_def="CENTRE", geo_column_offset=0.5, geo_row_offset=3650.5)
    assert center.grid == plain.grid
    lower = read(tmp_path, geo_pixel_def="LL", geo_row_offset=3651.0)
    assert lower.grid == plain.grid
    # Rows to the north: the last row is the northern one, its upper edge at -3650 km.
    northward = read(tmp_path, CODES[::-1], geo_pixel_size_y=1.0, geo_row_offset=-3651.0)
    assert northward.grid == plain.grid
    np.testing.assert_array_equal(northward.values, plain.values)
    westward = read(tmp_path, CODES[:, ::-1], geo_pixel_size_x=-1.0, geo_column_offset=-2.0)
    assert westward.grid == plain.grid
    np.testing.assert_array_equal(westward.values, plain.values)
    meters = {"geo_dim_pixel": "M,M", "geo_pixel_size_x": 1000.0, "geo_pixel_size_y": -1000.0}
    in_meters = STEREO.replace("6378.137", "6378137").replace("6356.752", "6356752")
    assert (
        read(tmp_path, projection_proj4_params=in_meters, **meters).grid
        == read(tmp_path, projection_proj4_params=in_meters).grid
    )


def test_grid_of_degrees(tmp_path):
    degrees = {"geo_dim_pixel": "DEG,DEG", "geo_pixel_size_x": 0.5, "geo_pixel_size_y": -0.5, "geo_row_offset": -104.0}
    frame = read(tmp_path, **degrees, projection_proj4_params="+proj=longlat +datum=WGS84")
    assert frame.grid.unit == "degree" and (frame.grid.top, frame.grid.left) == (52.0, 0.0)
    with pytest.raises(DataError, match="geo_dim_pixel is DEG, which contradicts the projection"):
        read(tmp_path, **degrees)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"geo_pixel_def": "XY"}, "geo_pixel_def='XY'"),
        ({"geo_dim_pixel": "KM,M"}, "geo_dim_pixel=''"),
        ({"geo_pixel_size_x": 0.0}, "pixels not 0"),
        ({"geo_number_columns": 4}, "are 2 and 4, but the image has shape"),
        ({"geo_row_offset": np.nan}, "geo_row_offset is nan; it must be a finite number"),
        ({"geo_row_offset": None}, "geo_row_offset is None; it must be a finite number"),
        ({"geo_product_corners": [0, 49.362, 0, 55.974, 10.856, 55.389, 9.009, 48.895]}, "pixels off geo_product"),
        ({"product_datetime_end": "2021-06-22T20:00:00Z"}, "is not of the form DD-MON-YYYY;HH:MM:SS"),
        ({"product_datetime_end": "31-FEB-2021;20:00:00"}, "is not of the form DD-MON-YYYY;HH:MM:SS"),
    ],
)
def test_rejects_invalid_geometry_and_times(tmp_path, over, message):
    with pytest.raises(DataError, match=rf"a\.h5.*{message}"):
        read(tmp_path, **over)


def test_fractions_of_seconds_and_string_forms_of_times(tmp_path):
    stated = np.array(["22-jun-2021;20:00:00.250"], dtype=h5py.string_dtype())
    assert read(tmp_path, product_datetime_end=stated).time == END.replace(microsecond=250_000)
    assert frame_times(tmp_path / "a.h5") == [END.replace(microsecond=250_000)]


def test_real_reflectivity_agrees_with_the_statistics_of_the_file():
    path = shared("data/radar/files/knmi_formats/RAD_NL25_PCP_CM_202106222000.h5")
    (frame,) = read_frames(path)
    with h5py.File(path) as file:
        stored, statistics = file["image1/image_data"][...], file["image1/statistics"].attrs
        finite = frame.values[np.isfinite(frame.values)]
        assert (finite.min(), finite.max()) == (statistics["stat_min_value"][0], statistics["stat_max_value"][0])
    assert frame.time == END and frame.unit == "dBZ"
    np.testing.assert_array_equal(np.isneginf(frame.values), stored == 0)
    np.testing.assert_array_equal(np.isnan(frame.values), stored == 255)
    measured = (stored > 0) & (stored < 255)
    np.testing.assert_array_equal(frame.values[measured], stored[measured] * 0.5 - 32.0)


def test_real_echo_tops_are_rejected_and_real_accumulations_read():
    with pytest.raises(DataError, match=r"contains 'HEIGHT_\[KM\]'"):
        read_frames(shared("data/radar/files/knmi_formats/RAD_NL25_ETH_NA_202004301315.h5"))
    for path in sorted(shared("data/radar/files/knmi_sequence").iterdir())[::8]:
        (frame,) = read_frames(path)
        with h5py.File(path) as file:
            stored = file["image1/image_data"][...]
        expected = np.where(stored == 65535, np.nan, stored * 0.12)
        np.testing.assert_allclose(frame.values, expected, rtol=1e-6)
        assert f"{frame.time:%Y%m%d%H%M}" == path.stem[-12:]
