"""What the attributes of CF files mean: zones of time, directions of degrees, cell methods, groups."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

from simcast_hpc.config import DataError
from simcast_hpc.radar import RadarFrame, frame_times, read_frames
from tests.radar.radar_files import START
from tests.radar.test_cf_reading import RAIN, cf_dataset

MIDNIGHT = START.replace(hour=0)


def read(path: Path) -> RadarFrame:
    (frame,) = read_frames(path)
    assert frame_times(path) == [frame.time]
    return frame


def with_time(tmp_path: Path, units: str, value: float = 3.0) -> Path:
    """Write a file whose time is a number in the given units."""
    dataset = cf_dataset().drop_vars("time").assign_coords(
        time=("time", [value], {"units": units, "standard_name": "time"})
    )  # fmt: skip
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    return tmp_path / "a.nc"


# 3 hours after midnight in a zone are 3 hours minus its offset after midnight UTC.
@pytest.mark.parametrize(
    ("origin", "hours"),
    [
        ("2024-11-26 00:00:00", 3), ("2024-11-26", 3), ("2024-11-26T00:00:00Z", 3), ("2024-11-26 00:00 UTC", 3),
        ("2024-11-26 0:0:0.0 GMT", 3), ("2024-11-26 00:00:00 +02:00", 1), ("2024-11-26 00:00:00+0200", 1),
        ("2024-11-26 00:00:00 -5:30", 8.5), ("2024-11-26 00:00:00 -530", 8.5), ("2024-11-26 00:00:00 2", 1),
        ("2024-11-26 00:00:00 0:00", 3), ("20241126T000000Z", 3), ("20241126 0200", 5), ("2024-11-26 2", 5),
        ("2024-11-26 -6:00", 9),
    ],
)  # fmt: skip
def test_zone_of_the_time_units(tmp_path, origin, hours):
    assert read(with_time(tmp_path, f"hours since {origin}")).time == MIDNIGHT + timedelta(hours=hours)


@pytest.mark.parametrize("zone", ["CET", "EST", "AEST", "UTC+2", "GMT+2", "UTC-03:00", "Europe/Berlin", "local", "A"])
def test_rejects_other_zones_of_the_time_units(tmp_path, zone):
    units = f"hours since 2024-11-26 00:00:00 {zone}"
    path = with_time(tmp_path, units)
    for reads in (read_frames, frame_times):
        with pytest.raises(DataError) as caught:
            reads(path)
        assert f"a.nc: time has the units {units!r} and cannot be decoded" in str(caught.value)
        assert "offset such as +02:00" in str(caught.value)


@pytest.mark.parametrize("units", ["months since 2024-01-01", "weeks since 2024-01-01", "seconds since 2024-01-01 CET"])
def test_units_of_a_time_that_is_not_used(tmp_path, units):
    dataset = cf_dataset()
    dataset["calibrated"] = ((), 3.0, {"units": units})
    dataset["serviced"] = (("t",), np.array([np.nan, 1e300]), {"units": units})
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    frame = read(tmp_path / "a.nc")
    np.testing.assert_array_equal(frame.values, RAIN)
    assert frame.time == START


def test_the_time_of_the_field_in_months_is_an_error_with_the_valid_units(tmp_path):
    with pytest.raises(
        DataError, match="time has the units 'months since 2024-01-01' and cannot be decoded; units such"
    ):
        read_frames(with_time(tmp_path, "months since 2024-01-01"))


@pytest.mark.parametrize(
    ("axis", "units"),
    [("x", "degrees_west"), ("x", "degreeW"), ("x", "degrees_north"), ("y", "degrees_south")],
)
def test_rejects_degrees_of_another_direction(tmp_path, axis, units):
    axes = {"y": ("latitude", "degrees_north"), "x": ("longitude", "degrees_east")}
    axes[axis] = (axes[axis][0], units)
    cf_dataset(axes=axes).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(
        DataError, match=f"a.nc: {axis}, the {axis} coordinate, has the units '{units.lower()}'; degrees_"
    ):
        read_frames(tmp_path / "a.nc")


@pytest.mark.parametrize("letters", [("degreeN", "degreeE"), ("degreesN", "degreesE"), ("degree_N", "degrees_E")])
def test_units_of_degrees_identify_the_axes(tmp_path, letters):
    dataset = cf_dataset()
    for name, units in zip("yx", letters, strict=True):
        dataset[name].attrs = {"units": units}
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    grid = read(tmp_path / "a.nc").grid
    assert (grid.top, grid.left, grid.unit) == (51.5, 8.5, "degree")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"y": (91.0, 90.0)}, "the rows are from latitude 91 to 90; latitudes are from -90 to 90"),
        ({"y": (-89.5, -90.5)}, "the rows are from latitude -89.5 to -90.5"),
        ({"values": np.ones((2, 8)), "x": 60.0 * np.arange(8)}, "the columns extend over 480 degrees of longitude"),
        ({"x": (509.0, 510.0, 511.0)}, "x is from 509 to 511 degrees; longitudes are from -360 to 360"),
    ],
)
def test_rejects_impossible_latitudes_and_longitudes(tmp_path, axes, message):
    cf_dataset(**axes).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(DataError) as caught:
        read_frames(tmp_path / "a.nc")
    assert message in str(caught.value)


def test_rows_at_both_poles_are_a_valid_grid(tmp_path):
    cf_dataset(y=(90.0, -90.0), x=(-120.0, 0.0, 120.0)).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert read(tmp_path / "a.nc").grid.top == 180.0


AMOUNT = {"units": "mm", "standard_name": "rainfall_amount", "bounds": (-60, 0)}
ECHO = {"units": "dBZ", "standard_name": "equivalent_reflectivity_factor"}


@pytest.mark.parametrize(
    ("content", "methods"),
    [
        *[({}, f"time: {name}") for name in ("maximum", "minimum", "standard_deviation", "variance", "sum", "range")],
        ({"bounds": (-60, 0)}, "time: maximum"), ({}, "area: standard_deviation"), ({}, "area: time: maximum"),
        ({}, "area: mean time: maximum (interval: 5 minutes)"), ({}, "realization: standard_deviation"),
        (AMOUNT, "time: maximum"), (AMOUNT, "time: mean"), (ECHO, "time: maximum"), (ECHO, "area: variance"),
    ],
)  # fmt: skip
def test_rejects_other_statistics_of_a_quantity(tmp_path, content, methods):
    cf_dataset(**content, cell_methods=methods).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(DataError) as caught:
        read_frames(tmp_path / "a.nc")
    assert f"a.nc contains rain [{content.get('units', 'mm h-1')}, cell_methods {methods!r}]" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "methods"),
    [
        ({}, "time: point"), ({}, "time: mean (interval: 1 minute)"), ({}, "area: time: mean"), (AMOUNT, "time: sum"),
        (AMOUNT, "area: mean time: sum"), (ECHO, "height: maximum time: point"), ({}, ""),
    ],
)  # fmt: skip
def test_statistics_of_the_quantity_itself(tmp_path, content, methods):
    cf_dataset(**content, cell_methods=methods).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    np.testing.assert_array_equal(read(tmp_path / "a.nc").values, RAIN)


def test_the_mean_is_read_and_not_the_maximum_of_the_same_file(tmp_path):
    dataset = cf_dataset(10 * RAIN, cell_methods="time: maximum").rename(rain="heaviest")
    dataset["rain"] = cf_dataset()["rain"].assign_attrs(cell_methods="time: mean")
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    np.testing.assert_array_equal(read(tmp_path / "a.nc").values, RAIN)


def test_rejects_a_scale_factor_of_zero(tmp_path):
    codes = np.array([[0, 1, 2], [3, 4, 5]], np.int16)
    cf_dataset(codes, scale_factor=0.0).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"a.nc: rain: scale_factor is 0; it must not be 0"):
        read_frames(tmp_path / "a.nc")
    dataset = cf_dataset()
    dataset["x"] = ("x", np.array([9, 10, 11], np.int16), {**dataset["x"].attrs, "scale_factor": 0.0})
    dataset.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"b.nc: the coordinate x is not evenly spaced"):
        read_frames(tmp_path / "b.nc")


def test_a_file_without_times_and_a_single_row_are_errors(tmp_path):
    cf_dataset().isel(time=slice(0, 0)).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    for reads in (read_frames, frame_times):
        with pytest.raises(DataError, match=r"a.nc contains no field: its dimension of time has length 0"):
            reads(tmp_path / "a.nc")
    cf_dataset(RAIN[:1], y=(50.0,)).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"b.nc: the coordinate y has 1 values; a grid needs at least 2"):
        read_frames(tmp_path / "b.nc")


def test_cdf5_is_named(tmp_path):
    netCDF4.Dataset(tmp_path / "a.nc", "w", format="NETCDF3_64BIT_DATA").close()
    with pytest.raises(
        DataError, match=r"a.nc is netCDF in the format CDF-5 .64-bit data.; `nccopy -k nc4` converts it"
    ):
        frame_times(tmp_path / "a.nc")


def write_groups(path: Path, places: dict[str, str], **attributes: Any) -> Path:
    """Write the variables of a file into groups; those without a place are in the root."""
    source = cf_dataset(mapping={"grid_mapping_name": "latitude_longitude"})
    source.to_netcdf(path.with_suffix(".flat"), engine="h5netcdf")
    with netCDF4.Dataset(path.with_suffix(".flat")) as flat, netCDF4.Dataset(path, "w") as file:
        for name, dimension in flat.dimensions.items():
            file.createDimension(name, len(dimension))
        for name, variable in flat.variables.items():
            for group in places.get(name, "/").split():
                target = file if group == "/" else file.createGroup(group)
                copy = target.createVariable(name, variable.dtype, variable.dimensions)
                copy.setncatts({key: variable.getncattr(key) for key in variable.ncattrs() if key != "_FillValue"})
                copy.setncatts(attributes if name == "rain" else {})
                copy[...] = variable[...]
    return path


@pytest.mark.parametrize(
    "places",
    [
        {"rain": "data"}, {"rain": "data/inner"}, {"rain": "data", "crs": "data"}, {"rain": "data", "time": "data"},
        {name: "data" for name in ("rain", "x", "y", "time", "crs")},
    ],
)  # fmt: skip
def test_field_in_a_group_inherits_from_the_groups_above(tmp_path, places):
    frame = read(write_groups(tmp_path / "a.nc", places))
    np.testing.assert_array_equal(frame.values, RAIN)
    assert (frame.time, frame.grid.top, frame.grid.left) == (START, 51.5, 8.5)


def test_grid_mapping_may_be_a_path(tmp_path):
    assert read(write_groups(tmp_path / "a.nc", {"rain": "data"}, grid_mapping="/crs")).grid.top == 51.5


def test_fields_in_several_groups_are_named(tmp_path):
    with pytest.raises(DataError, match=r"contains fields in the groups here, there; the field must be in the root or"):
        read_frames(write_groups(tmp_path / "a.nc", {"rain": "here there"}))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_stores_with_groups_and_consolidated_metadata(tmp_path, zarr_format, consolidated):
    options: Any = {"zarr_format": zarr_format, "consolidated": consolidated}
    cf_dataset().to_zarr(tmp_path / "root.zarr", **options)
    xr.Dataset(attrs={"title": "radar"}).to_zarr(tmp_path / "group.zarr", **options)
    cf_dataset().to_zarr(tmp_path / "group.zarr", group="data", **options)
    for name in ("root.zarr", "group.zarr"):
        frame = read(tmp_path / name)
        np.testing.assert_array_equal(frame.values, RAIN)
        assert frame.time == START


def test_declared_size_of_a_zarr_store_is_checked_before_it_is_allocated(tmp_path):
    store = tmp_path / "a.zarr"
    cf_dataset().to_zarr(store, zarr_format=2, consolidated=False)
    for name, shape in (("rain", [1, 20000, 20000]), ("y", [20000]), ("x", [20000])):
        metadata = json.loads((store / name / ".zarray").read_text())
        (store / name / ".zarray").write_text(json.dumps(metadata | {"shape": shape, "chunks": shape}))
        for chunk in (store / name).glob("0*"):
            chunk.unlink()
    with pytest.raises(DataError, match=r"a.zarr: rain declares the shape \(1, 20000, 20000\) of 4 bytes; at most"):
        read_frames(store)
