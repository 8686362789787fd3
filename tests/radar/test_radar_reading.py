"""Readers on synthetic radar files: format detection by content, values and grids, and errors that name the file."""

import bz2
import gzip
import lzma
import os
from pathlib import Path

import h5py
import numpy as np
import pyproj
import pytest
import xarray as xr

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.radar import RadarFrame, RadarGrid, frame_times, read_frames
from simcast_hpc.radar.radar_frame import FieldChoice
from simcast_hpc.radar.read_frame import frame_times_in_process, read_frames_in_process
from tests.radar.grib_files import grib_message
from tests.radar.radar_files import LAEA, START, moment, storm, write_cf, write_odim, write_volume
from tests.radar.test_cf_reading import cf_dataset

FIELD = np.array([[np.nan, -np.inf, -30.0, -12.5], [7.0, 31.5, 60.0, 0.0], [-np.inf, np.nan, 1.5, 2.0]])


def only(frames: list[RadarFrame]) -> RadarFrame:
    assert len(frames) == 1
    return frames[0]


def test_odim_distinguishes_missing_no_echo_and_minus_30_dbz(tmp_path):
    frame = only(read_frames(write_odim(tmp_path / "name.without_meaning", FIELD, START)))
    np.testing.assert_array_equal(frame.values, FIELD.astype(np.float32))
    assert frame.unit == "dBZ" and frame.time == START and frame.values.dtype == np.float32


def test_odim_grid_has_the_coordinates_of_the_file(tmp_path):
    grid = only(read_frames(write_odim(tmp_path / "a.h5", FIELD, START))).grid
    assert grid.projection == LAEA and grid.shape == (3, 4) and grid.unit == "m"
    np.testing.assert_allclose(grid.x, 2_640_500.0 + 1000.0 * np.arange(4), atol=0.01)
    np.testing.assert_allclose(grid.y, -944_500.0 - 1000.0 * np.arange(3), atol=0.01)
    assert grid.spacing_km == pytest.approx(1.0)


def test_odim_accumulation_is_converted_to_a_rate(tmp_path):
    millimetres = np.array([[0.5, np.nan], [-np.inf, 2.0]])
    frame = only(read_frames(write_odim(tmp_path / "a.h5", millimetres, START, quantity="ACRR", minutes=15)))
    np.testing.assert_array_equal(frame.values, [[2.0, np.nan], [0.0, 8.0]])
    assert frame.unit == "mm/h"


def test_odim_grid_in_degrees(tmp_path):
    written = write_odim(
        tmp_path / "a.h5", FIELD, START, projection="+proj=longlat +datum=WGS84", left=10.0, top=50.0, spacing=0.01
    )
    grid = only(read_frames(written)).grid
    assert grid.unit == "degree"
    np.testing.assert_allclose(grid.y, 49.995 - 0.01 * np.arange(3), atol=1e-6)
    assert grid.spacing_km == pytest.approx(1.112 * np.cos(np.deg2rad(49.985)) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("northward", [False, True])
def test_netcdf_rows_are_returned_north_up(tmp_path, northward):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    values[0, 0, 0] = np.nan
    path = write_cf(tmp_path / "a.nc", values, [START, moment(1)], northward=northward)
    first, second = read_frames(path)
    np.testing.assert_array_equal([first.values, second.values], values)
    assert [first.time, second.time] == [START, moment(1)] == frame_times(path)
    assert first.grid.top == -2_000_000.0 and first.grid.left == 500_000.0
    crs = pyproj.CRS.from_user_input(first.grid.projection)
    assert crs.to_cf()["grid_mapping_name"] == "polar_stereographic"
    assert crs.to_cf()["straight_vertical_longitude_from_pole"] == 25.0


@pytest.mark.parametrize(
    ("name", "units", "factor"),
    [("rainfall_rate", "mm/h", 1.0), ("precipitation_flux", "kg m-2 s-1", 3600.0), ("rainfall_rate", "m s-1", 3.6e6)],
)
def test_netcdf_rain_rates_are_converted_to_mm_per_hour(tmp_path, name, units, factor):
    values = np.array([[[0.0, 1.0], [2.0, np.nan]]], np.float32) / factor
    frame = only(read_frames(write_cf(tmp_path / "a.nc", values.astype(np.float32), [START], name=name, units=units)))
    np.testing.assert_allclose(frame.values, [[0.0, 1.0], [2.0, np.nan]], rtol=1e-6)
    assert frame.unit == "mm/h"


def test_netcdf_undetect_attribute_is_no_echo(tmp_path):
    values = np.array([[[-32.0, 20.0], [np.nan, 5.0]]], np.float32)
    path = write_cf(
        tmp_path / "a.nc", values, [START], name="equivalent_reflectivity_factor", units="dBZ", undetect=-32.0
    )
    np.testing.assert_array_equal(only(read_frames(path)).values, [[-np.inf, 20.0], [np.nan, 5.0]])


def test_netcdf_vertically_integrated_liquid_is_not_a_rain_rate(tmp_path):
    values = np.ones((1, 2, 2), np.float32)
    path = write_cf(
        tmp_path / "a.nc", values, [START], name="", units="kg m-2", long_name="vertically integrated liquid"
    )
    assert only(read_frames(path)).unit == "kg/m^2"


def test_rejects_an_amount_without_an_interval(tmp_path):
    path = write_cf(tmp_path / "a.nc", np.ones((1, 2, 2), np.float32), [START], name="rainfall_amount", units="mm")
    with pytest.raises(DataError, match=r"a\.nc.*no bounds; the file must contain the accumulation interval"):
        read_frames(path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path: Path) -> None:
    path.write_text("not a radar file")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b"P5\n# obstime 201609281445\n" + bytes(range(256)) * 200)[:300])


