"""GeoTIFF: values by rasterio, times and units of tags and options, orientation, projections, and damaged files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.radar import frame_times, parse_importer, read_frames
from simcast_hpc.radar.radar_frame import FieldChoice
from simcast_hpc.radar.read_frame import frame_times_in_process, read_frames_in_process
from tests.shared_data import shared

rasterio = pytest.importorskip("rasterio")
TIME = datetime(2024, 6, 11, 12, 5, tzinfo=UTC)
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
TRANSFORM = (1000.0, 0.0, 100_000.0, 0.0, -1000.0, 250_000.0)


def write(path: Path, *bands: np.ndarray, tags=None, band_tags=(), crs="EPSG:3035", transform=TRANSFORM, **profile):
    fields = bands or (VALUES,)
    units, scales, offsets = (profile.pop(name, None) for name in ("units", "scales", "offsets"))
    options = {"count": len(fields), "dtype": fields[0].dtype, "crs": crs, **profile}
    height, width = fields[0].shape
    affine = rasterio.Affine(*transform)
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, transform=affine, **options) as file:
        for number, field in enumerate(fields, 1):
            file.write(field, number)
        file.update_tags(**{"units": "mm/h", "time": "2024-06-11T12:05:00Z"} if tags is None else tags)
        for number, own in enumerate(band_tags, 1):
            file.update_tags(number, **own)
        for name, value in (("units", units), ("scales", scales), ("offsets", offsets)):
            if value is not None:
                setattr(file, name, value)
    return path


def read(path: Path, *words: str):
    choice = FieldChoice(importer=parse_importer(words))
    frames = read_frames_in_process(path, choice)
    assert frame_times_in_process(path, choice) == [frame.time for frame in frames]
    return frames


def test_values_grid_and_time(tmp_path):
    (frame,) = read(write(tmp_path / "a", np.where(VALUES == 5, -1, VALUES), nodata=-1.0))
    np.testing.assert_array_equal(frame.values, np.where(VALUES == 5, np.nan, VALUES))
    assert (frame.unit, frame.time, frame.start) == ("mm/h", TIME, None)
    grid = frame.grid
    assert (grid.left, grid.top, grid.spacing_x, grid.spacing_y, grid.unit) == (1e5, 2.5e5, 1e3, 1e3, "m")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float64"])
def test_packed_values_of_every_type(tmp_path, dtype):
    stored = VALUES.astype(dtype)
    path = write(
        tmp_path / "a",
        stored,
        nodata=11,
        scales=(0.5,),
        offsets=(-32.0,),
        units=("dBZ",),
        tags={"time": "2024-06-11T12:05"},
    )
    (frame,) = read(path, "geotiff undetect=0")
    np.testing.assert_array_equal(frame.values.ravel()[1:11], np.arange(1, 11) * np.float32(0.5) - 32)
    assert np.isneginf(frame.values[0, 0]) and np.isnan(frame.values[2, 3]) and frame.unit == "dBZ"
    assert [frame.metadata[name] for name in ("stored_type", "gain", "offset")] == [dtype, 0.5, -32.0]


@pytest.mark.parametrize(
    ("name", "words", "time"),
    [
        ("2024-06-11-12-05_ROMA.tif", (), TIME),
        ("rain_20240611T120500Z.tif", (), TIME),
        ("rain_202406111205.tif", (), TIME),
        ("x_11062024_1205.tif", ("geotiff time=x_%d%m%Y_%H%M",), TIME),
        ("24163_1205.tif", ("geotiff time=%y%j_%H%M",), TIME),
        ("202406111405.tif", ("geotiff utc_offset=+02:00",), TIME),
        ("202406110735.tif", ("geotiff time=%Y%m%d%H%M utc_offset=-04:30",), TIME),
    ],
)
def test_time_of_the_name(tmp_path, name, words, time):
    (frame,) = read(write(tmp_path / name, tags={"units": "mm h-1"}), *words)
    assert frame.time == time


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("rain.tif", (), "contains no time, in none of the tags valid_time, time, .*; give a pattern of its name"),
        ("202406111205_202406111305.tif", (), "contains no time"),  # issue and valid time: not known which
        ("x.tif", ("geotiff time=y_%Y%m%d%H%M",), "contains no time of the pattern"),
        ("99999999_9999.tif", ("geotiff time=%Y%m%d_%H%M",), "is not a time of the pattern"),
    ],
)
def test_rejects_names_without_a_time(tmp_path, name, words, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, tags={"units": "mm/h"}), *words)


@pytest.mark.parametrize(
    ("tags", "words", "unit", "factor", "minutes"),
    [
        ({"units": "g m-2 s-1"}, (), "mm/h", 3.6, None),
        ({"units": "mm"}, ("geotiff interval=5",), "mm/h", 12.0, 5.0),
        ({"units": "mm", "start_time": "2024-06-11T11:05"}, (), "mm/h", 1.0, 60.0),
        ({"units": "kg m-2", "standard_name": "precipitation_amount"}, ("geotiff interval=10",), "mm/h", 6.0, 10.0),
        ({"units": "kg m-2", "long_name": "vertically integrated liquid"}, (), "kg/m^2", 1.0, None),
        ({}, ("geotiff unit=kg/m^2",), "kg/m^2", 1.0, None),
        ({}, ("geotiff unit=dBZ scale=0.5 offset=-32",), "dBZ", None, None),
        ({"what_quantity": "RATE"}, (), "mm/h", 1.0, None),
    ],
)
def test_units_and_intervals(tmp_path, tags, words, unit, factor, minutes):
    (frame,) = read(write(tmp_path / "a", tags={"time": "2024-06-11 12:05", **tags}), *words)
    expected = VALUES * np.float32(factor) if factor else VALUES * np.float32(0.5) - 32
    np.testing.assert_allclose(frame.values, expected, rtol=1e-6)
    assert (frame.unit, frame.time, frame.interval_minutes) == (unit, TIME, minutes)


FMI = """<GDALMetadata>
<Item name="Observation time" format="YYYYMMDDhhmm">202406111205</Item>
<Item name="Quantity" unit="dBZ">Corrected reflectivity</Item>
<Item name="Gain">0.500000</Item><Item name="Offset">-32.000000</Item>
<Item name="Nodata">11</Item><Item name="Undetect">0</Item>
</GDALMetadata>"""
PLAIN = {"observation_time": "202406111205", "Gain": "0.5", "Offset": "-32", "Nodata": "11", "Undetect": "0"}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"GDAL_METADATA": FMI}, ()),
        ({"GDAL_METADATA": "\n" + FMI, "units": "dBZ"}, ()),
        ({"GDAL_METADATA": FMI.replace("0.5", "9")}, ("geotiff scale=0.5",)),  # an option has priority
        ({**PLAIN, "units": "DBZH"}, ()),
        ({"time": "2024-06-11T12:05", **PLAIN}, ("geotiff unit=dBZ",)),
    ],
)
def test_tags_of_fmi_and_their_names_alone(tmp_path, tags, words):
    (frame,) = read(write(tmp_path / "a", VALUES.astype(np.uint8), tags=tags), *words)
    np.testing.assert_array_equal(frame.values.ravel()[1:11], np.arange(1, 11) * np.float32(0.5) - 32)
    assert np.isneginf(frame.values[0, 0]) and np.isnan(frame.values[2, 3])
    assert (frame.unit, frame.time) == ("dBZ", TIME)


@pytest.mark.parametrize(
    "text", ["<GDALMetadata><Item", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "<a>" + "b" * 2**20]
)
def test_invalid_xml_in_a_tag_is_rejected(tmp_path, text):
    with pytest.raises(DataError, match="the tag GDAL_METADATA is"):
        read(write(tmp_path / "a", tags={"GDAL_METADATA": text}))


def test_bands_are_times(tmp_path):
    times = [{"time": f"2024-06-11T12:{minute:02d}:00+02:00"} for minute in (5, 10)]
    path = write(tmp_path / "a", VALUES, VALUES + 1, band_tags=times)
    first, second = read(path)
    assert second.time - first.time == timedelta(minutes=5) and first.time == TIME - timedelta(hours=2)
    np.testing.assert_array_equal(second.values, VALUES + 1)
    (chosen,) = read_frames(path, times=[second.time])
    np.testing.assert_array_equal(chosen.values, second.values)
    unmarked = write(tmp_path / "b", VALUES, VALUES + 1)
    with pytest.raises(DataError, match="has 2 bands and one time; each band must have a tag of time, or the option"):
        read(unmarked)
    (frame,) = read(unmarked, "geotiff band=2")
    np.testing.assert_array_equal(frame.values, VALUES + 1)


@pytest.mark.parametrize("south_up", [False, True])
@pytest.mark.parametrize("east_left", [False, True])
def test_any_orientation_is_north_up(tmp_path, south_up, east_left):
    a, b, c, d, e, f = TRANSFORM
    transform = (-a, b, c + 4 * a, d, e, f) if east_left else TRANSFORM
    transform = (*transform[:4], -e, f + 3 * e) if south_up else transform
    stored = VALUES[:: -1 if south_up else 1, :: -1 if east_left else 1]
    (frame,) = read(write(tmp_path / "a", np.ascontiguousarray(stored), transform=transform))
    np.testing.assert_array_equal(frame.values, VALUES)
    assert (frame.grid.left, frame.grid.top) == (c, f)


def test_projections(tmp_path):
    import pyproj

    (degrees,) = read(write(tmp_path / "a", crs="EPSG:4326", transform=(0.01, 0, 355.0, 0, -0.01, 50)))
    assert degrees.grid.unit == "degree" and degrees.grid.left == -5.0
    (feet,) = read(write(tmp_path / "b", crs="EPSG:2263", transform=(5000.0, 0, 900_000.0, 0, -5000.0, 250_000.0)))
    assert feet.grid.spacing_x == pytest.approx(5000 * 1200 / 3937)
    corner = pyproj.Transformer.from_crs("EPSG:2263", "EPSG:4269", always_xy=True).transform(900_000.0, 250_000.0)
    own = pyproj.CRS(feet.grid.projection)
    place = pyproj.Transformer.from_crs(own, own.geodetic_crs, always_xy=True).transform(feet.grid.left, feet.grid.top)
    np.testing.assert_allclose(place, corner, rtol=0, atol=1e-8)
    bare = write(tmp_path / "c", crs=None)
    with pytest.raises(DataError, match="contains no projection; give it: --importer"):
        read(bare)
    assert "3035" in read(bare, "geotiff crs=EPSG:3035")[0].grid.projection


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"transform": (1000.0, 10.0, 0, 10.0, -1000.0, 0)}, "has a rotated grid"),
        ({"transform": (1.0, 0, 0, 0, 1.0, 0)}, "contains no transform"),
        ({"tags": {"time": "2024-06-11T12:05"}}, "contains no unit; give it: --importer"),
        ({"tags": {"time": "2024-06-11T12:05", "units": "K"}}, "the unit is 'K'; mm/h, dBZ"),
        ({"tags": {"time": "2024-06-11T12:05", "units": "mm"}}, "is an amount in mm without an accumulation interval"),
        ({"scales": (0.0,)}, "scale is 0"),
    ],
)
def test_rejects(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_frames_in_process(write(tmp_path / "a", **content), FieldChoice())


def test_pictures_and_invalid_options_are_rejected(tmp_path):
    pixels = VALUES.astype(np.uint8)
    with pytest.raises(DataError, match="is a picture with the bands red, green and blue"):
        read(write(tmp_path / "a", pixels, pixels, pixels, photometric="RGB"))
    path = write(tmp_path / "b")
    for words, message in (
        ("geotiff band=2", "band='2' is invalid; .* has the bands 1 to 1"),
        ("geotiff unit=furlong", "unit='furlong' is invalid"),
        ("geotiff interval=-5", "interval='-5' is invalid; it must be a number from"),
        ("geotiff time=%Y-%Q", "contains %Q; the directives"),
        ("geotiff units=mm", "the importer geotiff has no key 'units'; did you mean unit"),
        ("geotif unit=mm", "there is no importer 'geotif'; did you mean geotiff"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_frames(path, importer=parse_importer([words]))


def test_damaged_files_are_rejected(tmp_path):
    content = write(tmp_path / "a", np.random.default_rng(0).random((300, 300), np.float32)).read_bytes()
    for size in (len(content) // 2, 40):
        (tmp_path / "b").write_bytes(content[:size])
        with pytest.raises(DataError, match=r"/b cannot be read as GeoTIFF"):
            read_frames(tmp_path / "b")
    with rasterio.open(
        tmp_path / "c", "w", driver="GTiff", height=100_000, width=100_000, count=1, dtype="uint8", sparse_ok=True
    ):
        pass
    assert (tmp_path / "c").stat().st_size < 20_000_000
    for read_file in (read_frames, frame_times):
        with pytest.raises(DataError, match="declares 100000 x 100000 pixels"):
            read_file(tmp_path / "c")


def test_real_file_equals_rasterio():
    path = shared("data/radar/files/geotiff/2023-01-01-00-00_ROMA_SRI.tif")
    (frame,) = read(path)
    with rasterio.open(path) as file:
        stored = file.read(1)
        assert (frame.grid.left, frame.grid.top) == (file.bounds.left, file.bounds.top)
    np.testing.assert_array_equal(frame.values, np.where(stored == -1, np.nan, stored))
    assert frame.time == datetime(2023, 1, 1, tzinfo=UTC) and frame.unit == "mm/h"
