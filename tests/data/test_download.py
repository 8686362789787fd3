"""Download from an S3 server over HTTP, behind a proxy that closes and stalls connections."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import h5py
import numpy as np
import pytest

pytest.importorskip("moto", reason="these tests need the S3 server of moto: pip install -e '.[test]'")

from simcast_hpc.commands.data_download import download as command
from simcast_hpc.config import ConfigError
from simcast_hpc.data.download import object_transfer as transfer
from simcast_hpc.data.download import sevir_download as sevir
from simcast_hpc.data.download.object_transfer import DownloadError, RemoteObject, RetryPolicy, matches_etag, part_of
from simcast_hpc.data.download.s3_transfer import S3Reader
from simcast_hpc.data.download.sevir_download import Store, download
from tests.data.s3_server import BUCKET, Proxy, s3_server

FILES = {
    2018: "data/vil/2018/SEVIR_VIL_STORMEVENTS_2018_0101_0630.h5",
    2019: "data/vil/2019/SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5",
}
QUICK = RetryPolicy(tries=4, pause=0.01)


def hdf5(seed: int, size: int = 1_500_000) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["vil"] = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    return stream.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple]:
    with s3_server() as (client, port):
        yield client, port


@pytest.fixture
def objects(server) -> dict[str, bytes]:
    client, _ = server
    content_of = {"CATALOG.csv": b"id,file_name\n" * 50, FILES[2018]: hdf5(1), FILES[2019]: hdf5(2)}
    for key, content in content_of.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=content)
    client.put_object(Bucket=BUCKET, Key="data/ir107/2018/other.h5", Body=b"not selected")
    return content_of


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    proxy = Proxy(server[1])
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(transfer, "LARGEST_BLOCK", 400_000)
    monkeypatch.setattr(transfer, "SMALLEST_BLOCK", 50_000)
    monkeypatch.setattr(sevir, "_SPARE_BYTES", 0)


def store(proxy: Proxy, **over) -> Store:
    return Store(endpoint=proxy.url, **({"stall_seconds": 5.0} | over))


def files_of(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_downloads_all_files_of_the_image_type_and_reports_progress(proxy, objects, tmp_path):
    progress = []

    def on_start(missing: int):
        progress.append(missing)
        return progress.append

    downloaded = download(store(proxy), tmp_path / "sevir", retry=QUICK, on_start=on_start)
    assert files_of(tmp_path / "sevir") == objects
    assert [remote.key for remote in downloaded] == [f"{BUCKET}/{key}" for key in objects]
    assert progress[0] == sum(progress[1:]) == sum(map(len, objects.values()))
    before = len(proxy.requests)
    download(store(proxy), tmp_path / "sevir", retry=QUICK)
    assert not any("/data/vil/2018/" in line for line in proxy.requests[before:]), (
        "existing files are not downloaded again"
    )


def test_downloads_only_the_selected_years(proxy, objects, tmp_path):
    download(store(proxy), tmp_path, years=[2019], retry=QUICK)
    assert files_of(tmp_path) == {key: objects[key] for key in ("CATALOG.csv", FILES[2019])}
    with pytest.raises(DownloadError, match=r"has no year 2031; it has the years \[2018, 2019\]"):
        download(store(proxy), tmp_path, years=[2031], retry=QUICK)
    with pytest.raises(DownloadError, match="has no files"):
        download(store(proxy), tmp_path, image_type="vis", retry=QUICK)


def test_retries_closed_connections(proxy, objects, tmp_path):
    proxy.cut_after, proxy.cuts = 60_000, 6
    download(store(proxy), tmp_path, retry=QUICK)
    assert proxy.cuts == 0 and files_of(tmp_path) == objects


def test_retries_stalled_connections(proxy, objects, tmp_path):
    proxy.cut_after, proxy.stalls = 60_000, 2
    download(store(proxy, stall_seconds=1.0), tmp_path, retry=QUICK)
    assert proxy.stalls == 0 and files_of(tmp_path) == objects


def test_resumes_a_partial_download(proxy, objects, tmp_path):
    def break_connections() -> None:
        proxy.cut_after, proxy.cuts = 2_000, 10**6

    proxy.on_bytes = (1_000_000, break_connections)
    with pytest.raises(
        DownloadError, match=r"no progress in 4 tries after \d+ of \d+ bytes: .*run the same command to resume"
    ):
        download(store(proxy), tmp_path, retry=QUICK)
    part = part_of(tmp_path / FILES[2018])
    partial_size = part.stat().st_size
    assert partial_size >= 400_000 and not (tmp_path / FILES[2018]).exists()
    assert part.read_bytes() == objects[FILES[2018]][:partial_size]
    proxy.cuts, passed = 0, proxy.passed
    download(store(proxy), tmp_path, retry=QUICK)
    assert files_of(tmp_path) == objects
    total = sum(map(len, objects.values()))
    assert proxy.passed - passed < total - partial_size + 100_000, "only the rest was downloaded"


def test_restarts_an_object_that_changes_during_the_download(server, proxy, objects, tmp_path):
    newer = hdf5(7)
    proxy.on_bytes = (700_000, lambda: server[0].put_object(Bucket=BUCKET, Key=FILES[2018], Body=newer))
    download(store(proxy), tmp_path, retry=QUICK)
    assert files_of(tmp_path) == objects | {FILES[2018]: newer}


def test_discards_a_partial_download_of_an_older_version(server, proxy, objects, tmp_path):
    def break_connections() -> None:
        proxy.cut_after, proxy.cuts = 2_000, 10**6

    proxy.on_bytes = (700_000, break_connections)
    with pytest.raises(DownloadError):
        download(store(proxy), tmp_path, retry=QUICK)
    newer = hdf5(8)
    server[0].put_object(Bucket=BUCKET, Key=FILES[2018], Body=newer)
    proxy.cuts = 0
    download(store(proxy), tmp_path, retry=QUICK)
    assert files_of(tmp_path)[FILES[2018]] == newer


def test_rejects_an_object_truncated_on_the_server(server, proxy, objects, tmp_path):
    server[0].put_object(Bucket=BUCKET, Key=FILES[2019], Body=objects[FILES[2019]][:-5000])
    with pytest.raises(DownloadError, match=r"2019_0101_0630\.h5 is not a complete HDF5 file on the server"):
        download(store(proxy), tmp_path, retry=QUICK)
    assert FILES[2019] not in files_of(tmp_path) and FILES[2018] in files_of(tmp_path)


def test_rejects_an_object_shorter_than_listed(proxy, objects, tmp_path, monkeypatch):
    class Short:
        details: ClassVar = {"ETag": '"abc"'}
        size = 1000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def seek(self, _offset):
            return None

        def read(self, count):
            return bytes(count - 1)

    filesystem = type("FS", (), {"open": lambda *_args, **_options: Short()})()
    with pytest.raises(DownloadError, match=r"truncated on the server: 999 of 1000 bytes at offset 0"):
        transfer.download_object(
            S3Reader(filesystem),
            RemoteObject("b/k", 1000, "abc"),
            tmp_path / "k",
            retry=QUICK,
            progress=lambda _count: None,
        )


def test_rejects_a_damaged_download(server, proxy, objects, tmp_path):
    def break_connections() -> None:
        proxy.cut_after, proxy.cuts = 2_000, 10**6

    proxy.on_bytes = (700_000, break_connections)
    with pytest.raises(DownloadError):
        download(store(proxy), tmp_path, retry=QUICK)
    with part_of(tmp_path / FILES[2018]).open("r+b") as file:
        file.write(b"\0\1\2\3")
    proxy.cuts = 0
    with pytest.raises(DownloadError, match="the checksum of the download differs from its ETag"):
        download(store(proxy), tmp_path, retry=QUICK)
    download(store(proxy), tmp_path, retry=QUICK)
    assert files_of(tmp_path) == objects


def test_checks_free_space_before_the_download(proxy, objects, tmp_path, monkeypatch):
    monkeypatch.setattr(sevir.shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**6))
    with pytest.raises(DownloadError, match=r"needs 0\.0 GB .*0\.0 GB free; select years"):
        download(store(proxy), tmp_path, retry=QUICK)
    assert files_of(tmp_path) == {}


def test_unreachable_server_is_named(tmp_path):
    with pytest.raises(DownloadError, match=r"s3://sevir/data/vil cannot be listed"):
        download(Store(endpoint="http://127.0.0.1:9", stall_seconds=1.0), tmp_path, retry=QUICK)


@pytest.mark.parametrize("size", [100, 20 * 2**20])
def test_etags_of_single_and_multipart_uploads(server, tmp_path, size):
    client, _ = server
    content = np.random.default_rng(size).bytes(size)
    if size > 2**20:
        upload = client.create_multipart_upload(Bucket=BUCKET, Key="parts")["UploadId"]
        about = {"Bucket": BUCKET, "Key": "parts", "UploadId": upload}
        parts = []
        for number, begin in enumerate(range(0, size, 2**23), start=1):
            sent = client.upload_part(**about, PartNumber=number, Body=content[begin : begin + 2**23])
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        etag = client.complete_multipart_upload(**about, MultipartUpload={"Parts": parts})["ETag"]
        assert etag.strip('"').endswith("-3")
    else:
        etag = client.put_object(Bucket=BUCKET, Key="parts", Body=content)["ETag"]
    (tmp_path / "file").write_bytes(content)
    assert matches_etag(tmp_path / "file", etag) is True
    (tmp_path / "file").write_bytes(content[:-1] + b"x" if content[-1:] != b"x" else content[:-1] + b"y")
    assert matches_etag(tmp_path / "file", etag) in (False, None)
    assert matches_etag(tmp_path / "file", "no-md5") is None


def test_command_downloads_the_selected_year(proxy, objects, tmp_path, capsys):
    command("sevir", tmp_path, year=[2018], endpoint=proxy.url)
    assert "2 files" in capsys.readouterr().out
    assert files_of(tmp_path) == {key: objects[key] for key in ("CATALOG.csv", FILES[2018])}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("hko7", "on request"), ("meteonet", "Kaggle"), ("era5", "'era5' is unknown; choose sevir")],
)
def test_explains_datasets_without_download(dataset, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        command(dataset, tmp_path)
