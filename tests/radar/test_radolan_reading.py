"""RADOLAN and RADKLIM: values, flags, grids and times by the description of the format, and of real files."""

import bz2
import gzip
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.radar import frame_times, read_frames
from simcast_hpc.radar.radar_frame import FieldChoice
from simcast_hpc.radar.read_frame import frame_times_in_process, read_frames_in_process
from tests.radar.radolan_files import write_radolan
from tests.shared_data import shared

pytest.importorskip("pyproj")
TIME = datetime(2020, 1, 1, 15, 5, tzinfo=UTC)


def read(path: Path):
    (frame,) = read_frames_in_process(path, FieldChoice())
    assert frame_times_in_process(path, FieldChoice()) == [frame.time]
    return frame


def zeros(*shape: int, dtype=np.uint16) -> np.ndarray:
    return np.zeros(shape, dtype)


def test_values_flags_rows_and_interval(tmp_path):
    stored = zeros(900, 900)
    stored[0, :6] = [123, 0x1000 | 123, 0x2000 | 2500, 0x8000 | 7, 0xFFFF, 4095]
    stored[899, 1] = 100
    frame = read(write_radolan(tmp_path / "a", stored, TIME))
    np.testing.assert_allclose(frame.values[-1, [0, 1, 5]], [1.23 * 12, 1.23 * 12, 40.95 * 12], rtol=1e-6)
    assert np.isnan(frame.values[-1, 2:5]).all() and np.isnan(frame.values).sum() == 3
    assert frame.values[0, 1] == np.float32(12.0) and frame.values[0, 0] == 0.0
    assert (frame.unit, frame.time, frame.start) == ("mm/h", TIME, TIME - timedelta(minutes=5))


@pytest.mark.parametrize(
    ("product", "header", "rate"),
    [
        ("RW", {"interval": "  60", "precision": "-01"}, 12.3),
        ("SF", {"interval": "1440", "precision": "-01"}, 12.3 / 24),
        ("SF", {"interval": "   1U1", "precision": "-01"}, 12.3 / 24),
        ("YW", {"interval": "   5U0", "precision": "-02"}, 1.23 * 12),
        ("RZ", {"interval": "   5", "precision": "+00"}, 123 * 12.0),
    ],
)
def test_units_of_accumulations(tmp_path, product, header, rate):
    frame = read(write_radolan(tmp_path / "a", np.full((900, 900), 123, np.uint16), TIME, product, **header))
    np.testing.assert_allclose(frame.values, rate, rtol=1e-6)
    assert frame.metadata["quantity"] == product


def test_reflectivity_of_one_and_two_bytes(tmp_path):
    stored = zeros(900, 900, dtype=np.uint8)
    stored[0, :5] = [1, 120, 248, 249, 250]
    frame = read(write_radolan(tmp_path / "a", stored, TIME, "RX", precision="+00"))
    np.testing.assert_array_equal(frame.values[-1, :3], np.float32([-32.0, 27.5, 91.5]))
    assert np.isnan(frame.values[-1, 3:5]).all() and np.isneginf(frame.values[0]).all()
    assert frame.unit == "dBZ" and frame.start is None
    wide = zeros(1200, 1100)
    wide[0, :3] = [1200, 0x2000 | 2500, 1]
    frame = read(write_radolan(tmp_path / "b", wide, TIME, "WN", precision="-01", version=5, more="VV   0"))
    np.testing.assert_allclose(frame.values[-1, [0, 2]], [27.5, -32.45], rtol=1e-6)
    assert np.isnan(frame.values[-1, 1]) and np.isneginf(frame.values[0]).all()


@pytest.mark.parametrize(
    ("shape", "version", "longitude", "latitude", "tolerance"),
    [
        # Published lower left corners in degrees, of DE1200 on WGS 84.
        ((900, 900), 3, 3.5889, 46.9526, 1e-4),
        ((1100, 900), 3, 4.6759, 46.1929, 1e-4),
        ((1500, 1400), 2, 2.3419, 43.9336, 1e-4),
        ((1200, 1100), 5, 3.566994635, 45.69642538, 1e-8),
    ],
)
def test_corners_are_those_published(tmp_path, shape, version, longitude, latitude, tolerance):
    import pyproj

    frame = read(write_radolan(tmp_path / "a", zeros(*shape), TIME, version=version))
    grid = frame.grid
    corner = pyproj.Proj(grid.projection)(grid.left, grid.top - grid.spacing_y * grid.height, inverse=True)
    np.testing.assert_allclose(corner, [longitude, latitude], rtol=0, atol=tolerance)


