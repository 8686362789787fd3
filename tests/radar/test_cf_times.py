"""CF netCDF against hand-computed values: times, intervals, Rainfields, choice of the field, and declared sizes."""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import xarray as xr

from simcast_hpc.config import DataError
from simcast_hpc.radar import frame_times, read_frames
from tests.radar.radar_files import START
from tests.radar.test_cf_reading import RAIN, center, cf_dataset, read

pytestmark = pytest.mark.filterwarnings("ignore:Variable time has datetime type:UserWarning")


def test_interval_of_amounts_and_mean_rates(tmp_path):
    amount = read(tmp_path, bounds=(-60, 0), units="mm", standard_name="rainfall_amount")
    assert amount.start == START - timedelta(minutes=60) and amount.interval_minutes == 60.0
    mean = read(tmp_path, bounds=(-5, 0), cell_methods="time: mean")
    assert mean.start == START - timedelta(minutes=5)
    for over in ({}, {"bounds": (-5, 0), "cell_methods": "area: mean time: point"}, {"bounds": (0, 0)}):
        instant = read(tmp_path, **over)
        assert instant.start is None and instant.time == START
    # `interval` in cell_methods is the spacing of the original data, not the length of the cell.
    with pytest.raises(DataError, match="is an amount in mm and its time has no bounds"):
        read(tmp_path, units="mm", standard_name="rainfall_amount", cell_methods="time: sum (interval: 5 minutes)")


def test_each_amount_is_divided_by_its_own_interval(tmp_path):
    dataset = xr.concat(
        [cf_dataset(bounds=bounds, units="mm", standard_name="rainfall_amount") for bounds in ((-5, 0), (5, 15))],
        "time",
    )
    dataset["time"] = dataset.time_bnds.max("nv").drop_vars("time").assign_attrs(bounds="time_bnds")
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    first, second = read_frames(tmp_path / "a.nc")
    np.testing.assert_allclose(first.values, RAIN * 12, rtol=1e-6)
    np.testing.assert_allclose(second.values, RAIN * 6, rtol=1e-6)
    assert second.time - second.start == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("units", "value", "time"),
    [
        ("minutes since 2024-11-26 00:00:00 +02:00", 180, START),
        ("minutes since 2024-11-25 19:00 -05:30", 30, START),
        ("days since 2024-11-25 12:00:00", 13 / 24, START),
        ("hours since 2024-11-26T00:00:00Z", 1, START),
        ("seconds since 1970-01-01", 1732582800, START),
        ("seconds since 1970-01-01", 1732582800.25, START + timedelta(milliseconds=250)),
    ],
)
def test_time_units_with_zones_and_offsets(tmp_path, units, value, time):
    dataset = cf_dataset()
    dataset["time"] = ("time", [value], {"units": units})
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert read_frames(tmp_path / "a.nc")[0].time == time
    for calendar in ("360_day", "noleap", "julian"):
        dataset["time"].attrs["calendar"] = calendar
        dataset.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
        with pytest.raises(DataError, match=rf"b\.nc: time is in the calendar '{calendar}'; the Gregorian"):
            read_frames(tmp_path / "b.nc")


def test_time_that_is_scalar_or_not_a_reference_time(tmp_path):
    # As cfgrib writes: `time` is the reference time of a forecast, `valid_time` the time of the field.
    dataset = cf_dataset().isel(time=0)
    dataset["valid_time"] = dataset.time.variable
    dataset["valid_time"].attrs["standard_name"] = "time"
    dataset["time"] = ((), np.datetime64("2024-11-25T00:00:00", "ns"), {"standard_name": "forecast_reference_time"})
    dataset.set_coords("valid_time").to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert read_frames(tmp_path / "a.nc")[0].time == START == frame_times(tmp_path / "a.nc")[0]
    dataset.drop_vars(["time", "valid_time"]).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"b\.nc: rain has no time coordinate"):
        read_frames(tmp_path / "b.nc")


