"""Transfers from an HTTP server with faults: broken connections, limits of requests, changed files, kill and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from simcast_hpc.commands.data_download import download as command
from simcast_hpc.config import DataError
from simcast_hpc.data.data_license import read_license, share_alike_notice
from simcast_hpc.data.download import archive_download, object_transfer
from simcast_hpc.data.download.http_client import HttpClient, _seconds
from simcast_hpc.data.download.object_transfer import DownloadError
from tests.data.download.archive_server import Fault

NAME = "202501100000_ODIM_ng_radar_rainrate_composite_1km_UK.h5"
KEY = f"radar/2025/01/10/{NAME}"
CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def uk(server, job, monkeypatch):
    monkeypatch.setattr(object_transfer, "LARGEST_BLOCK", 300_000)
    monkeypatch.setattr(object_transfer, "SMALLEST_BLOCK", 50_000)
    server.files = {KEY: CONTENT}
    return job("uk", None, "2025-01-10", "2025-01-10T00:15")


def stored(download) -> bytes:
    return (download.target / "2025/01/10" / NAME).read_bytes()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(NAME, times=3, status=503),
        Fault(NAME, times=3, status=429, headers={"Retry-After": "0"}),
        Fault(NAME, times=3, cut=10_000),
        Fault(NAME, times=3, cut=0),
        Fault("list-type", times=3, status=500),
    ],
    ids=["503", "429", "cut", "closed", "listing"],
)
def test_passing_faults_are_retried(server, uk, fetch, fault):
    server.faults = [fault]
    assert fetch(uk) == [] and stored(uk) == CONTENT and fault.times == 0


@pytest.mark.parametrize(
    ("ranges", "etags", "chunked"), [(False, True, False), (False, False, True), (True, False, False)]
)
def test_servers_without_ranges_etags_or_sizes(server, uk, fetch, ranges, etags, chunked):
    server.ranges, server.etags, server.chunked = ranges, etags, chunked
    assert fetch(uk) == [] and stored(uk) == CONTENT


def test_retry_after_is_respected_and_bounded(server, uk, fetch, monkeypatch):
    pauses = []
    monkeypatch.setattr(object_transfer.time, "sleep", pauses.append)
    server.faults = [Fault(NAME, status=429, headers={"Retry-After": "7"})]
    fetch(uk)
    assert pauses == [7.0]
    assert _seconds("999999") == 900 and _seconds("Thu, 01 Jan 2015 00:00:00 GMT") == 0 == _seconds("x") == _seconds(
        None
    )


def test_gives_up_with_the_way_to_resume_and_resumes(server, uk, fetch):
    server.on_request = lambda path: server.faults.append(Fault(NAME, times=9, status=503)) if KEY in path and len(
        server.requested(NAME)) == 2 else None  # fmt: skip
    with pytest.raises(
        DownloadError, match=r"no progress in 4 tries after 300000 of 1024000 bytes: .*503; run the same"
    ):
        fetch(uk)
    part = uk.target / "2025/01/10" / f".{NAME}.part"
    assert part.read_bytes() == CONTENT[:300_000] and not (part.parent / NAME).exists()
    server.on_request, server.faults, before = None, [], len(server.requests)
    assert uk.plan().pending_bytes == len(CONTENT) - 300_000
    fetch(uk)
    ranges = [sent.get("Range", "") for _, url, sent in server.requests[before:] if NAME in url]
    assert stored(uk) == CONTENT and ranges[0].startswith("bytes=300000-")
    assert sorted(path.name for path in part.parent.iterdir()) == [NAME], "no partial file is left"


def test_a_file_that_changes_is_downloaded_again(server, uk, fetch):
    newer = CONTENT[::-1]

    def change(path):
        if KEY in path and len(server.requested(NAME)) == 2:
            server.files[KEY] = newer

    server.on_request = change
    fetch(uk)
    assert stored(uk) == newer
    server.on_request, server.files[KEY] = None, CONTENT
    fetch(uk)
    assert stored(uk) == CONTENT, "the listing has another ETag now"


def test_damaged_partial_file_is_detected_by_its_checksum(server, uk, fetch):
    server.faults = [Fault(NAME, times=99, status=503)]
    folder = uk.target / "2025/01/10"
    folder.mkdir(parents=True)
    (folder / f".{NAME}.part").write_bytes(b"x" * 1000)
    from hashlib import md5

    (folder / f".{NAME}.part.etag").write_text(md5(CONTENT).hexdigest())
    server.faults = []
    with pytest.raises(DownloadError, match="the checksum of the download differs from its ETag"):
        fetch(uk)
    fetch(uk)
    assert stored(uk) == CONTENT


def test_a_wrong_size_is_an_error(server, uk, fetch):
    server.faults = [Fault(NAME, times=99, size=5_000_000)]
    with pytest.raises(DownloadError, match=r"no progress in 4 tries after \d+ of 5000000 bytes"):
        fetch(uk)
    assert not (uk.target / "2025/01/10" / NAME).exists()


def test_a_listed_file_that_does_not_exist_is_a_missing_time(server, uk, fetch):
    server.faults = [Fault(NAME, times=99, status=404)]
    assert fetch(uk) == [datetime(2025, 1, 10, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("https://evil.example/x", r"refers to https://evil\.example, which is not a known host"),
        ("http://169.254.169.254/latest", r"refers to http://169\.254\.169\.254"),
        ("file:///etc/passwd", "refers to file://"),
        ("/radar", "more than 5 redirects"),
    ],
)
def test_redirects_to_other_hosts_are_rejected(server, uk, fetch, to, message):
    server.faults = [Fault("/radar", times=99, redirect=to)]
    with pytest.raises(DownloadError, match=message):
        fetch(uk)


def test_redirect_on_the_same_host_is_followed(server, uk, fetch):
    server.files["elsewhere"] = CONTENT
    server.faults = [Fault(NAME, times=1, redirect="/elsewhere")]
    fetch(uk)
    assert stored(uk) == CONTENT


def test_free_space_is_checked_before_the_download(server, uk, fetch, monkeypatch):
    monkeypatch.setattr(archive_download.shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(DownloadError, match=r"needs 0\.0 GB .* choose a shorter period"):
        fetch(uk)
    assert not uk.target.exists()


def test_links_in_the_folder_are_not_followed(server, uk, fetch, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    folder = uk.target / "2025/01/10"
    folder.mkdir(parents=True)
    (folder / f".{NAME}.part").symlink_to(victim)
    with pytest.raises(DownloadError, match="is a symbolic link"):
        fetch(uk)
    assert victim.read_text() == "kept"


def test_a_cut_line_of_the_ledger_is_ignored(server, uk, fetch):
    fetch(uk)
    ledger = uk.target / ".simcast-download.jsonl"
    lines = ledger.read_text()
    ledger.write_text(lines.rstrip("\n")[:-10])
    fetch(uk)
    assert json.loads(ledger.read_text().splitlines()[-1])["name"] == NAME
    assert len(uk.plan().pending) == 0


def test_kill_and_resume_give_the_same_files(server, job, fetch, tmp_path, monkeypatch):
    names = [NAME.replace("0000_", f"{k // 4:02d}{k % 4 * 15:02d}_") for k in range(12)]
    server.files = {f"radar/2025/01/10/{name}": os.urandom(200_000) for name in names}
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from simcast_hpc.commands.data_download import download\n"
        "from simcast_hpc.data.download import archive_download, object_transfer\n"
        "archive_download.SPARE_BYTES = 0\n"
        "object_transfer.LARGEST_BLOCK = object_transfer.SMALLEST_BLOCK = 20_000\n"
        "download('uk', Path(sys.argv[1]), begin='2025-01-10', end='2025-01-10T03:00', endpoint=sys.argv[2],\n"
        "         connections=2)\n"
    )
    target = tmp_path / "target"
    for wanted in (15, 45):  # requests until the kill
        begun = len(server.requests)
        process = subprocess.Popen([sys.executable, "-c", script, str(target), server.url], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(server.requests) - begun < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    download = job("uk", None, "2025-01-10", "2025-01-10T03:00")
    done = len(download.plan().files) - len(download.plan().pending)
    assert fetch(download) == [] and done < 12
    for key, content in server.files.items():
        assert (target / "2025/01/10" / key.rpartition("/")[2]).read_bytes() == content
    assert not list(target.rglob("*.part*"))


def test_command_prints_license_and_counts(server, uk, capsys, monkeypatch, tmp_path):
    arguments = {"begin": "2025-01-10", "end": "2025-01-10T00:30", "endpoint": server.url}
    command("uk", tmp_path / "new", dry_run=True, **arguments)
    printed = capsys.readouterr().out
    assert "License: CC-BY-SA-4.0" in printed and "1 files, 0 of them downloaded; 0.001 GB" in printed
    assert "1 times have no file: 2025-01-10T00:15Z" in printed and "share-alike license" in printed
    assert not (tmp_path / "new").exists()
    command("uk", tmp_path / "new", **arguments)
    assert "complete; next: simcast data import" in capsys.readouterr().out
    found = read_license(tmp_path / "new")
    assert found is not None and found.license == "CC-BY-SA-4.0" and found.archive == "uk" and found.product == "rate"


@pytest.mark.parametrize(
    ("name", "shares"),
    [("CC-BY-SA-4.0", True), ("CC BY-SA", True), ("CC-BY-4.0", False), ("OGL-UK-3.0", False), ("Disaster data", False)],
)
def test_share_alike_licenses_are_recognized(name, shares):
    assert bool(share_alike_notice(name)) == shares


@pytest.mark.parametrize(
    "text",
    [
        "[]", "{", '{"license": 3, "attribution": "x"}', '{"license": "x"}',
        '{"license": "x", "attribution": "a\\u001bb"}', '{"license": " ", "attribution": "x"}',
    ],
)  # fmt: skip
def test_invalid_license_files_are_errors(tmp_path, text):
    (tmp_path / "license.json").write_text(text)
    with pytest.raises(DataError, match=r"license\.json"):
        read_license(tmp_path)
    assert read_license(tmp_path / "absent") is None


def test_credentials_do_not_leave_the_archive(server):
    client = HttpClient(server.url, other_hosts=("localhost:*",), secret_headers={"Authorization": "s3cret"})
    server.files = {"a": b"1"}
    client.fetch(client.url("a"))
    with pytest.raises(DownloadError):
        client.trusted(f"http://localhost:{server.port}/a")
    assert server.requests[0][2]["Authorization"] == "s3cret" and "s3cret" not in repr(client)