def test_grids_share_their_pixels(tmp_path):
    national = read(write_radolan(tmp_path / "a", zeros(900, 900), TIME)).grid
    extended = read(write_radolan(tmp_path / "b", zeros(1100, 900), TIME)).grid
    larger = read(write_radolan(tmp_path / "c", zeros(1200, 1100), TIME, version=3)).grid
    offsets = [(grid.left - national.left, grid.top - national.top) for grid in (extended, larger)]
    np.testing.assert_allclose(offsets, [(80_000.0, 100_000.0), (-20_000.0, 150_000.0)], rtol=0, atol=1e-6)


def test_compressed_files_and_archives(tmp_path):
    plain = write_radolan(tmp_path / "plain", np.full((900, 900), 5, np.uint16), TIME)
    later = write_radolan(tmp_path / "later", zeros(900, 900), TIME + timedelta(minutes=5))
    for name, compress in (("a.gz", gzip.compress), ("a.bz2", bz2.compress)):
        (tmp_path / name).write_bytes(compress(plain.read_bytes()))
        np.testing.assert_array_equal(read(tmp_path / name).values, read(plain).values)
    with tarfile.open(tmp_path / "YW_202001.tar", "w") as archive:
        archive.add(later, "x/later")
        archive.add(tmp_path / "a.gz", "x/a.gz")
    path = tmp_path / "YW_202001.tar"
    assert frame_times(path) == [TIME, TIME + timedelta(minutes=5)]
    assert [frame.time for frame in read_frames(path)] == frame_times(path)
    (frame,) = read_frames(path, times=[TIME])
    np.testing.assert_array_equal(frame.values, read(plain).values)
    assert read_frames(path, times=[TIME - timedelta(minutes=5)]) == []
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        archive.add(later, "later")
    with pytest.raises(DataError, match=r"b\.tar\.gz is a compressed tar archive; decompress it first"):
        read_frames(tmp_path / "b.tar.gz")


@pytest.mark.parametrize(
    ("product", "header", "message"),
    [
        ("PG", {}, "is the RADOLAN product PG; reflectivity .* are supported"),
        ("W1", {"interval": "1008"}, "is the RADOLAN product W1"),  # its interval is in 10 minutes
        ("RY", {"more": "VV  60"}, r"is a forecast of 60 minutes \(RY\); an observation has the lead time 0"),
        ("RY", {"interval": "   0"}, r"the accumulation interval \(INT\) is 0 minutes"),
    ],
)
def test_rejects_other_products_and_forecasts(tmp_path, product, header, message):
    path = write_radolan(tmp_path / "a", zeros(900, 900), TIME, product, **header)
    for read_file in (read_frames, frame_times):
        with pytest.raises(DataError, match=message):
            read_file(path)


def test_damaged_files_are_rejected(tmp_path):
    content = write_radolan(tmp_path / "a", zeros(900, 900), TIME).read_bytes()
    for size, message in ((60, "no complete RADOLAN header"), (5000, "contains 5000 bytes"), (-1, "it may be damaged")):
        (tmp_path / "b").write_bytes(content[:size])
        with pytest.raises(DataError, match=message):
            read_frames(tmp_path / "b")
    (tmp_path / "c").write_bytes(content + b"\n")
    with pytest.raises(DataError, match="contains more than"):
        read_frames(tmp_path / "c")
    (tmp_path / "d").write_bytes(content.replace(b"GP 900x 900", b"GP9999x9999"))
    with pytest.raises(DataError, match=r"has the grid 9999 x 9999; the RADOLAN grids 900 x 900, .* are supported"):
        read_frames(tmp_path / "d")
    (tmp_path / "e").write_bytes(content.replace(b"RY0115", b"RY3115").replace(b"100000120", b"100000220"))
    with pytest.raises(DataError, match="is not day, hour and minute, month and year"):
        read_frames(tmp_path / "e")


def independent(path: Path, shape: tuple[int, int], factor: float) -> np.ndarray:
    """Return the rate of a gzipped file by its last bytes alone; pysteps 1.21 adds -0.01 mm to these products."""
    stored = np.frombuffer(gzip.decompress(path.read_bytes())[-2 * shape[0] * shape[1] :], "<u2").reshape(shape)[::-1]
    return np.where(stored & 0xA000, np.nan, (stored & 0xFFF) * factor)


@pytest.mark.parametrize(
    ("folder", "shape", "factor", "interval"),
    [
        ("radolan_yw", (1100, 900), 0.12, 5),
        ("radolan_ry", (900, 900), 0.12, 5),
        ("radolan_rw", (900, 900), 0.1, 60),
    ],
)
def test_real_files(folder, shape, factor, interval):
    for path in sorted(shared(f"data/radar/files/{folder}").iterdir()):
        frame = read(path)
        np.testing.assert_allclose(frame.values, independent(path, shape, factor), rtol=1e-6, atol=0)
        stamp = path.name.split("-")[-5]
        assert frame.time == datetime.strptime(stamp, "%y%m%d%H%M").replace(tzinfo=UTC)
        assert frame.interval_minutes == interval
