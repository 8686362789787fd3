"""Every real ODIM file of ../shared, compared with values read independently: h5py arithmetic, pyproj and xradar."""

import shutil
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyproj
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import RadarFrame, frame_times, read_frames
from tests.shared_data import shared

FILES = "data/radar/files"
# Unit of the quantity, minutes of an accumulation, and time.
COMPOSITES = {
    f"{FILES}/odim_dialects/belgium.comp.hdf": ("mm/h", 60.0, datetime(2019, 6, 6, 0, 0)),
    f"{FILES}/odim_dialects/comp.h5": ("dBZ", None, datetime(2015, 7, 19, 13, 0)),
    f"{FILES}/odim_dialects/comp4ctfilter.h5": ("dBZ", None, datetime(2014, 3, 25, 9, 0)),
    f"{FILES}/odim_dialects/CPC2335513304_00060.001.h5": ("mm/h", 60.0, datetime(2023, 12, 21, 13, 30)),
    f"{FILES}/odim_dialects/opera_west.h5": ("dBZ", None, datetime(2026, 6, 5, 0, 0)),
    f"{FILES}/odim_dialects/T_PASH22_C_EUOC_20241126010000.hdf": ("mm/h", 60.0, datetime(2024, 11, 26, 1, 0)),
    f"{FILES}/knmi_formats/RAD_CU21_PPZ_E05_202208302235.h5": ("dBZ", None, datetime(2022, 8, 30, 22, 35)),
    "data/radar/native/opera_odim/T_PABV21_C_EUOC_20241126010000.hdf": ("dBZ", None, datetime(2024, 11, 26, 1, 0)),
}
VOLUMES = ("IDR66_20100206_111233.vol.h5", "knmi_polar_volume.h5", "pvol_sevil_20170113T140000Z__all_scans_malfunc.h5")


def test_no_real_file_is_left_out():
    found = set()
    for folder in (FILES, "data/radar/native"):
        for path in shared(folder).rglob("*"):
            if h5py.is_hdf5(path):
                with h5py.File(path, "r") as file:
                    if {"what", "dataset1"} <= set(file):
                        found.add(path.name)
    assert found == {Path(name).name for name in COMPOSITES} | set(VOLUMES)


@cache
def frame_of(name: str) -> RadarFrame:
    (frame,) = read_frames(shared(name), prefer=COMPOSITES[name][0])
    return frame


def attributes(file: Any, group: str) -> dict[str, Any]:
    """Return the attributes of the root, overridden by those of dataset1 and its first data group."""
    merged: dict[str, Any] = {}
    for level in (group, f"dataset1/{group}", f"dataset1/data1/{group}"):
        if level in file:
            merged |= {key: np.ravel(value)[0] for key, value in file[level].attrs.items()}
    return merged


SLOW = "data/radar/native/opera_odim/T_PABV21_C_EUOC_20241126010000.hdf"  # test_radar_native.py also reads it
BY_NAME = pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=Path(name).name, marks=pytest.mark.slow if name == SLOW else ()) for name in COMPOSITES],
)


@BY_NAME
def test_pixels_of_composites(name):
    unit, minutes, time = COMPOSITES[name]
    frame = frame_of(name)
    with h5py.File(shared(name), "r") as file:
        stored, what = file["dataset1/data1/data"][...].astype(np.float64), attributes(file, "what")
    missing, dry = np.isnan(stored) | (stored == what.get("nodata")), stored == what.get("undetect")
    physical = (stored * what.get("gain", 1.0) + what.get("offset", 0.0)) * 60.0 / (minutes or 60.0)
    assert (frame.unit, frame.interval_minutes, frame.time) == (unit, minutes, time.replace(tzinfo=UTC))
    assert frame_times(shared(name), prefer=unit) == [frame.time]
    np.testing.assert_array_equal(np.isnan(frame.values), missing)
    assert (frame.values[dry] == (-np.inf if unit == "dBZ" else 0.0)).all()
    np.testing.assert_allclose(frame.values[~missing & ~dry], physical[~missing & ~dry], rtol=1e-6)


@BY_NAME
def test_corners_of_composites(name):
    grid = frame_of(name).grid
    with h5py.File(shared(name), "r") as file:
        where = attributes(file, "where")
    projection = where["projdef"].decode() if isinstance(where["projdef"], bytes) else str(where["projdef"])
    right, bottom = grid.left + grid.width * grid.spacing_x, grid.top - grid.height * grid.spacing_y
    corners = {"LL": (grid.left, bottom), "UL": (grid.left, grid.top), "UR": (right, grid.top), "LR": (right, bottom)}
    compared = 0
    for corner, (x, y) in corners.items():
        if f"{corner}_lon" in where:
            expected = pyproj.Proj(projection)(where[f"{corner}_lon"], where[f"{corner}_lat"])
            assert (x, y) == pytest.approx(expected, abs=0.02 * grid.spacing_x), corner
            compared += 1
    assert compared >= 1
    if "comp.h5" not in name:
        in_meters = 1000.0 if where["xscale"] == 1.0 else 1.0
        assert (grid.spacing_x, grid.spacing_y) == pytest.approx(
            (where["xscale"] * in_meters, where["yscale"] * in_meters), rel=0.005
        )


