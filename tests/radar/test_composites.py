"""Composites of the volumes of several radars: values by the place of each radar, groups of times, and grids."""

from datetime import UTC, datetime

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.radar import frame_times, parse_importer, read_frames
from simcast_hpc.radar.frame_files import list_files
from tests.radar.odim_files import polar_layout, write_layout

pyproj = pytest.importorskip("pyproj")
TIME = datetime(2024, 11, 26, 1, tzinfo=UTC)
PLACES = {"east": (10.6, 55.0), "west": (10.0, 55.0)}  # 38 km apart, with a range of 32 km
LEVELS = {"east": 20.0, "west": 40.0}


def write(folder, name, *, clock="010000", level=None, dry=False):
    folder.mkdir(parents=True, exist_ok=True)
    groups = polar_layout()
    groups["where"] |= {"lon": PLACES[name][0], "lat": PLACES[name][1]}
    groups["what"] |= {"time": clock}
    stored = np.full((360, 32), round((level or LEVELS[name]) / 0.005), np.uint16)
    if dry:
        stored[:] = 0
    groups["dataset1/data1/data"] = stored
    return write_layout(folder / f"{name}_{clock}.h5", groups)


def read(folder, *words):
    importer = parse_importer(words or ["composite:maximum"])
    frames = read_frames(folder, prefer="dBZ", importer=importer)
    assert frame_times(folder, importer=importer) == [frame.time for frame in frames]
    return frames


def at(frame, longitude, latitude=55.0):
    x, y = pyproj.Proj(frame.grid.projection)(longitude, latitude)
    return frame.values[int((frame.grid.top - y) // 1000), int((x - frame.grid.left) // 1000)]


def test_maximum_and_nearest(tmp_path):
    write(tmp_path / "a", "east")
    write(tmp_path / "b", "west")
    (maximum,) = read(tmp_path)
    (nearest,) = read(tmp_path, "composite:nearest")
    # West of both, between, and east of both: where both see a pixel, the larger value or that of the nearer radar.
    for longitude, expected in ((9.7, (40, 40)), (10.25, (40, 40)), (10.35, (40, 20)), (10.9, (20, 20))):
        np.testing.assert_allclose((at(maximum, longitude), at(nearest, longitude)), expected, rtol=1e-6)
    assert np.isnan(at(maximum, 10.3, 55.35)) and np.isnan(maximum.values).any()
    assert maximum.time == TIME and maximum.metadata["radars"] == 2 and maximum.unit == "dBZ"
    assert list_files([tmp_path], importer=parse_importer(["composite:maximum"])) == [tmp_path]


def test_no_echo_is_a_value_and_missing_is_none(tmp_path):
    write(tmp_path, "east", dry=True)
    write(tmp_path, "west")
    (maximum,) = read(tmp_path)
    (nearest,) = read(tmp_path, "composite:nearest")
    assert at(maximum, 10.35) == 40.0 and np.isneginf(at(nearest, 10.35)) and np.isneginf(at(maximum, 10.9))


def test_a_pixel_equals_that_of_its_volume(tmp_path):
    path = write_layout(tmp_path / "a.h5", polar_layout())
    (volume,) = read_frames(path, prefer="dBZ")
    (composite,) = read(tmp_path)
    assert composite.grid.difference(volume.grid) == ""
    np.testing.assert_array_equal(composite.values, volume.values)


def test_volumes_within_the_tolerance_are_one_frame(tmp_path):
    for clock in ("010000", "010500"):
        write(tmp_path, "east", clock=clock)
    for clock in ("010022", "010504"):
        write(tmp_path, "west", clock=clock)
    frames = read(tmp_path)
    assert [frame.time.minute for frame in frames] == [0, 5] and {one.metadata["radars"] for one in frames} == {2}
    assert len(read(tmp_path, "composite:maximum tolerance=0.1")) == 3
    (tmp_path / "east_010500.h5").unlink()
    importer = parse_importer(["composite:maximum least=2"])
    assert frame_times(tmp_path, importer=importer) == [TIME]
    (frame,) = read_frames(tmp_path, importer=importer, times=[TIME])
    assert frame.time == TIME


def test_options_of_the_grid(tmp_path):
    write(tmp_path, "east")
    (frame,) = read(tmp_path, "composite:maximum center=55,10.3 extent=-50000,-40000,50000,40000 spacing=2000")
    assert frame.grid.shape == (40, 50) and (frame.grid.left, frame.grid.top) == (-50_000.0, 40_000.0)
    (frame,) = read(tmp_path, "composite:maximum projection=EPSG:25832 extent=550000,6040000,650000,6140000")
    assert frame.grid.projection == "EPSG:25832" and frame.grid.shape == (100, 100)
    for options, message in (
        ("center=55 extent=0,0,1,1", "center='55' is invalid; it must be 2 numbers"),
        ("extent=0,0,1,1", "extent requires the option projection or center"),
        ("center=55,10 extent=0,0,0,0", "must be LEFT,BOTTOM,RIGHT,TOP"),
        ("tolerance=-1", "tolerance='-1' is invalid"),
        ("tolerances=1", "has no key 'tolerances'; did you mean tolerance"),
    ):
        with pytest.raises(ConfigError, match=message):
            read(tmp_path, f"composite:maximum {options}")


def test_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"contains 0 files that match '\*'"):
        read(tmp_path / "empty")
    write(tmp_path / "a", "east")
    with pytest.raises(DataError, match=r"contains no composite: 1 volumes, at least 2 within 0:02:00"):
        read(tmp_path / "a", "composite:maximum least=2")
    (tmp_path / "a" / "west.h5").write_bytes(b"no volume at all")
    with pytest.raises(DataError, match=r"west\.h5 begins with b'no volum'"):
        read(tmp_path / "a")
    assert len(read(tmp_path / "a", "composite:maximum pattern=east*")) == 1
