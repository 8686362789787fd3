"""CF netCDF and Zarr against hand-computed values: units, grids, packed values, flags and times."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import xarray as xr

from simcast_hpc.config import DataError
from simcast_hpc.radar import RadarFrame, frame_times, read_frames
from simcast_hpc.radar.cf_mapping import mapping_name
from simcast_hpc.radar.cf_units import depth_factor, rate_factor
from simcast_hpc.radar.frame_files import list_files
from tests.radar.radar_files import LAEA, START

RAIN = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
METERS = {"y": ("projection_y_coordinate", "m"), "x": ("projection_x_coordinate", "m")}
DEGREES = {"y": ("latitude", "degrees_north"), "x": ("longitude", "degrees_east")}


def cf_dataset(
    values: np.ndarray = RAIN,
    *,
    axes: dict[str, tuple[str, str]] = DEGREES,
    y: Any = (51.0, 50.0),
    x: Any = (9.0, 10.0, 11.0),
    mapping: dict[str, Any] | None = None,
    bounds: tuple[int, int] | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Return a dataset of ``values`` ``[H, W]`` at START; ``bounds`` of time are in minutes after START."""
    start = np.datetime64(START.replace(tzinfo=None), "s")
    field = {"units": "mm h-1", "standard_name": "rainfall_rate", **attributes}
    variables: dict[str, Any] = {"rain": (("time", "y", "x"), values[None], field)}
    if mapping is not None:
        variables["crs"] = ((), 0, mapping)
        field.setdefault("grid_mapping", "crs")
    time_attributes = {}
    if bounds is not None:
        time_attributes["bounds"] = "time_bnds"
        variables["time_bnds"] = (("time", "nv"), [[start + np.timedelta64(minute, "m") for minute in bounds]])
    coords = {"time": ("time", [start], time_attributes)}
    for name, positions in (("y", y), ("x", x)):
        standard, units = axes[name]
        coords[name] = (name, np.array(positions, np.float64), {"standard_name": standard, "units": units})
    return xr.Dataset(variables, coords)


def read(tmp_path: Path, **content: Any) -> RadarFrame:
    cf_dataset(**content).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    (frame,) = read_frames(tmp_path / "a.nc")
    assert frame_times(tmp_path / "a.nc") == [frame.time]
    return frame


def center(frame: RadarFrame) -> tuple[float, float]:
    """Return longitude and latitude of the upper left pixel."""
    return pyproj.Proj(frame.grid.projection)(frame.grid.x[0], frame.grid.y[0], inverse=True)


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        ("mm/h", 1), ("mm h-1", 1), ("mm/hour", 1), ("mm hour-1", 1), ("mm hr^-1", 1), ("mm h**-1", 1), ("MM/H", 1),
        ("mm per hour", 1), ("mm.h-1", 1), ("kg m-2 h-1", 1), ("kg m**-2 s**-1", 3600), ("kg m^-2 s^-1", 3600),
        ("kg/m2/s", 3600), ("kg/m^2/s", 3600), ("kg.m-2.s-1", 3600), ("m s**-1", 3.6e6), ("m/s", 3.6e6),
        ("mm day-1", 1 / 24), ("mm/d", 1 / 24), ("cm/h", 10), ("mm min-1", 60), ("0.1 mm/h", 0.1), ("s-1 mm", 3600),
        ("in/h", 25.4), ("inches per hour", 25.4), ("kg m⁻² s⁻¹", 3600), ("mm h⁻¹", 1), ("mm/1e999999999", None),
        ("1e999999999 mm h-1", None), ("m s-1 mm999999999", None), ("9" * 100_000 + " mm h-1", None),
        ("mm", None), ("km/h", None), ("mm s", None), ("mm h-2", None), ("dBZ", None), ("", None), ("mm/5min", None),
    ],
)  # fmt: skip
def test_units_of_rates(units, factor):
    assert rate_factor(units) == (None if factor is None else pytest.approx(factor, rel=1e-15))


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        ("mm", 1),
        ("kg m-2", 1),
        ("kg m**-2", 1),
        ("kg/m^2", 1),
        ("m", 1000),
        ("cm", 10),
        ("g m-2", 1e-3),
        ("mm/h", None),
    ],
)
def test_units_of_amounts(units, factor):
    assert depth_factor(units) == factor


def test_rate_in_kg_m_2_s_1_of_a_file(tmp_path):
    frame = read(tmp_path, values=RAIN / 3600, units="kg m**-2 s**-1", standard_name="precipitation_flux")
    np.testing.assert_allclose(frame.values, RAIN, rtol=1e-6)


KM = {"y": ("projection_y_coordinate", "km"), "x": ("projection_x_coordinate", "km")}
KM_LAEA = "+proj=laea +lat_0=52 +lon_0=10 +x_0=1950000 +y_0=-2100000 +units=km +ellps=WGS84"