def rainfields(
    path: Path,
    values: np.ndarray,
    minutes: float,
    *,
    start_is_time: bool = False,
    end: str = "valid_time",
    **attributes: Any,
) -> Path:
    """Write a file of the Bureau of Meteorology: Albers projection in km, packed amounts, two times.

    ``start_is_time`` gives the start the standard name of time, and ``end`` is the name of the end, none if empty.
    """
    import netCDF4

    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("y", values.shape[0])
        file.createDimension("x", values.shape[1])
        projection = file.createVariable("proj", "i1")
        projection.setncatts(
            {
                "grid_mapping_name": "albers_conical_equal_area", "standard_parallel": [-18.0, -36.0],
                "longitude_of_central_meridian": 144.752, "latitude_of_projection_origin": -37.852,
                "false_easting": 0.0, "false_northing": 0.0, "semi_major_axis": 6378137.0,
                "semi_minor_axis": 6356752.31414,
            }
        )  # fmt: skip
        for name, first, step in (("x", 100.0, 0.5), ("y", 50.0, -0.5)):
            axis = file.createVariable(name, "f4", (name,))
            axis.units = "km"
            axis[:] = first + step * np.arange(len(file.dimensions[name]))
        last = int(START.timestamp())
        start = ("start_time", last - 60 * minutes, "time" if start_is_time else "")
        # The start comes first, as in the files of the Bureau.
        for name, moment, standard in (start, (end, last, "time")):
            if not name:
                continue
            time = file.createVariable(name, "i4")
            time.units = "seconds since 1970-01-01 00:00:00 UTC"
            if standard:
                time.standard_name = standard
            time[...] = moment
        field = file.createVariable("precipitation", "i2", ("y", "x"), fill_value=-1)
        field.setncatts({"units": "mm", "grid_mapping": "proj", "scale_factor": np.float32(0.05), **attributes})
        field[:] = np.ma.masked_array(np.nan_to_num(values), np.isnan(values))
    return path


def test_rainfields_of_the_bureau_of_meteorology(tmp_path):
    values = np.array([[0.0, 0.5, np.nan], [1.0, 2.0, 30.0]])
    (frame,) = read_frames(rainfields(tmp_path / "a.nc", values, 6.0))
    np.testing.assert_allclose(frame.values, values * 10, rtol=1e-6)
    assert frame.time == START == frame_times(tmp_path / "a.nc")[0] and frame.interval_minutes == 6.0
    assert (frame.grid.left, frame.grid.top, frame.grid.spacing_x) == (99_750.0, 50_250.0, 500.0)
    albers = "+proj=aea +lon_0=144.752 +lat_0=-37.852 +lat_1=-18 +lat_2=-36 +ellps=GRS80"
    np.testing.assert_allclose(center(frame), pyproj.Proj(albers)(100e3, 50e3, inverse=True), atol=1e-6)
    (rate,) = read_frames(
        rainfields(tmp_path / "b.nc", values, 6.0, units="mm/hr", long_name="Instantaneous rain rate")
    )
    np.testing.assert_allclose(rate.values, values, rtol=1e-6)
    with pytest.raises(DataError, match=r"c\.nc: .*interval"):
        read_frames(rainfields(tmp_path / "c.nc", values, 0.0))


@pytest.mark.parametrize("over", [{}, {"coordinates": "start_time valid_time"}])
def test_start_time_with_the_standard_name_of_time_is_the_start(tmp_path, over):
    values = np.array([[0.0, 0.5, np.nan], [1.0, 2.0, 30.0]])
    (amount,) = read_frames(rainfields(tmp_path / "a.nc", values, 5.0, start_is_time=True, **over))
    assert (amount.start, amount.time) == (START - timedelta(minutes=5), START) and frame_times(amount.path) == [START]
    np.testing.assert_allclose(amount.values, values * 12, rtol=1e-6)  # 60 minutes / 5 minutes
    rate = {"units": "mm/h", "standard_name": "rainfall_rate"}
    (frame,) = read_frames(rainfields(tmp_path / "b.nc", values, 5.0, start_is_time=True, **rate, **over))
    assert frame.time == START and frame_times(frame.path) == [START]


