"""Zarr stores: mlcast's form, reading of chosen times only, and anonymous stores in S3 buckets."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.radar import frame_times, parse_importer, read_frames
from simcast_hpc.radar.frame_files import list_files
from simcast_hpc.radar.radar_frame import FieldChoice
from simcast_hpc.radar.read_frame import read_frames_in_process

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")
START = datetime(2020, 7, 1, tzinfo=UTC)
STEPS = 12
MINUTES = [5 * number for number in range(STEPS)]


def store(path: Path, name="rainfall_rate", units="mm h-1", *, zarr_format=2, missing=(), attributes=None, **encoding):
    """Write a store as mlcast does: (time, y, x), one chunk per time, a CRS variable, times that are missing."""
    rng = np.random.default_rng(1)
    values = rng.integers(0, 50, (STEPS, 6, 8)).astype(np.float32)
    for number in missing:
        values[number] = np.nan
    times = xr.Variable("time", np.array(MINUTES), {"units": "minutes since 2020-07-01", "standard_name": "time"})
    dataset = xr.Dataset(
        {
            name: (("time", "y", "x"), values, {"units": units, "standard_name": name, "grid_mapping": "crs"}),
            "crs": ((), 0, {"crs_wkt": wkt()}),
            "missing_times": (
                "missing",
                np.array([5 * number for number in missing], np.int64),
                {"units": "minutes since 2020-07-01"},
            ),
        },
        {
            "time": times,
            "y": ("y", np.arange(6) * 1000.0, {"standard_name": "projection_y_coordinate", "units": "m"}),
            "x": ("x", np.arange(8) * 1000.0, {"standard_name": "projection_x_coordinate", "units": "m"}),
        },
        {"mlcast_dataset_version": "0.1.0"} if attributes is None else attributes,
    )
    chunks = {name: {"chunks": (1, 6, 8), **encoding}}
    dataset.to_zarr(path, zarr_format=zarr_format, consolidated=zarr_format == 2, encoding=chunks)
    return values[:, ::-1]


def wkt() -> str:
    import pyproj

    return pyproj.CRS("EPSG:3035").to_wkt()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("name", "units", "factor"),
    [
        ("rainfall_flux", "kg m-2 h-1", 1.0),
        ("precipitation_flux", "mm/h", 1.0),
        ("rainfall_amount", "kg m-2", 12.0),
        ("precipitation_amount", "mm", 12.0),
        ("equivalent_reflectivity_factor", "dBZ", 1.0),
    ],
)
def test_quantities_of_mlcast(tmp_path, zarr_format, name, units, factor):
    values = store(tmp_path / "a.zarr", name, units, zarr_format=zarr_format, missing=(3,))
    frames = read_frames_in_process(tmp_path / "a.zarr", FieldChoice())
    assert [frame.time for frame in frames] == [START + timedelta(minutes=k) for k in MINUTES if k != 15]
    for frame in frames:
        number = int((frame.time - START) / timedelta(minutes=5))
        np.testing.assert_allclose(frame.values, values[number] * factor, rtol=1e-6)
        assert frame.interval_minutes == (5.0 if "amount" in name else None)


def test_an_amount_of_another_store_needs_its_interval(tmp_path):
    values = store(tmp_path / "a.zarr", "rainfall_amount", "mm", attributes={})
    with pytest.raises(DataError, match=r"its time has no bounds; .*interval=5"):
        read_frames(tmp_path / "a.zarr")
    frames = read_frames(tmp_path / "a.zarr", importer=parse_importer(["zarr interval=10"]))
    np.testing.assert_allclose(frames[0].values, values[0] * 6, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4])
def test_only_chosen_times_are_read(tmp_path, chunk):
    path = tmp_path / "a.zarr"
    values = store(path, chunks=(chunk, 6, 8))
    times = frame_times(path)
    chosen = [times[1], times[2], times[9]]
    needed = {number // chunk for number in (1, 2, 9)}
    for number in set(range(STEPS // chunk)) - needed:  # damaged chunks that are not needed
        (path / "rainfall_rate" / f"{number}.0.0").write_bytes(b"damaged")
    frames = read_frames(path, times=[*chosen, START - timedelta(days=1)])
    assert [frame.time for frame in frames] == chosen
    np.testing.assert_array_equal([frame.values for frame in frames], values[[1, 2, 9]])
    with pytest.raises(DataError, match=r"a\.zarr cannot be read"):
        read_frames(path)
    with pytest.raises(ValueError, match="times must be aware"):
        read_frames(path, times=[datetime(2020, 7, 1)])


def test_frames_without_a_pixel_are_skipped(tmp_path):
    store(tmp_path / "a.zarr", missing=(2,))
    group = tmp_path / "a.zarr"
    metadata = json.loads((group / ".zmetadata").read_text())
    for name in [name for name in metadata["metadata"] if name.startswith("missing_times/")]:
        (group / name).unlink()
    assert len(frame_times(group)) == STEPS and len(read_frames(group)) == STEPS - 1


def test_chunks_are_checked_before_they_are_allocated(tmp_path):
    store(tmp_path / "a.zarr")
    place = tmp_path / "a.zarr" / "rainfall_rate" / ".zarray"
    metadata = json.loads(place.read_text())
    place.write_text(json.dumps(metadata | {"chunks": [1, 30_000, 30_000]}))
    with pytest.raises(DataError, match=r"rainfall_rate, in a chunk, declares the shape \(1, 30000, 30000\)"):
        read_frames(tmp_path / "a.zarr")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """Yield the endpoint of a local S3 server with a store in a public bucket, and the values of the store."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket="radar")
    folder = tmp_path_factory.mktemp("store")
    values = store(folder / "a.zarr")
    for file in (folder / "a.zarr").rglob("*"):
        if file.is_file():
            key = f"public/{file.relative_to(folder)}"
            client.put_object(Bucket="radar", Key=key, Body=file.read_bytes(), ACL="public-read")
    yield endpoint, values
    server.stop()


def test_anonymous_stores_in_a_bucket(bucket):
    endpoint, values = bucket
    importer = parse_importer([f"zarr endpoint_url={endpoint}"])
    url = "s3://radar/public/a.zarr"
    times = frame_times(url, importer=importer)
    assert len(times) == STEPS
    (frame,) = read_frames(url, times=[times[4]], importer=importer)
    np.testing.assert_array_equal(frame.values, values[4])
    assert list_files([Path(url)]) == [Path(url)]
    for address, message in (
        ("s3://radar/public/absent.zarr", "cannot be read as CF Zarr"),
        ("s3://radar/../a", "is not the URL of a store"),
    ):
        with pytest.raises((DataError, ConfigError), match=message):
            read_frames(address, importer=importer)


def test_invalid_endpoints_are_rejected(tmp_path):
    for endpoint, message in (("ftp://a", "endpoint_url='ftp://a' is invalid"), ("file:///etc", "is invalid")):
        with pytest.raises(ConfigError, match=message):
            read_frames("s3://radar/a.zarr", importer=parse_importer([f"zarr endpoint_url={endpoint}"]))
    store(tmp_path / "a.zarr")
    with pytest.raises(ConfigError, match="applies to s3:// stores"):
        read_frames(tmp_path / "a.zarr", importer=parse_importer(["zarr endpoint_url=http://127.0.0.1:1"]))