@pytest.mark.parametrize("form", ["proj4", "crs_wkt", "parameters", "meters"])
def test_kilometer_axes_with_a_kilometer_projection(tmp_path, form):
    # The false origin is at x = 1950 km, y = -2100 km, 52 N 10 E.
    parameters = {key: value for key, value in pyproj.CRS(KM_LAEA).to_cf().items() if key != "crs_wkt"}
    mapping = {
        "proj4": {"proj4": KM_LAEA},
        "crs_wkt": {"crs_wkt": pyproj.CRS(KM_LAEA).to_wkt()},
        "parameters": parameters,
        "meters": {"proj4": KM_LAEA.replace("km", "m")},
    }[form]
    frame = read(tmp_path, axes=KM, x=(1950.0, 1952.0, 1954.0), y=(-2100.0, -2102.0), mapping=mapping)
    assert frame.grid.unit == "m" and frame.grid.spacing_x == 2000.0 and frame.grid.left == 1_949_000.0
    np.testing.assert_allclose(center(frame), (10.0, 52.0), atol=1e-6)


def test_meter_axes_with_a_kilometer_projection(tmp_path):
    frame = read(tmp_path, axes=METERS, x=(1.95e6, 1.951e6, 1.952e6), y=(-2.1e6, -2.101e6), mapping={"proj4": KM_LAEA})
    np.testing.assert_allclose(center(frame), (10.0, 52.0), atol=1e-6)


def test_rejects_axes_that_contradict_the_grid_mapping(tmp_path):
    with pytest.raises(DataError, match="in degrees_north, but its grid mapping is Projected CRS"):
        read(tmp_path, mapping=pyproj.CRS(LAEA).to_cf())
    with pytest.raises(DataError, match="in m, but the grid mapping is Geographic 2D CRS"):
        read(tmp_path, axes=METERS, mapping=pyproj.CRS("EPSG:4326").to_cf())
    with pytest.raises(DataError, match=r"\['degrees_east', 'm'\]; m or km is valid for both axes"):
        read(tmp_path, axes={"y": METERS["y"], "x": DEGREES["x"]}, mapping=pyproj.CRS(LAEA).to_cf())


def test_ellipsoid_of_latitude_longitude_is_that_of_the_mapping(tmp_path):
    sphere = {"grid_mapping_name": "latitude_longitude", "earth_radius": 6_371_000.0}
    projection = read(tmp_path, mapping=sphere).grid.projection
    assert pyproj.CRS(projection).ellipsoid.semi_minor_metre == 6_371_000.0
    wgs84 = read(tmp_path, mapping=pyproj.CRS("EPSG:4326").to_cf()).grid
    assert wgs84.projection == "+proj=longlat +datum=WGS84 +no_defs" and wgs84.unit == "degree"


@pytest.mark.parametrize("text", ["crs: x y", "other: lat lon crs: x y", "crs:  y x  other: lat lon", "crs", "crs:"])
def test_grid_mapping_with_coordinates(text):
    assert mapping_name(text, ("y", "x")) == "crs"


def test_extended_grid_mapping_of_a_file(tmp_path):
    content = {"axes": METERS, "x": (1.95e6, 1.951e6, 1.952e6), "y": (-2.1e6, -2.101e6), "mapping": {"proj4": LAEA}}
    np.testing.assert_allclose(center(read(tmp_path, **content, grid_mapping="crs: x y")), (10.0, 55.0), atol=1e-6)
    with pytest.raises(DataError, match=r"the grid_mapping 'other: lat lon' of rain names no variable"):
        read(tmp_path, **content, grid_mapping="other: lat lon")


@pytest.mark.parametrize(
    ("x", "left", "columns"),
    [
        ((179.0, -180.0, -179.0), 178.5, [0, 1, 2]), ((359.0, 0.0, 1.0), -1.5, [0, 1, 2]),
        ((359.0, 360.0, 361.0), -1.5, [0, 1, 2]), ((-179.0, 180.0, 179.0), 178.5, [2, 1, 0]),
        ((200.0, 201.0, 202.0), -160.5, [0, 1, 2]), ((9.0, 10.0, 11.0), 8.5, [0, 1, 2]),
    ],
)  # fmt: skip
def test_longitudes_across_180_and_360(tmp_path, x, left, columns):
    frame = read(tmp_path, x=x)
    assert frame.grid.left == left and frame.grid.spacing_x == 1.0
    np.testing.assert_array_equal(frame.values, RAIN[:, columns])


PACKED = {"scale_factor": 0.1, "add_offset": 0.0}
CODES = np.array([[0, 10, 250], [251, 254, 255]], np.uint8)


