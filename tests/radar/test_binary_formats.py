"""MRMS GRIB2, FMI PGM and MeteoSwiss GIF against hand-computed values, and damaged files of these formats."""

import gzip
import re
import struct
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
from PIL import Image

from simcast_hpc.config import DataError
from simcast_hpc.radar import FieldChoice, RadarFrame, frame_times, read_frames
from simcast_hpc.radar.radar_frame import QuantityError
from simcast_hpc.radar.read_frame import read_frames_in_process
from tests.radar.grib_files import MISSING_SECTION, grib_message
from tests.shared_data import shared

RAIN = np.array([[-3.0, -1.0, 0.0], [0.5, 148.8, 12.3]])
EXPECTED = np.array([[np.nan, np.nan, 0.0], [0.5, 148.8, 12.3]], np.float32)


def read(path: Path, content: bytes) -> RadarFrame:
    path.write_bytes(content)
    (frame,) = read_frames(path)
    assert frame_times(path) == [frame.time]
    return frame


@pytest.mark.parametrize("packing", [0, 41])
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_mrms_rate_missing_and_no_coverage(tmp_path, packing, is_gzipped):
    message = grib_message(RAIN, packing=packing)
    frame = read(tmp_path / "a.grib2", gzip.compress(message) if is_gzipped else message)
    np.testing.assert_allclose(frame.values, EXPECTED, rtol=1e-6)
    assert frame.time == datetime(2019, 6, 10, 0, 2, 30, tzinfo=UTC) and frame.start is None
    assert (frame.grid.left, frame.grid.top) == (pytest.approx(-100.0), pytest.approx(41.0))


@pytest.mark.parametrize(("number", "minutes"), [(2, 60), (6, 1440), (30, 60), (43, 4320), (45, 15)])
def test_mrms_accumulation_is_a_mean_rate_with_its_interval(tmp_path, number, minutes):
    frame = read(tmp_path / "a.grib2", grib_message(RAIN, number=number))
    np.testing.assert_allclose(frame.values, EXPECTED * 60 / minutes, rtol=1e-6)
    assert frame.start == frame.time - timedelta(minutes=minutes)


@pytest.mark.parametrize("product", [(10, 0), (3, 57), (8, 8), (11, 3)])
def test_mrms_reflectivity_no_echo_and_no_coverage(tmp_path, product):
    stored = np.array([[-999.0, -99.0, -31.5], [0.0, 35.5, 60.0]])
    message = grib_message(stored, category=product[0], number=product[1], reference=-999.0)
    frame = read(tmp_path / "a.grib2", message)
    expected = np.array([[np.nan, -np.inf, -31.5], [0.0, 35.5, 60.0]], np.float32)
    np.testing.assert_array_equal(frame.values, expected)
    assert frame.unit == "dBZ" and frame.interval_minutes is None


@pytest.mark.parametrize("product", [(10, 1), (10, 7), (3, 52), (12, 0)])
def test_other_products_of_mrms_are_another_quantity(tmp_path, product):
    message = grib_message(np.zeros((2, 2)), category=product[0], number=product[1])
    with pytest.raises(QuantityError, match=rf"contains the GRIB product \(209, {product[0]}, {product[1]}\)"):
        read(tmp_path / "a.grib2", message)


@pytest.mark.parametrize("over", [{"number": 0}, {"number": 46}, {"discipline": 0}, {"forecast": 60}])
def test_rejects_other_grib_products_and_forecasts(tmp_path, over):
    with pytest.raises(DataError, match=r"a\.grib2 (contains the GRIB product|is a forecast)"):
        read(tmp_path / "a.grib2", grib_message(RAIN, **over))


@pytest.mark.parametrize(
    ("scanning", "order", "first", "last"),
    [
        (0, np.s_[:, :], (41.0, 260.0), (40.0, 262.0)),
        (0x40, np.s_[::-1, :], (40.0, 260.0), (41.0, 262.0)),
        (0x80, np.s_[:, ::-1], (41.0, 262.0), (40.0, 260.0)),
        (0xC0, np.s_[::-1, ::-1], (40.0, 262.0), (41.0, 260.0)),
    ],
)
def test_scanning_modes(tmp_path, scanning, order, first, last):
    content = grib_message(RAIN[order], scanning=scanning, first=first, last=last, increment=1.0)
    frame = read(tmp_path / "a.grib2", content)
    np.testing.assert_allclose(frame.values, EXPECTED, rtol=1e-6)
    assert (frame.grid.left, frame.grid.top) == (-100.5, 41.5)


