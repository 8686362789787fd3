"""Polar volumes of xradar and Cartesian IRIS products: values against xradar, GDAL and gates computed by hand."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.radar import frame_times, parse_importer, read_frames
from simcast_hpc.radar.format_detection import detect_format
from simcast_hpc.radar.radar_frame import FieldChoice
from simcast_hpc.radar.read_frame import frame_times_in_process, read_frames_in_process
from tests.shared_data import shared

xradar = pytest.importorskip("xradar")
xr = pytest.importorskip("xarray")
TIME = datetime(2024, 6, 11, 12, 5, tzinfo=UTC)
RAINBOW, IRIS = "data/radar/files/polar/2013051000000600dBZ.vol", "data/radar/files/polar/SUR160703220000.PPI71P4.gz"


def read(path: Path, *words: str):
    choice = FieldChoice("dBZ", importer=parse_importer(words))
    (frame,) = read_frames_in_process(path, choice)
    assert frame_times_in_process(path, choice) == [frame.time]
    return frame


def expected_on_grid(frame, azimuths, ranges, polar, elevation):
    """Return the value of the nearest ray and gate of each pixel, by the height and distance of each gate."""
    radius = 4 / 3 * 6_371_000.0
    x, y = np.meshgrid(frame.grid.x, frame.grid.y)
    distance, direction = np.hypot(x, y), np.rad2deg(np.arctan2(x, y)) % 360.0
    gate_size = ranges[1] - ranges[0]
    edges = np.append(ranges - gate_size / 2, ranges[-1] + gate_size / 2)
    tilt = np.deg2rad(elevation)
    ground = radius * np.arctan2(edges * np.cos(tilt), radius + edges * np.sin(tilt))
    gates = np.searchsorted(ground, distance, side="right") - 1
    turn = np.abs((direction[..., None] - azimuths + 180.0) % 360.0 - 180.0)
    values = polar[turn.argmin(-1), np.clip(gates, 0, len(ranges) - 1)]
    return np.where((gates < 0) | (gates >= len(ranges)), np.nan, values)


def test_rainbow_volume_equals_xradar():
    path = shared(RAINBOW)
    frame = read(path)
    with xr.open_dataset(str(path), engine="rainbow", group="sweep_0") as sweep:
        polar = np.where(sweep.DBZH.values <= -31.99, -np.inf, sweep.DBZH.values)
        expected = expected_on_grid(frame, sweep.azimuth.values, sweep.range.values.astype(float), polar, 0.6)
    same = (frame.values == expected) | (np.isnan(frame.values) & np.isnan(expected))
    assert same.mean() > 0.9999  # pixels whose center is between two rays
    assert frame.time == datetime(2013, 5, 10, 0, 0, 6, tzinfo=UTC) and frame.unit == "dBZ"
    assert frame.metadata["elevation_degrees"] == 0.6


def test_iris_product_equals_gdal(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = shared(IRIS)
    frame = read(path)
    (tmp_path / "plain").write_bytes(gzip.decompress(path.read_bytes()))
    with rasterio.open(tmp_path / "plain", driver="IRIS") as file:
        stored, transform = file.read(1), file.transform
    np.testing.assert_array_equal(
        np.where(np.isfinite(frame.values), frame.values, 0), np.where(np.isfinite(frame.values), stored, 0)
    )
    assert (stored[np.isneginf(frame.values)] == -32).all() and (stored[np.isnan(frame.values)] == -9999).all()
    np.testing.assert_allclose(
        (frame.grid.left, frame.grid.top, frame.grid.spacing_x), (transform.c, transform.f, transform.a)
    )
    assert frame.time == datetime(2016, 7, 3, 22, tzinfo=UTC)
    content = (tmp_path / "plain").read_bytes()
    (tmp_path / "series").write_bytes(content[:24] + b"\x0e" + content[25:])  # the time series of a ray
    with pytest.raises(DataError, match=r"is an IRIS product of type 14; PPI \(1\), CAPPI \(3\), SRI \(32\) are"):
        read(tmp_path / "series")
    (tmp_path / "short").write_bytes(content[:5000])
    with pytest.raises(DataError, match="contains 5000 bytes; its header declares 884240"):
        read(tmp_path / "short")
    (tmp_path / "large").write_bytes(content[:112] + b"\xff\xff\xff\x7f" * 2 + content[120:])
    with pytest.raises(DataError, match="declares 2147483647 x 2147483647 pixels"):
        read_frames(tmp_path / "large")


def volume(*, codes: np.ndarray, elevations=(0.5, 2.0), **attributes):
    """Return a volume in the data model of xradar; every sweep has the codes plus its number."""
    rays, gates = codes.shape
    sweeps = {}
    for number, elevation in enumerate(elevations):
        field = {"units": "dBZ", "standard_name": "radar_equivalent_reflectivity_factor_h", **attributes}
        time = np.datetime64("2024-06-11T12:05:00") + np.arange(rays).astype("timedelta64[ms]")
        sweeps[f"/sweep_{number}"] = xr.Dataset(
            {
                "DBZH": (("azimuth", "range"), codes + np.uint8(number), field),
                "sweep_mode": "azimuth_surveillance",
                "sweep_number": number,
                "sweep_fixed_angle": elevation,
                "prt_mode": "fixed",
                "follow_mode": "none",
            },
            {
                "azimuth": ("azimuth", (np.arange(rays) + 0.5) * 360.0 / rays, {"standard_name": "ray_azimuth_angle"}),
                "elevation": ("azimuth", np.full(rays, elevation), {"standard_name": "ray_elevation_angle"}),
                "time": ("azimuth", time, {"standard_name": "time"}),
                "range": ("range", 250.0 + 500.0 * np.arange(gates), {"units": "meters"}),
            },
        )  # fmt: skip
    root = xr.Dataset(
        {
            "volume_number": 0,
            "time_coverage_start": "2024-06-11T12:05:00Z",
            "time_coverage_end": "2024-06-11T12:09:00Z",
            "sweep_group_name": ("sweep", [f"sweep_{number}" for number in range(len(elevations))]),
            "sweep_fixed_angle": ("sweep", np.array(elevations)),
        },
        {"latitude": 52.0, "longitude": 5.0, "altitude": 50.0},
        {"Conventions": "Cf/Radial", "version": "2.0"},
    )  # fmt: skip
    return xr.DataTree.from_dict({"/": root, **sweeps})


CODES = (np.arange(360 * 40) % 37).astype(np.uint8).reshape(360, 40)


def write_cfradial2(path: Path, **content) -> Path:
    volume(codes=CODES, **content).to_netcdf(path, engine="h5netcdf")
    return path


PACKED = {"scale_factor": 0.5, "add_offset": -32.0}


def test_cfradial2_with_and_without_a_code_of_no_echo(tmp_path):
    path = write_cfradial2(tmp_path / "a.nc", _FillValue=np.uint8(0), **PACKED)
    assert detect_format(path).name == "polar volume (cfradial2)"
    frame = read(path)
    decoded = np.where(CODES == 0, -np.inf, CODES * 0.5 - 32)
    expected = expected_on_grid(frame, (np.arange(360) + 0.5), 250.0 + 500.0 * np.arange(40), decoded, 0.5)
    same = (frame.values == expected) | (np.isnan(frame.values) & np.isnan(expected))
    assert same.mean() > 0.99 and np.isneginf(frame.values).any()
    assert frame.time == TIME and "+lat_0=52 +lon_0=5" in frame.grid.projection
    missing = read(path, "xradar:cfradial2 fill=missing")
    assert not np.isneginf(missing.values).any()
    both = read(write_cfradial2(tmp_path / "b.nc", _FillValue=np.uint8(36), _Undetect=np.uint8(0), **PACKED))
    assert np.isneginf(both.values).any() and np.isnan(both.values[15:25, 15:25]).any()
    second = read(path, "xradar:cfradial2 sweep=1")
    assert second.metadata["group"] == "sweep_1" and second.metadata["elevation_degrees"] == 2.0
    for words, message in (
        ("xradar:cfradial2 sweep=7", r"sweep='7' is invalid; .* has the sweeps \['0', '1'\]"),
        ("xradar:cfradial2 quantity=VRADH", "quantity='VRADH' is invalid"),
        ("xradar:cfradial2 fill=zero", "fill='zero' is invalid"),
        ("xradar:cfradial2 sweeps=1", "has no key 'sweeps'; did you mean sweep"),
        ("xradar:cfradal1", "there is no importer 'xradar:cfradal1'; did you mean xradar:cfradial1"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_frames(path, importer=parse_importer([words]))


def write_cfradial1(path: Path) -> Path:
    rays, gates = CODES.shape
    codes = np.concatenate([CODES, CODES + np.uint8(1)])
    azimuths = np.tile((np.arange(rays) + 0.5) * 360.0 / rays, 2)
    elevations = np.repeat(np.array([0.5, 2.0]), rays)
    dataset = xr.Dataset(
        {
            "DBZH": (("time", "range"), codes, {"units": "dBZ", "_FillValue": np.uint8(0), **PACKED}),
            "azimuth": ("time", azimuths, {"units": "degrees", "standard_name": "ray_azimuth_angle"}),
            "elevation": ("time", elevations, {"units": "degrees", "standard_name": "ray_elevation_angle"}),
            "sweep_number": ("sweep", np.arange(2)),
            "sweep_mode": ("sweep", np.array(["azimuth_surveillance"] * 2, "S32")),
            "fixed_angle": ("sweep", np.array([0.5, 2.0])),
            "sweep_start_ray_index": ("sweep", np.array([0, rays])),
            "sweep_end_ray_index": ("sweep", np.array([rays - 1, 2 * rays - 1])),
            "volume_number": 0,
            "time_coverage_start": np.bytes_("2024-06-11T12:05:00Z"),
            "time_coverage_end": np.bytes_("2024-06-11T12:09:00Z"),
            "latitude": 52.0,
            "longitude": 5.0,
            "altitude": 50.0,
        },
        {
            "time": ("time", np.arange(2 * rays) / 10, {"units": "seconds since 2024-06-11T12:05:00Z"}),
            "range": ("range", 250.0 + 500.0 * np.arange(gates), {"units": "meters"}),
        },
        {"Conventions": "CF/Radial instrument_parameters", "version": "1.3"},
    )
    dataset.to_netcdf(path, engine="h5netcdf")
    return path


def test_cfradial1_equals_cfradial2(tmp_path):
    first = write_cfradial2(tmp_path / "a.nc", _FillValue=np.uint8(0), **PACKED)
    write_cfradial1(tmp_path / "b.nc")
    assert detect_format(tmp_path / "b.nc").name == "polar volume (cfradial1)"
    np.testing.assert_array_equal(read(tmp_path / "b.nc").values, read(first).values)
    (tmp_path / "c.nc.gz").write_bytes(gzip.compress((tmp_path / "b.nc").read_bytes()))
    zipped = read(tmp_path / "c.nc.gz", "xradar:cfradial1")
    np.testing.assert_array_equal(zipped.values, read(first).values)


@pytest.mark.parametrize("start", [b"AR2V0006.001" + bytes(500), b"<volume version='5'>" + bytes(500)])
def test_damaged_volumes_are_rejected(tmp_path, start):
    (tmp_path / "a").write_bytes(start)
    for read_file in (read_frames, frame_times):
        with pytest.raises(DataError, match=r"/a cannot be read as polar volume"):
            read_file(tmp_path / "a")
