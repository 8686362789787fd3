"""Copies of a time range of Zarr stores (formats 2 and 3, sharded) from an S3 server over HTTP."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
import zarr

pytest.importorskip("moto", reason="these tests need the S3 server of moto: pip install -e '.[test]'")
from simcast_hpc.commands.data_download import download as command
from simcast_hpc.config import ConfigError
from simcast_hpc.data.download import zarr_download
from simcast_hpc.data.download.archive_description import parse_period
from simcast_hpc.data.download.archive_download import TransferOptions
from simcast_hpc.data.download.object_transfer import DownloadError, RetryPolicy
from simcast_hpc.data.download.open_archives import ARCHIVES
from simcast_hpc.data.download.zarr_download import StoreDownload
from tests.data.s3_server import s3_server

STEPS = 20
BEGIN = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Yield the port of an S3 server with a store of ``it`` (format 2) and of ``fr_mf_prate_5min`` (3, sharded)."""
    folder = tmp_path_factory.mktemp("stores")
    with s3_server() as (client, port):
        client.create_bucket(Bucket="mlcast-source-datasets", ACL="public-read")
        for name, version in (("it", 2), ("fr_mf_prate_5min", 3)):
            path = ARCHIVES[name].products["store"].folder.partition("/")[2]
            _write_store(folder / name, version)
            for file in (one for one in (folder / name).rglob("*") if one.is_file()):
                key = f"{path}/{file.relative_to(folder / name)}"
                client.put_object(Bucket="mlcast-source-datasets", Key=key, Body=file.read_bytes())
        yield port, folder


def _write_store(path, version: int) -> None:
    group = zarr.create_group(path, zarr_format=version, attributes={"license": "CC-BY-SA-4.0"})
    arrays = {
        "time": (np.arange(STEPS, dtype="i8") * 300, ("time",), (STEPS,), {"units": "seconds since 2020-01-01"}),
        "y": (np.arange(6.0), ("y",), (6,), {}),
        "rain": (
            np.random.default_rng(0).random((STEPS, 6, 5), dtype=np.float32), ("time", "y", "x"), (1, 6, 5),
            {"units": "mm/h"},
        ),
    }  # fmt: skip
    for name, (values, dimensions, chunks, attributes) in arrays.items():
        is_v2 = version == 2
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=chunks, fill_value=np.nan if name == "rain" else None,
            shards=None if is_v2 or name != "rain" else (4, 6, 5), dimension_names=None if is_v2 else dimensions,
            attributes={**attributes, **({"_ARRAY_DIMENSIONS": list(dimensions)} if is_v2 else {})},
        )  # fmt: skip
        array[...] = values
    zarr.consolidate_metadata(path)


@pytest.mark.parametrize("name", ["it", "fr_mf_prate_5min"])
def test_time_range_is_copied_and_resumed(store, tmp_path, name, monkeypatch):
    port, folder = store
    monkeypatch.setattr(zarr_download, "_LARGEST_BLOCK", 2 * 6 * 5 * 4)
    options = TransferOptions(f"http://127.0.0.1:{port}", 2, 5.0, RetryPolicy(3, 0.01))
    job = StoreDownload(
        name, ARCHIVES[name], parse_period("2020-01-01T00:15", "2020-01-01T01:05"), tmp_path / "t", options
    )
    remote = job.open()

    def stop(_total):
        def advance(_count):
            if any(job.target.glob(".*.part")):
                raise KeyboardInterrupt

        return advance

    plan = job.plan(remote)
    assert (plan.begin, plan.end, plan.copied) == (3, 13, 0)
    with pytest.raises(KeyboardInterrupt):
        job.run(remote, plan, on_start=stop)
    again = job.plan(remote)
    assert 0 < again.copied < 10 and not again.into.exists()
    job.run(remote, again, on_start=lambda total: lambda count: None)
    copy, source = zarr.open_group(again.into, mode="r"), zarr.open_group(folder / name, mode="r")
    for array in ("time", "y", "rain"):
        part = source[array][3:13] if array != "y" else source[array][...]
        np.testing.assert_array_equal(copy[array][...], part)
        one, other = copy[array], source[array]
        assert (one.chunks if array != "time" else None) == (other.chunks if array != "time" else None)
        assert (one.dtype, one.compressors, one.shards, dict(one.attrs)) == (
            other.dtype, other.compressors, other.shards, dict(other.attrs),
        )  # fmt: skip
    assert dict(copy.attrs) == {"license": "CC-BY-SA-4.0"} and copy.metadata.consolidated_metadata is not None
    assert sorted(path.name for path in job.target.iterdir()) == [again.into.name, "license.json"]
    assert json.loads((job.target / "license.json").read_text())["license"] == ARCHIVES[name].license
    assert job.plan(remote).raw_bytes == 0


def test_command_copies_and_names_what_is_wrong(store, tmp_path, capsys):
    port, _ = store
    arguments = {"endpoint": f"http://127.0.0.1:{port}", "tries": 1, "stall_seconds": 5.0}
    command("it", tmp_path, begin="2020-01-01", end="2020-01-01T00:10", dry_run=True, **arguments)
    printed = capsys.readouterr().out
    assert "it: 2 times, 0 of them copied" in printed and "CC-BY-SA-4.0 is a share-alike license" in printed
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DownloadError, match=r"no time from 2021-01-01T00:00 .* it has 20 times from 2020-01-01"):
        command("it", tmp_path, begin="2021-01-01", end="2021-01-02", **arguments)
    with pytest.raises(DownloadError, match="cannot be opened"):
        command("dmi_10_minutes", tmp_path, begin="2021-01-01", end="2021-01-02", **arguments)
    command("it", tmp_path, begin="2020-01-01", end="2020-01-01T00:10", **arguments)
    assert "2 times; next: simcast data import" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="contains data of it; choose another folder for fr_mf_prate_5min"):
        command("fr_mf_prate_5min", tmp_path, begin="2020-01-01", end="2020-01-01T00:10", **arguments)