@pytest.mark.parametrize(
    ("west", "east", "left"), [(359.0, 1.0, -1.5), (179.0, 181.0, 178.5), (180.0, 182.0, -180.5), (0.0, 2.0, -0.5)]
)
def test_mrms_across_0_and_180_degrees_is_not_mirrored(tmp_path, west, east, left):
    content = grib_message(RAIN, first=(41.0, west), last=(40.0, east), increment=1.0)
    frame = read(tmp_path / "a.grib2", content)
    np.testing.assert_allclose(frame.values, EXPECTED, rtol=1e-6)
    assert frame.grid.left == left


def test_every_message_of_a_file_is_read(tmp_path):
    second = grib_message(RAIN + 5, time=(2019, 6, 10, 0, 4, 0))
    for name, compress in (("a.grib2", bytes), ("a.grib2.gz", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(compress(grib_message(RAIN) + b"\0\0\n" + second + b"\n"))
        one, two = read_frames(path)
        assert [one.time.minute, two.time.minute] == [2, 4] and two.values[1, 1] == np.float32(153.8)


def test_rejects_corners_that_contradict_the_increments_and_other_scans(tmp_path):
    with pytest.raises(DataError, match=r"the corners span 5 x 1 degrees, which contradicts 3 x 2 pixels of 1 x 1"):
        read(tmp_path / "a.grib2", grib_message(RAIN, first=(41.0, 260.0), last=(40.0, 265.0), increment=1.0))
    for scanning in (0x20, 0x10):
        with pytest.raises(DataError, match="scanning mode"):
            read(tmp_path / "a.grib2", grib_message(RAIN, scanning=scanning))


MESSAGE = grib_message(RAIN)
PNG = grib_message(RAIN, packing=41)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MESSAGE[:-1], r"declares \d+ bytes and \d+ remain"),
        (MESSAGE[:-30] + bytes(30), "damaged"),
        (MESSAGE + b"rubbish", "begins no GRIB message"),
        (MESSAGE[:8] + struct.pack(">Q", 2**63) + MESSAGE[16:], "declares 9223372036854775808 bytes"),
        (MESSAGE[:8] + struct.pack(">Q", 30) + MESSAGE[16:], "damaged"),
        (MESSAGE[:7] + b"\1" + MESSAGE[8:], "edition 1; edition 2 is supported"),
        (MESSAGE[:16] + struct.pack(">I", 2**31) + MESSAGE[20:], "section 1 of 2147483648 bytes"),
        (MESSAGE[:16] + struct.pack(">I", 0) + MESSAGE[20:], "section 1 of 0 bytes"),
        (grib_message(RAIN, sections={4: MISSING_SECTION}), "has a section 5"),
        (grib_message(RAIN, sections={7: b""}), r"6 values of 16 bits in 0 bytes"),
        (grib_message(RAIN, sections={7: b"\x89PNG"}, packing=41), "PNG of 0 x 0 pixels"),
        (grib_message(RAIN, sections={6: b"\0"}), "does not cover 6 pixels"),
        (PNG.replace(b"IDAT", b"IDAX"), "damaged PNG"),
        (MESSAGE[:43] + struct.pack(">I", 2**32 - 1) + MESSAGE[47:], "declares 3 x 2 and 4294967295 pixels"),
    ],
)
def test_damaged_grib_is_rejected_before_ecCodes_reads_it(tmp_path, monkeypatch, content, message):
    import pygrib

    monkeypatch.setattr(pygrib, "fromstring", lambda _: pytest.fail("ecCodes was called"))
    for name, compress in (("a.grib2", bytes), ("a.grib2.gz", gzip.compress)):
        (tmp_path / name).write_bytes(compress(content))
        with pytest.raises(DataError, match=rf"{re.escape(name)}.*{message}"):
            read_frames_in_process(tmp_path / name, FieldChoice("mm/h"))


FMI_FIELDS = {
    "obstime": "201609281445",
    "param": "CorrectedReflectivity",
    "metersperpixel_x": "1000.0",
    "metersperpixel_y": "1000.0",
    "projection": "radar {",
    "type": "stereographic",
    "centrallongitude": "25",
    "centrallatitude": "90",
    "truelatitude": "60",
}
DBZ = np.array([[0, 1, 64, 84], [255, 254, 128, 0]], np.uint8)
FMI_PROJECTION = "+proj=stere +lon_0=25E +lat_0=90N +lat_ts=60 +a=6371288 +x_0=380886.310 +y_0=3395677.920 +no_defs"


def fmi_file(pixels: np.ndarray = DBZ, *, size: str | None = None, end: bytes = b"", **over: Any) -> bytes:
    """Return a PGM of 1 km pixels whose lower left corner is at x = y = 100 km of FMI's projection."""
    height, width = pixels.shape
    to_degrees = pyproj.Proj(FMI_PROJECTION)
    corners = {}
    for name, x, y in (("bottomleft", 0, 0), ("topright", width, height)):
        corners[name] = "{:.9f} {:.9f}".format(*to_degrees(1e5 + 1e3 * x, 1e5 + 1e3 * y, inverse=True))
    lines = [f"# {key} {value}" for key, value in (FMI_FIELDS | corners | over).items() if value is not None]
    return "\n".join(["P5", *lines, "# }", size or f"{width} {height}\n255", ""]).encode() + pixels.tobytes() + end


