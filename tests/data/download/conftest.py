"""Servers that play radar archives, and downloads from them."""

import pytest

from simcast_hpc.data.download import archive_download
from simcast_hpc.data.download.archive_description import parse_period
from simcast_hpc.data.download.archive_download import ArchiveDownload, TransferOptions
from simcast_hpc.data.download.object_transfer import RetryPolicy
from simcast_hpc.data.download.open_archives import ARCHIVES
from tests.data.download.archive_server import archive_server

QUICK = RetryPolicy(tries=4, pause=0.01)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(archive_download, "SPARE_BYTES", 0)
    with archive_server() as running:
        yield running


@pytest.fixture
def job(server, tmp_path):
    """Return a function that makes a download of an archive from the server into a folder of the test."""

    def make(
        name: str, product: str | None, begin: str, end: str, *, path: str = "", archive=None, connections: int = 2
    ) -> ArchiveDownload:
        found = archive or ARCHIVES[name]
        options = TransferOptions(server.url + path, connections, 5.0, QUICK)
        product_name, _ = found.product(product, archive=name)
        return ArchiveDownload(name, found, product_name, parse_period(begin, end), tmp_path / "target", options)

    return make


@pytest.fixture
def fetch():
    """Return a function that runs a download and returns the times without a file."""

    def run(download: ArchiveDownload) -> list:
        return download.run(download.plan(), on_start=lambda _total: lambda _count: None)

    return run