def no_time(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["what"].attrs["time"] = np.bytes_("noon")


def wrong_scale(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["where"].attrs["xscale"] = 2000.0


def wrong_gain(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["dataset1/data1/what"].attrs["gain"] = 100.0


def all_missing(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["dataset1/data1/data"][...] = -9999000.0


def no_quantity(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["dataset1/data1/what"].attrs["quantity"] = np.bytes_("VRAD")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "cannot be"),
        (text, "begins with b'not a ra'; the supported formats are ODIM"),
        (empty, "is empty"),
        (half_gzip, "FMI PGM|cannot be opened"),
        (no_time, "'20241126noon'; they must be YYYYMMDD and HHmmss"),
        (wrong_scale, "the pixel size along x is 2000 in the file, but 1000 by its corners"),
        (wrong_gain, "values from -3000 to 6000 are outside the valid range of dBZ"),
        (all_missing, "all pixels are missing"),
        (no_quantity, r"\['VRAD'\]; it must contain RATE, ACRR or DBZH"),
    ],
)
def test_error_names_the_file_and_the_damage(tmp_path, damage, message):
    path = write_odim(tmp_path / "frame.h5", FIELD, START)
    damage(path)
    with pytest.raises(DataError, match=f"frame\\.h5.*({message})"):
        read_frames(path)


def test_lowest_sweep_of_a_polar_volume_is_centred_on_the_radar(tmp_path):
    gates = np.full((360, 100), -32.0)
    gates[90, 40], gates[0, 50], gates[225:235, 60:70] = 28.0, 33.0, 40.0
    gates[100:110] = np.nan
    frame = only(read_frames(write_volume(tmp_path / "volume.h5", {2.0: gates * 0, 0.5: gates})))
    grid, values = frame.grid, frame.values
    assert frame.unit == "dBZ" and frame.time == START and frame.metadata["elevation_degrees"] == 0.5
    assert grid.shape == (200, 200) and "+lat_0=55 +lon_0=10" in grid.projection
    # Row 99 is directly north of the radar, column 100 directly east; gate 40 covers 40 to 41 km.
    assert values[100, 140] == 28.0 and values[49, 100] == 33.0
    down, west = 65 * np.cos(np.deg2rad(230)), 65 * np.sin(np.deg2rad(230))
    assert values[int(100 - down), int(100 + west)] == 40.0
    assert np.isnan(values[0, 0]) and np.isnan(values[int(100 + 50 * np.sin(np.deg2rad(15))), 148])
    assert np.isneginf(values[50, 50]) and not np.isin(values, [-32.0, 0.0]).any()


def test_rejects_a_polar_volume_without_reflectivity(tmp_path):
    path = write_volume(tmp_path / "volume.h5", {0.5: np.zeros((360, 10))}, quantity="VRADH")
    with pytest.raises(DataError, match=r"volume\.h5 is a polar volume of \['VRADH'\]; it must contain DBZH"):
        read_frames(path)


def test_missing_package_error_names_the_install_command(tmp_path, monkeypatch):
    path = write_odim(tmp_path / "a.h5", FIELD, START)
    monkeypatch.setitem(__import__("sys").modules, "pyproj", None)
    with pytest.raises(
        ConfigError, match=r"ODIM HDF5 needs the package pyproj .*pip install -c constraints.txt -e '\.\[io\]'"
    ):
        read_frames_in_process(path, FieldChoice())


def test_grid_difference_ignores_rounding():
    one = RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, 8, 8)
    assert not one.difference(RadarGrid(LAEA, 1e-4, -1e-4, 1000.0000001, 1000.0, 8, 8))
    assert "left 0 instead of 1000" in one.difference(RadarGrid(LAEA, 1000.0, 0.0, 1000.0, 1000.0, 8, 8))
    assert "8 x 8 pixels instead of 8 x 9" in one.difference(RadarGrid(LAEA, 0.0, 0.0, 1000.0, 1000.0, 8, 9))


@pytest.mark.parametrize("minutes", [(5, 0), (0, 10, 5)])
@pytest.mark.parametrize("form", ["netCDF", "Zarr", "GRIB"])
def test_frames_are_in_ascending_order_of_their_times(tmp_path, form, minutes):
    path = tmp_path / "a"
    write_minutes(path, form, minutes)
    frames = read_frames(path)
    ascending = sorted(minutes)
    assert [(frame.time - START).total_seconds() / 60 for frame in frames] == ascending
    assert [frame.values[0, 0] for frame in frames] == [1.0 + minute for minute in ascending]
    assert frame_times(path) == [frame.time for frame in frames]


@pytest.mark.parametrize("form", ["netCDF", "Zarr", "GRIB"])
def test_a_time_that_occurs_twice_is_an_error(tmp_path, form):
    write_minutes(tmp_path / "a", form, (5, 0, 5))
    for read in (read_frames, frame_times):
        with pytest.raises(DataError, match=r"a contains the time 2024-11-26 01:05:00 UTC twice"):
            read(tmp_path / "a")


def write_minutes(path: Path, form: str, minutes: tuple[int, ...]) -> None:
    """Write fields of 1 mm/h plus 1 per minute after START, in the given order."""
    fields = [np.full((2, 3), 1.0 + minute) for minute in minutes]
    if form == "GRIB":
        pytest.importorskip("pygrib")
        times = [(2024, 11, 26, 1, minute, 0) for minute in minutes]
        path.write_bytes(b"".join(grib_message(values, time=at) for values, at in zip(fields, times, strict=True)))
        return
    dataset = xr.concat([cf_dataset(values) for values in fields], "time")
    start = np.datetime64(START.replace(tzinfo=None), "s")
    dataset["time"] = ("time", start + np.array(minutes, "timedelta64[m]"), {"standard_name": "time"})
    if form == "Zarr":
        dataset.to_zarr(path, consolidated=False)
    else:
        dataset.to_netcdf(path, engine="h5netcdf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(b"\x89HDF\r\n\x1a\n" + bytes(100)),
            "is HDF5 compressed with gzip; only MRMS GRIB2, FMI PGM, .* are",
        ),
        (
            gzip.compress(b"CDF\x01" + bytes(100)),
            r"is CF netCDF compressed with gzip; .* decompressed first \(gunzip\)",
        ),
        (gzip.compress(b"CDF\x05" + bytes(100)), "is CF netCDF compressed with gzip"),
        (gzip.compress(b"GIF89a" + bytes(100)), "is MeteoSwiss GIF compressed with gzip"),
        (gzip.compress(gzip.compress(b"GRIB")), "is compressed with gzip twice; decompress it first"),
        (bz2.compress(b"GRIB"), r"is MRMS GRIB2 compressed with bzip2; .* decompressed first \(bunzip2\)"),
        (lzma.compress(b"GRIB"), "is compressed with xz; decompress it first"),
        (gzip.compress(b""), "is empty"),
    ],
    ids=["hdf5", "netcdf", "cdf5", "gif", "twice", "bzip2", "xz", "empty"],
)
def test_compressed_files_state_what_to_do(tmp_path, content, message):
    (tmp_path / "a.gz").write_bytes(content)
    for read in (read_frames_in_process, frame_times_in_process):
        with pytest.raises(DataError, match=rf"a\.gz {message}"):
            read(tmp_path / "a.gz", FieldChoice("mm/h"))