@pytest.mark.parametrize(
    "limits",
    [
        {"valid_range": np.array([0, 250], np.uint8)}, {"valid_range": [0, 250]}, {"valid_max": np.uint8(250)},
        {"valid_range": [0.0, 25.0]}, {"valid_max": 25.0}, {"valid_max": np.float32(25.0)},
        {"flag_values": np.array([251, 254, 255], np.uint8), "flag_meanings": "clutter blocked outside"},
        {"valid_max": 254, "missing_value": np.uint8(251), "flag_values": np.uint8(254), "flag_meanings": "gap"},
    ],
)  # fmt: skip
def test_packed_values_outside_the_valid_range_and_flags_are_missing(tmp_path, limits):
    frame = read(tmp_path, values=CODES, **PACKED, **limits)
    np.testing.assert_allclose(frame.values, [[0, 1, 25], [np.nan] * 3], rtol=1e-6)


def test_valid_min_and_signed_codes_of_unsigned_bytes(tmp_path):
    frame = read(tmp_path, values=CODES, **PACKED, valid_min=np.uint8(10), _FillValue=np.uint8(255))
    np.testing.assert_allclose(frame.values, [[np.nan, 1, 25], [25.1, 25.4, np.nan]], rtol=1e-6)
    limits = np.array([0, 250], np.uint8).view(np.int8)
    signed = read(tmp_path, values=CODES.view(np.int8), **PACKED, _Unsigned="true", valid_range=limits)
    np.testing.assert_allclose(signed.values, [[0, 1, 25], [np.nan] * 3], rtol=1e-6)


def test_limits_of_float_data_are_compared_in_its_type(tmp_path):
    values = np.array([[0.1, 25.3, 25.4], [-99.9, 0.0, 1.0]], np.float32)
    frame = read(tmp_path, values=values, valid_range=[0.0, 25.3], missing_value=-99.9)
    np.testing.assert_array_equal(frame.values, np.array([[0.1, 25.3, np.nan], [np.nan, 0, 1]], np.float32))


def test_no_echo_flag_and_undetect_outside_the_valid_range(tmp_path):
    dbz = {
        "units": "dBZ",
        "standard_name": "equivalent_reflectivity_factor",
        "valid_range": np.array([1, 250], np.uint8),
    }
    flags = {"flag_values": np.array([251, 254], np.uint8), "flag_meanings": "no_echo not_scanned"}
    frame = read(tmp_path, values=CODES, scale_factor=0.5, add_offset=-32.0, undetect=np.uint8(0), **dbz, **flags)
    assert [frame.metadata[name] for name in ("stored_type", "gain", "offset")] == [str(CODES.dtype), 0.5, -32.0]
    np.testing.assert_array_equal(frame.values, [[-np.inf, -27.0, 93.0], [-np.inf, np.nan, np.nan]])
    rate = read(tmp_path, values=np.array([[-1.0, 1, 2], [3, 4, 5]], np.float32), undetect=-1.0)
    np.testing.assert_array_equal(rate.values, [[0, 1, 2], [3, 4, 5]])


def test_rejects_contradictory_packing(tmp_path):
    for attributes, message in (
        ({"flag_values": [1, 2], "flag_meanings": "one"}, "2 flag_values and 1 flag_meanings"),
        ({"flag_masks": [1, 2], "flag_meanings": "one two"}, "bit fields"),
        ({"valid_range": [1, 2, 3]}, "valid_range is .* must have 2 values"),
    ):
        with pytest.raises(DataError, match=rf"a\.nc: rain.*{message}"):
            read(tmp_path, values=CODES, **attributes)


@pytest.mark.parametrize("bounds", [(0, 60), (-30, 30), (-60, 0)])
def test_time_of_an_amount_is_the_end_of_its_interval(tmp_path, bounds):
    frame = read(tmp_path, bounds=bounds, units="mm", standard_name="rainfall_amount")
    assert frame.time == START + timedelta(minutes=bounds[1])
    np.testing.assert_array_equal(frame.values, RAIN)


def test_time_of_a_mean_rate_is_the_end_of_its_interval(tmp_path):
    assert read(tmp_path, bounds=(0, 30), cell_methods="time: mean").time == START + timedelta(minutes=30)
    assert read(tmp_path, bounds=(0, 30), cell_methods="time: point").time == START


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_store_is_found_and_read(tmp_path, zarr_format):
    store, packed = tmp_path / "rain_0100.zarr", {**PACKED, "valid_max": np.uint8(250).item()}
    cf_dataset(CODES, **packed).to_zarr(store, zarr_format=zarr_format, consolidated=False)
    (tmp_path / "folder").mkdir()
    assert list_files([tmp_path], "*.zarr") == list_files([tmp_path]) == list_files([store]) == [store]
    (frame,) = read_frames(store)
    assert frame_times(store) == [START]
    np.testing.assert_allclose(frame.values, [[0, 1, 25], [np.nan] * 3], rtol=1e-6)
    assert frame.grid.top == 51.5 and frame.grid.left == 8.5