@pytest.mark.parametrize("is_gzipped", [False, True])
def test_fmi_values_grid_and_time(tmp_path, is_gzipped):
    content = fmi_file(end=b"\n")
    frame = read(tmp_path / "a.pgm", gzip.compress(content) if is_gzipped else content)
    no_echo = -np.inf
    np.testing.assert_array_equal(frame.values, [[no_echo, -31.5, 0.0, 10.0], [np.nan, 95.0, 32.0, no_echo]])
    assert frame.time == datetime(2016, 9, 28, 14, 45, tzinfo=UTC) and frame.unit == "dBZ"
    np.testing.assert_allclose((frame.grid.left, frame.grid.top), (1e5, 1.02e5), atol=0.1)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"size": "4 3\n255"}, "declares 3 x 4 pixels and contains 8"),
        ({"size": "4 1\n255"}, "declares 1 x 4 pixels and contains 8"),
        ({"size": "1000000 1000000\n255"}, "declares 1000000 x 1000000 pixels; 1 to"),
        ({"size": "0 4\n255"}, "declares 4 x 0 pixels"),
        ({"size": "4 2\n65535"}, "the highest pixel value is 65535; 255"),
        ({"size": "4 x\n255"}, r"the header contains the sizes \[4\]"),
        ({"obstime": "20160928T1445Z"}, "is not of the form YYYYmmddHHMM"),
        ({"obstime": "20160230144"}, "is not of the form YYYYmmddHHMM"),
        ({"obstime": "201602301445"}, "is not of the form YYYYmmddHHMM"),
        ({"obstime": None}, "obstime=''"),
        ({"param": "RainRate"}, "param='RainRate' in the header is not a reflectivity"),
        ({"type": "equidistant"}, "'equidistant'; 'stereographic' is supported"),
        ({"truelatitude": "north"}, "incomplete or invalid"),
        ({"bottomleft": "18.6"}, "incomplete or invalid"),
        ({"bottomleft": "nan nan"}, "must be finite and in order"),
        ({"metersperpixel_x": "2000"}, "the pixel size along x is 2000 in the file, but 1000 by its corners"),
    ],
)
def test_rejects_invalid_fmi_files(tmp_path, over, message):
    with pytest.raises(DataError, match=rf"a\.pgm.*{message}"):
        read(tmp_path / "a.pgm", fmi_file(**over))


def test_gzip_that_expands_without_bound_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("simcast_hpc.radar.declared_size.read_bytes.__defaults__", (1 << 20,))
    path = tmp_path / "a.gz"
    for head in (b"P5\n4 2\n255\n", b"GRIB"):
        path.write_bytes(gzip.compress(head + bytes(2 << 20)))
        with pytest.raises(DataError, match=r"a\.gz contains more than 1048576 bytes"):
            read_frames_in_process(path, FieldChoice("mm/h"))


def gif_file(path: Path, pixels: np.ndarray | None = None, **over: Any) -> Path:
    if pixels is None:
        pixels = np.zeros((640, 710), np.uint8)
        pixels[0, :6] = [0, 1, 2, 150, 251, 255]
    settings = {"product": "AQC", "time": "151351545", "minutes": "000005"} | over
    image = Image.fromarray(pixels).convert("P") if pixels.ndim == 2 else Image.fromarray(pixels)
    # Shades of red from white, black where missing.
    image.putpalette([*(value for code in range(255) for value in (255, 255 - code, 255 - code)), 0, 0, 0])
    comment = "VERSION=1\nPRDT={product}{time} SCALE=mm ACCUm={minutes} DeltaT=000005".format(**settings)
    image.save(path, "GIF", comment=comment.encode(), optimize=False)
    return path