def test_gzipped_hdf5_of_every_writer_states_what_to_do(tmp_path):
    for write in (
        lambda path: write_odim(path, FIELD, START),
        lambda path: write_cf(path, np.ones((1, 3, 4), np.float32), [START]),
    ):
        plain = write(tmp_path / "plain")
        (tmp_path / "a.h5.gz").write_bytes(gzip.compress(plain.read_bytes()))
        with pytest.raises(DataError, match=r"a\.h5\.gz is HDF5 compressed with gzip"):
            read_frames(tmp_path / "a.h5.gz")


def test_pipes_and_plain_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "a.h5")
    (tmp_path / "b.h5").mkdir()
    for name, kind in (("a.h5", "not a regular file"), ("b.h5", "a folder without a Zarr group")):
        for reads in (read_frames, frame_times):
            with pytest.raises(DataError, match=rf"{name} is {kind}; the supported formats are"):
                reads(tmp_path / name)


def test_hdf5_after_a_user_block_is_read(tmp_path):
    write_odim(tmp_path / "plain.h5", storm(0), START)
    with h5py.File(tmp_path / "plain.h5") as plain, h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
        file.attrs.update(plain.attrs)
        for name in plain:
            plain.copy(name, file)
    assert (tmp_path / "a.h5").read_bytes()[:8] == bytes(8)
    frame, expected = (only(read_frames(tmp_path / name)) for name in ("a.h5", "plain.h5"))
    np.testing.assert_array_equal(frame.values, expected.values)
    assert frame.time == START == frame_times(tmp_path / "a.h5")[0]