def test_grid_of_one_radar_follows_its_corners_where_the_pixel_size_is_wrong(caplog):
    # Vaisala IRIS: the corners are 500 km apart. xscale and yscale (1982, 1996 m) would make 998 km of 500 pixels,
    # but the data end in a circle of 250 pixels around the radar, whose range is 250 km.
    name = f"{FILES}/odim_dialects/comp.h5"
    (frame,) = read_frames(shared(name), prefer="dBZ")
    assert (frame.grid.spacing_x, frame.grid.spacing_y) == pytest.approx((994.52, 1000.0), abs=0.01)
    assert "where/xscale is 1981.8, but 994.521 by four corners around the radar, which are used" in caplog.text
    pixels = np.hypot(*(np.mgrid[:500, :500] - 249.5))
    assert pixels[np.isfinite(frame.values)].max() == pytest.approx(250.0, abs=1.5)
    assert pixels[np.isnan(frame.values)].min() == pytest.approx(250.0, abs=1.5)


@pytest.fixture
def volume(request, tmp_path) -> Path:
    """Return a real volume; a copy without ``how/malfunc`` if all its sweeps have it."""
    path = shared(f"{FILES}/polar/{request.param}")
    if "malfunc" not in path.name:
        return path
    copy = tmp_path / path.name
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        for name in file:
            if name.startswith("dataset"):
                del file[name]["how"].attrs["malfunc"]
    return copy


@pytest.mark.parametrize("volume", VOLUMES, indirect=True)
def test_pixels_of_volumes(volume):
    """Compare every fourth row and column with the gate by xradar's coordinates and a geodesic from the radar."""
    xradar = pytest.importorskip("xradar", reason="the package xradar is an optional reference")
    (frame,) = read_frames(volume)
    sweep = xradar.io.open_odim_datatree(str(volume), decode_cf=False, mask_and_scale=False)
    with h5py.File(volume, "r") as file:
        what, where, how = (attributes(file, name) for name in ("what", "where", "how"))
    assert frame.metadata["group"] == "dataset1/data1"
    lowest = sweep["sweep_0"].to_dataset()
    stored = lowest["DBZH"].transpose("azimuth", "range").values.astype(np.float64)
    # xradar ignores how/astart, by which the first ray starts before or after north.
    azimuths, ranges = lowest["azimuth"].values.astype(np.float64) + how.get("astart", 0.0), lowest["range"].values
    x, y = np.meshgrid(frame.grid.x[::4], frame.grid.y[::4])
    longitude, latitude = pyproj.Proj(frame.grid.projection)(x.ravel(), y.ravel(), inverse=True)
    radar = np.full(x.size, where["lon"]), np.full(x.size, where["lat"])
    direction, _, ground = pyproj.Geod(ellps="WGS84").inv(*radar, longitude, latitude)
    # Nearest gate among all, by the height formula of 4/3 of the earth's radius.
    radius, elevation = 4 / 3 * 6_371_000.0, np.deg2rad(where["elangle"])
    of_gates = radius * np.arcsin(
        ranges * np.cos(elevation) / np.sqrt(ranges**2 + radius**2 + 2 * ranges * radius * np.sin(elevation))
    )
    gate = np.abs(ground[:, None] - of_gates[None]).argmin(axis=1)
    ray = np.abs((direction[:, None] - azimuths[None] + 180.0) % 360.0 - 180.0).argmin(axis=1)
    expected = np.where(
        stored == what["undetect"],
        -np.inf,
        np.where(stored == what["nodata"], np.nan, stored * what["gain"] + what["offset"]),
    )[ray, gate]
    inside = ground < min(of_gates[-1], 250_000.0)
    found = frame.values[::4, ::4].ravel()
    assert np.isnan(found[ground > min(of_gates[-1] + where["rscale"], 250_000.0)]).all()
    found = found[inside]
    # Pixels at the border of two gates or rays may fall on either side.
    same = np.isclose(found, expected[inside], rtol=0, atol=1e-4, equal_nan=True)
    assert inside.sum() > 3_000 and same.mean() > 0.998, same.mean()
    assert np.isfinite(found).any() and np.isneginf(found).any()


def test_volume_whose_sweeps_have_a_malfunction_is_rejected():
    path = shared(f"{FILES}/polar/{VOLUMES[2]}")
    with pytest.raises(DataError, match=r"malfunc\.h5: how/malfunc is true for all 20 fields; none can be used"):
        read_frames(path)


def test_volume_with_equal_nodata_and_undetect_has_no_missing_gate():
    (frame,) = read_frames(shared(f"{FILES}/polar/{VOLUMES[0]}"))
    inside = np.hypot(*np.meshgrid(frame.grid.x, frame.grid.y)) < 149_000.0
    assert not np.isnan(frame.values[inside]).any() and np.isneginf(frame.values[inside]).any()