def test_mch_values_interval_and_grid(tmp_path):
    (frame,) = read_frames(gif_file(tmp_path / "a.gif"))
    # 12 (10^((v - 71.5) / 20) / 316)^(2/3) mm/h: v = 2 gives 0.00125, v = 150 gives 106.4.
    low, high = (12 * (10**power / 316) ** (2 / 3) for power in (-3.475, 3.925))
    np.testing.assert_allclose(frame.values[0, :6], [0, 0, low, high, np.nan, np.nan], rtol=1e-6)
    end = datetime(2015, 5, 15, 15, 45, tzinfo=UTC)
    assert frame_times(tmp_path / "a.gif") == [end] and (frame.time, frame.start) == (end, end - timedelta(minutes=5))
    # Bern, the origin of the Swiss grid: 600 km east, 200 km north, up to the difference of the datums.
    x, y = pyproj.Proj(frame.grid.projection)(7.43958333333333, 46.9524055555556)
    np.testing.assert_allclose((x, y), (6e5, 2e5), atol=200)
    assert (frame.grid.x[0], frame.grid.y[0]) == (255_500.0, 479_500.0)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"pixels": np.zeros((640, 709), np.uint8)}, r"has \(709, 640\) pixels"),
        ({"product": "RZC"}, "is product RZC over 5 minutes; AQC or CPC over 5 minutes is supported"),
        ({"minutes": "000060"}, "is product AQC over 60 minutes"),
        ({"time": "153661545"}, "the time '153661545' in the comment is not of the form yydddHHMM"),
        ({"time": "150001545"}, "is not of the form yydddHHMM"),
        ({"time": "1513515455"}, r"does not contain PRDT="),
    ],
)
def test_rejects_invalid_mch_files(tmp_path, over, message):
    with pytest.raises(DataError, match=rf"a\.gif.*{message}"):
        read_frames(gif_file(tmp_path / "a.gif", **over))


def test_rejects_mch_files_that_were_saved_with_other_colors(tmp_path):
    pixels = np.zeros((640, 710), np.uint8)
    pixels[:, 300:] = np.array([60, 120, 255], np.uint8).repeat(150)[:410]
    path = gif_file(tmp_path / "a.gif", pixels)
    with Image.open(path) as image:
        comment = image.info["comment"]
        gray, reduced, colored = image.convert("L"), image.convert("RGB").quantize(3), image.convert("RGB")
        same = image.copy()
    for number, (changed, optimize) in enumerate(((gray, True), (gray, False), (reduced, True), (colored, True))):
        again = tmp_path / f"{number}.gif"
        changed.save(again, "GIF", comment=comment, optimize=optimize)
        with pytest.raises(
            DataError, match=rf"{number}\.gif(: the color of pixel value \d+ is| has .* pixels of mode L)"
        ):
            read_frames_in_process(again, FieldChoice("mm/h"))
    # A copy with the same pixel values is the product.
    same.save(tmp_path / "same.gif", "GIF", comment=comment, optimize=False)
    (copy,) = read_frames_in_process(tmp_path / "same.gif", FieldChoice("mm/h"))
    # v = 120 gives 12 (10^2.425 / 316)^(2/3) = 10.700 mm/h.
    assert copy.values[0, [299, 450, 709]] == pytest.approx([0.0, 10.70015, np.nan], rel=1e-6, nan_ok=True)
    short = bytearray(path.read_bytes())
    at = 13 + 3 * 120  # the color table follows the screen descriptor
    short[at : at + 3] = bytes([255, 134, 135])
    (tmp_path / "one.gif").write_bytes(short)
    with pytest.raises(DataError, match=r"pixel value 120 is \[255, 134, 135\]; it must be \[255, 135, 135\]"):
        read_frames_in_process(tmp_path / "one.gif", FieldChoice("mm/h"))


def test_rejects_incomplete_and_oversized_gifs(tmp_path):
    content = gif_file(tmp_path / "a.gif").read_bytes()
    partial = bytearray(content)
    at = partial.index(b"\x2c\0\0\0\0") + 5  # image descriptor: width and height of the frame
    partial[at : at + 4] = struct.pack("<HH", 710, 320)
    huge = bytearray(content)
    huge[6:10] = struct.pack("<HH", 65535, 65535)
    for damaged, message in (
        (bytes(partial), r"a frame \(0, 0, 710, 320\)"),
        (bytes(huge), "pixels|frame"),
        (content[: len(content) // 2], "damaged or truncated"),
    ):
        (tmp_path / "b.gif").write_bytes(damaged)
        begin = time.process_time()
        with pytest.raises(DataError, match=rf"b\.gif.*{message}"):
            read_frames(tmp_path / "b.gif")
        assert time.process_time() - begin < 2.0


def test_real_fmi_and_mch_pixels_are_decoded(tmp_path):
    path = sorted(shared("data/radar/native/fmi_pgm").iterdir())[0]
    (frame,) = read_frames(path)
    raw = np.frombuffer(gzip.decompress(path.read_bytes())[-760 * 1226 :], np.uint8).reshape(1226, 760)
    expected = np.where(raw == 255, np.nan, np.where(raw == 0, -np.inf, raw / 2 - 32))
    np.testing.assert_array_equal(frame.values, expected.astype(np.float32))
    path = sorted(shared("data/radar/native/mch_gif").iterdir())[0]
    (frame,) = read_frames(path)
    with Image.open(path) as image:
        raw = np.asarray(image)
    np.testing.assert_array_equal(np.isnan(frame.values), raw == 255)
    assert frame.values[raw == 100][0] == np.float32(12 * (10**1.425 / 316) ** (2 / 3))
