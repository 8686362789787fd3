"""Import of netCDF files with several times, composites of volumes, and stores in S3 buckets."""

import filecmp
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.shards.shard_reader import ShardSource
from tests.data.ingest.radar_archive import BEGIN, frame_codes, write_frame
from tests.data.ingest.test_import import run, same
from tests.data.ingest.test_import_formats import STEP
from tests.radar.radar_files import write_cf


def codes_of(target: Path, frames: int) -> np.ndarray:
    """Return all frames of an import without gaps, in the order of their times, uint8 ``[T, H, W]``."""
    spec = read_spec(str(target / "dataset.yaml"))
    source = ShardSource(spec, target, split="all", frames=frames, max_percent_missing=None)
    return np.concatenate([source.read(k) for k in range(len(source))])


def test_limits_inside_a_file_do_not_lose_its_other_frames(tmp_path):
    values = np.broadcast_to(np.arange(1, 49, dtype=np.float32)[:, None, None], (48, 16, 16)).copy()
    values[::2, :4] = np.nan
    (tmp_path / "a").mkdir()
    for k in range(2):
        times = [BEGIN + (24 * k + number) * STEP for number in range(24)]
        write_cf(tmp_path / f"a/{k}.nc", values[24 * k : 24 * k + 24], times)
    options = {"event": "1h", "train_until": "2023-05-01T00:59", "val_until": "2023-05-01T01:59"}
    middle, end = BEGIN + 18 * STEP, BEGIN + 30 * STEP
    content = run(tmp_path / "a", tmp_path / "t", **options, since=BEGIN + 12 * STEP, until=middle)
    assert content["inventory"]["frames"] == 7
    run(tmp_path / "a", tmp_path / "t", append=True, since=middle, until=end)
    run(tmp_path / "a", tmp_path / "t", append=True)
    run(tmp_path / "a", tmp_path / "once", **options)
    same(tmp_path / "once", tmp_path / "t")
    codes = codes_of(tmp_path / "t", 12)
    expected = read_spec(str(tmp_path / "t/dataset.yaml")).encoding.encode(values)
    np.testing.assert_array_equal(codes[:12], expected[:12])
    assert len(codes) == 48


@pytest.mark.slow
def test_a_store_in_a_bucket(tmp_path):
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    from tests.radar.test_zarr_stores import STEPS, store

    values = store(tmp_path / "a.zarr", name="rainfall_flux", units="kg m-2 h-1", zarr_format=3, missing=(7,))
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        client.create_bucket(Bucket="radar")
        for file in (path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()):
            key = f"public/{file.relative_to(tmp_path)}"
            client.put_object(Bucket="radar", Key=key, Body=file.read_bytes(), ACL="public-read")
        url = "s3://radar/public/a.zarr"
        content = run(url, tmp_path / "t", event="1h", step=5, importer=f"zarr endpoint_url={endpoint}")
    finally:
        server.stop()
    run(tmp_path / "a.zarr", tmp_path / "local", event="1h", step=5)
    assert content["sources"] == [url] and content["inventory"]["used"] == STEPS - 1
    assert filecmp.cmp(tmp_path / "t/shard-20200701.h5", tmp_path / "local/shard-20200701.h5", shallow=False)
    expected = read_spec(str(tmp_path / "t/dataset.yaml")).encoding.encode(values)
    np.testing.assert_array_equal(codes_of(tmp_path / "t", 7)[:, :6, :8], expected[:7])


@pytest.mark.slow
def test_composites_of_the_volumes_of_a_folder(tmp_path):
    from tests.radar.test_composites import write

    folder, importer = tmp_path / "v", "composite:maximum"
    paths = [write(folder / radar, radar, clock=f"01{k}000") for k in range(4) for radar in ("east", "west")]
    content = run(folder, tmp_path / "t", event="1h", importer=importer, unit="dBZ")
    assert content["inventory"]["used"] == 4 and content["inventory"]["stores"] == 1
    with pytest.raises(ConfigError, match="is not a folder"):
        run(paths[0], tmp_path / "u", importer=importer)


def test_a_target_below_its_source_and_options_that_contradict_the_data(tmp_path):
    for k in range(8):
        write_frame(tmp_path / f"a/{k}.h5", frame_codes(BEGIN), BEGIN + k * STEP)
    (tmp_path / "a/empty").mkdir()
    for step, message in ((float("nan"), "--step nan"), (1e300, "--step 1e"), (2.5, "change --step")):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path / "a", tmp_path / "t", step=step)
    other = write_frame(tmp_path / "other.h5", frame_codes(BEGIN, shape=(16, 16)), BEGIN)
    with pytest.raises(DataError, match="has the grid of --grid-of, 16 x 16"):
        run(tmp_path / "a", tmp_path / "t", grid_of=str(other))
    target = tmp_path / "a/t"
    for append in (False, False, True):
        content = run(tmp_path / "a", target, append=append)
        assert content["inventory"]["files"] == 8 and not content["inventory"]["not_used"]
    with pytest.raises(ConfigError, match="no file but those of TARGET"):
        run(target, target)
    for options in ({"any_interval": True}, {"grid_of": str(other)}):
        with pytest.raises(ConfigError, match="differs from the import to append to"):
            run(tmp_path / "a", target, append=True, **options)