def test_several_times_of_a_field_that_differ_are_an_error(tmp_path):
    values, rate = np.array([[0.0, 0.5], [1.0, 2.0]]), {"units": "mm/h", "standard_name": "rainfall_rate"}
    # A start alone does not state the time of the field.
    with pytest.raises(DataError, match=r"a\.nc: precipitation has no time coordinate"):
        read_frames(rainfields(tmp_path / "a.nc", values, 5.0, start_is_time=True, end="", **rate))
    (frame,) = read_frames(rainfields(tmp_path / "b.nc", values, 5.0, start_is_time=True, end="time", **rate))
    assert frame.time == START
    dataset = cf_dataset()
    for name, minutes, message in (("scan_end", 5, r"time and scan_end of rain both have"), ("same", 0, "")):
        moment = dataset.time.values[0] + np.timedelta64(minutes, "m")
        two = dataset.assign_coords({name: ((), moment, {"standard_name": "time"})})
        two["time"].attrs["standard_name"] = "time"
        two.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        if message:
            with pytest.raises(DataError, match=rf"{name}\.nc: {message} the standard_name time and differ"):
                read_frames(tmp_path / f"{name}.nc")
        else:
            assert frame_times(tmp_path / f"{name}.nc") == [START]


def test_ancillary_variables_and_flags_are_not_the_field(tmp_path):
    dataset = cf_dataset(ancillary_variables="rain_accuracy")
    for name, attributes in (
        ("rain_quality", {"units": "mm h-1"}),
        ("rain_flag", {"flag_values": [0, 1], "flag_meanings": "dry wet"}),
        ("rain_standard_error", {"units": "mm h-1", "standard_name": "rainfall_rate standard_error"}),
        ("rain_accuracy", {"units": "mm h-1"}),
    ):
        dataset[name] = (("time", "y", "x"), 0 * RAIN[None], attributes)
    names = ["rain_quality", "rain_flag", "rain_standard_error", "rain_accuracy", "rain"]
    dataset[names].to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    np.testing.assert_array_equal(read_frames(tmp_path / "a.nc")[0].values, RAIN)
    dataset[names[:-2]].to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"b\.nc contains rain_quality \[mm h-1\].*it must contain a rain rate"):
        read_frames(tmp_path / "b.nc")
    dataset.rain.attrs["standard_name"] = "convective_precipitation_rate"
    dataset[names].to_netcdf(tmp_path / "c.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"rain \[mm.*, standard_name convective_precipitation_rate\]; it must contain"):
        read_frames(tmp_path / "c.nc")


def test_preferred_of_several_fields_is_a_rate_with_a_standard_name(tmp_path, caplog):
    dataset = cf_dataset(bounds=(-60, 0))
    dataset["rain_amount"] = (("time", "y", "x"), RAIN[None] * 2, {"units": "mm", "standard_name": "rainfall_amount"})
    dataset["rain_nearest"] = (("time", "y", "x"), RAIN[None] * 3, {"units": "mm h-1"})
    dataset[["rain_amount", "rain_nearest", "rain", "time_bnds"]].to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with caplog.at_level(logging.WARNING):
        (frame,) = read_frames(tmp_path / "a.nc")
    np.testing.assert_array_equal(frame.values, RAIN)
    assert "contains rain, rain_nearest, rain_amount in mm/h; rain is read" in caplog.text


def test_rejects_curvilinear_grids_by_name(tmp_path):
    dataset = cf_dataset().drop_vars(["x", "y"])
    for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
        dataset.coords[name] = (("y", "x"), RAIN, {"units": units})
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"the positions of rain are in lat\('y', 'x'\); its dimensions"):
        read_frames(tmp_path / "a.nc")


@pytest.mark.parametrize("form", ["NETCDF3_64BIT", "NETCDF3_CLASSIC"])
def test_netcdf_3_files(tmp_path, form):
    cf_dataset().to_netcdf(tmp_path / "a.nc", engine="scipy", format=form)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.nc")[0].values, RAIN)


def test_a_declared_size_far_above_the_file_is_rejected(tmp_path):
    import netCDF4

    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, length in (("time", 1), ("y", 20000), ("x", 20000)):
            file.createDimension(name, length)
            axis = file.createVariable(name, "f8", (name,))
            axis.units = {"time": "hours since 2024-11-26", "y": "degrees_north", "x": "degrees_east"}[name]
            axis[:] = np.arange(length) / 1000
        field = file.createVariable("rain", "f4", ("time", "y", "x"), chunksizes=(1, 100, 100))
        field.units = "mm h-1"
    assert (tmp_path / "a.nc").stat().st_size < 10**6
    with pytest.raises(DataError, match=r"a\.nc: /rain declares 1600000000 bytes .*\(shape \[1, 20000, 20000\]\)"):
        read_frames(tmp_path / "a.nc")
