"""Each service of the archives, played by a server on the loopback interface: listing, paging, links, missing times."""

import io
import json
import shlex
import tarfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError
from simcast_hpc.data.download.archive_description import Period, parse_period, time_of_name
from simcast_hpc.data.download.object_transfer import DownloadError
from simcast_hpc.data.download.open_archives import ARCHIVES, find_archive
from simcast_hpc.radar import parse_importer, read_frames

DAY = datetime(2025, 1, 10, tzinfo=UTC)


def files_of(folder) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".jsonl", ".txt", ".lease")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != "license.json"}


def frames(path: str, times: list[datetime]) -> dict[str, bytes]:
    return {time.strftime(path): f"frame {time:%H:%M}".encode() * 50 for time in times}


def every(minutes: int, count: int, begin: datetime = DAY) -> list[datetime]:
    return [begin + timedelta(minutes=minutes * k) for k in range(count)]


@pytest.mark.parametrize("product", ["dbz", "dbzh-600m"])
def test_a_file_of_fmi_without_tags_is_read_by_the_options_of_the_next_step(tmp_path, product):
    rasterio = pytest.importorskip("rasterio")
    description = ARCHIVES["fmi"].products[product]
    path = tmp_path / DAY.strftime(description.names[0])
    place = {"crs": "EPSG:3067", "transform": rasterio.Affine(250.0, 0.0, 0.0, 0.0, -250.0, 7e6)}
    with rasterio.open(path, "w", driver="GTiff", height=1, width=4, count=1, dtype="uint8", **place) as file:
        file.write(np.array([[0, 1, 254, 255]], np.uint8), 1)
    words = shlex.split(description.next_step("raw"))
    assert words[:6] == ["next:", "simcast", "data", "import", "raw", "DATA"] and words[6] == "--importer"
    (frame,) = read_frames(path, importer=parse_importer([words[7]]))
    np.testing.assert_array_equal(frame.values, np.array([[-np.inf, -31.5, 95.0, np.nan]], np.float32))
    assert (frame.unit, frame.time) == ("dBZ", DAY)


def test_the_next_step_states_what_the_import_needs():
    assert ARCHIVES["uk"].products["rate"].next_step("/raw") == "next: simcast data import /raw DATA"
    assert ARCHIVES["mch"].products["cpc"].next_step("/raw").endswith(" DATA --any-interval")
    assert ARCHIVES["fr"].products["rainfall"].next_step("/raw").startswith("simcast data import does not read")


@pytest.mark.parametrize(
    ("archive", "path", "step"),
    [
        ("fmi", "%Y/%m/%d/FIN-DBZ-3067-250M/%Y%m%d%H%M_FIN-DBZ-3067-250M.tif", 5),
        ("uk", "radar/%Y/%m/%d/%Y%m%d%H%M_ODIM_ng_radar_rainrate_composite_1km_UK.h5", 15),
        ("mrms", "CONUS/PrecipRate_00.00/%Y%m%d/MRMS_PrecipRate_00.00_%Y%m%d-%H%M%S.grib2.gz", 2),
        ("opera", "openradar-archive/%Y/%m/%d/OPERA/COMP/OPERA@%Y%m%dT%H%M@0@DBZH.h5", 5),
    ],
)
def test_bucket_is_listed_in_pages_and_missing_times_are_named(server, job, fetch, archive, path, step):
    times = every(step, 8)
    del times[3]
    server.files = frames(path, times)
    server.files |= {key.replace(".h5", ".tiff") + ".md5": b"other" for key in server.files}
    server.page = 3
    bucket = "/openradar-archive" if archive == "opera" else ""
    download = job(archive, None, "2025-01-10", (DAY + timedelta(minutes=8 * step)).isoformat(), path=bucket)
    missing = fetch(download)
    assert missing == [DAY + timedelta(minutes=3 * step)]
    expected = {f"2025/01/10/{key.rpartition('/')[2]}": server.files[key] for key in frames(path, times)}
    assert files_of(download.target) == expected
    assert (download.target / ".missing-times.txt").read_text() == f"{missing[0]:%Y-%m-%dT%H:%MZ}\n"
    stored = json.loads((download.target / "license.json").read_text())
    assert stored["license"] == ARCHIVES[archive].license and stored["archive"] == archive and stored["retrieved"]
    before = len(server.requests)
    fetch(download)
    assert not [url for _, url, _ in server.requests[before:] if "list-type" not in url], "complete files are kept"


def test_knmi_lists_by_name_and_keeps_the_key_to_itself(server, job, fetch, monkeypatch, caplog, capsys):
    secret = "eyJvcmciOiJzZWNyZXQifQ"
    folder = "datasets/nl_rdr_data_rtcor_5m/versions/1.0"
    server.files = frames(f"kdp/{folder}/RAD_NL25_RAC_RT_%Y%m%d%H%M.h5", every(5, 10))
    server.key, server.page = secret, 4
    download = job("knmi", None, "2025-01-10T00:10", "2025-01-10T00:40")
    monkeypatch.delenv("KNMI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="needs an access key in the environment variable KNMI_API_KEY"):
        download.plan()
    monkeypatch.setenv("KNMI_API_KEY", "wrong")
    with pytest.raises(DownloadError, match="HTTP status 401; check the access key in KNMI_API_KEY") as rejected:
        download.plan()
    assert "wrong" not in str(rejected.value)
    monkeypatch.setenv("KNMI_API_KEY", secret)
    plain = replace(download.options, endpoint="http://mirror.example")
    with pytest.raises(ConfigError, match="the access key in KNMI_API_KEY is sent only by https"):
        replace(download, options=plain).plan()
    assert fetch(download) == []
    assert len(files_of(download.target)) == 6
    assert all("Authorization" not in sent for _, url, sent in server.requests if url.startswith("/kdp/")) is False
    texts = [path.read_text(errors="replace") for path in download.target.rglob("*") if path.is_file()]
    texts += [caplog.text, capsys.readouterr().out, repr(download.client())]
    assert not any(secret in text or "Amz-Signature" in text for text in texts)


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def radklim_month(days: int = 3) -> dict[str, bytes]:
    """Return the tar file of a month, a tar.gz file per day with frames every 5 minutes of the first half hour."""
    inner = {}
    for k in range(days):
        day = datetime(2020, 6, 1 + k, tzinfo=UTC)
        content = frames("raa01-yw2017.002_10000-%y%m%d%H%M-dwd---bin", every(5, 6, day))
        inner[f"YW2017.002_{day:%Y%m%d}.tar.gz"] = tar_of({**content, "../../escape.txt": b"x"}, "w:gz")
    path = "climate_environment/CDC/grids_germany/5_minutes/radolan/reproc/2017_002/bin/2020/YW2017.002_202006.tar"
    return {path: tar_of(inner)}


def test_radklim_unpacks_the_days_of_the_period(server, job, fetch, tmp_path):
    server.files = radklim_month()
    download = job("radklim", None, "2020-06-02", "2020-06-02T00:40")
    assert [f"{time:%H:%M}" for time in fetch(download)] == ["00:30", "00:35"]
    names = files_of(download.target)
    assert len(names) == 6 and all(name.startswith("2020/06/02/raa01-yw2017.002_10000-200602") for name in names)
    assert not list(tmp_path.rglob("escape.txt")) and not list(download.target.rglob("*.tar"))
    begun = len(server.requested("YW2017"))
    fetch(download)
    assert len(server.requested("YW2017")) == begun, "an unpacked tar file is not downloaded again"
    other_day = job("radklim", None, "2020-06-01", "2020-06-03")
    missing = fetch(other_day)
    assert len(files_of(download.target)) == 12 and len(missing) == 2 * 288 - 12
    absent = job("radklim", None, "2020-07-01", "2020-07-02")
    assert absent.plan().files == [] and len(absent.plan().missing) == 1


def test_knmi_tar_files_begin_at_eight_in_the_morning(server, job, fetch, monkeypatch):
    monkeypatch.setenv("KNMI_API_KEY", "k")
    folder = "kdp/datasets/nl_rdr_data_rtcor_5m_tar/versions/1.0"
    begins = [datetime(2025, 1, 8 + k, 8, 5, tzinfo=UTC) for k in range(3)]
    for begin in begins:
        name = (
            f"RAD25_OPER_R___TARRRT__L2__{begin:%Y%m%dT%H%M%S}_{begin + timedelta(minutes=1435):%Y%m%dT%H%M%S}_0001.tar"
        )
        server.files[f"{folder}/{name}"] = tar_of(frames("RAD_NL25_RAC_RT_%Y%m%d%H%M.h5", every(5, 288, begin)))
    download = job("knmi", "rtcor-tar", "2025-01-10T07:00", "2025-01-10T09:00")
    assert fetch(download) == []
    assert sorted(files_of(download.target)) == [
        f"2025/01/10/RAD_NL25_RAC_RT_{time:%Y%m%d%H%M}.h5" for time in every(5, 24, DAY + timedelta(hours=7))
    ]


def test_stac_items_by_day(server, job, fetch, monkeypatch):
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
    public = "https://data.geo.admin.ch/ch.meteoschweiz.ogd-radar-precip"
    item, assets = f"{today:%Y%m%d}-ch", {}
    for time in every(5, 4, today):
        for product in ("rzc", "cpc"):
            name = f"{product.upper() if time.minute == 5 else product}{time:%y%j%H%M}"
            name += "vl.801.h5" if product == "rzc" else "9_00060.801.h5"
            assets[name] = {"href": f"{public}/{item}/{name}"}
            server.files[f"ch.meteoschweiz.ogd-radar-precip/{item}/{name}"] = name.encode()
    folder = "api/stac/v1/collections/ch.meteoschweiz.ogd-radar-precip/items"
    server.answers[f"{folder}/{item}"] = {"type": "Feature", "assets": assets}
    hourly = job("mch", "cpc", today.isoformat(), (today + timedelta(minutes=20)).isoformat()).plan()
    assert [file.time for file in hourly.files] == every(5, 4, today) and not hourly.missing
    download = job("mch", None, today.isoformat(), (today + timedelta(days=1, minutes=10)).isoformat())
    plan = download.plan()
    assert len(plan.files) == 4 and plan.is_estimate and len(plan.missing) == 288 + 2 - 4
    assert len(fetch(download)) == len(plan.missing) and len(files_of(download.target)) == 4
    assets["rzc"] = {"href": f"https://evil.example/{next(iter(assets))}"}
    with pytest.raises(DownloadError, match=r"refers to https://evil\.example, which is not a known host"):
        download.plan()


def test_dmi_pages_by_offset(server, job, fetch, monkeypatch):
    from simcast_hpc.data.download import archive_listing

    monkeypatch.setattr(archive_listing, "_PAGE", 5)
    monkeypatch.setenv("DMI_API_KEY", "my-key")
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)
    times = every(10, 12, today)
    server.files = frames("download/dk.com.%Y%m%d%H%M.500_max.h5", times)

    def items(query):
        assert query["scanType"] == ["fullRange"] and query["datetime"][0].startswith(f"{today:%Y-%m-%d}T00:00:00Z/")
        begin = int(query["offset"][0])
        names = sorted(server.files, reverse=True)[begin : begin + int(query["limit"][0])]
        return {"features": [{"id": name, "asset": {"data": {"href": f"{server.url}/{name}"}}} for name in names]}

    server.answers["collections/composite/items"] = items
    download = job("dmi", "composite-240km", today.isoformat(), (today + timedelta(hours=2)).isoformat())
    assert fetch(download) == [] and len(files_of(download.target)) == 12
    assert {sent.get("X-Gravitee-Api-Key") for _, _, sent in server.requests} == {"my-key"}
    assert not server.requested("my-key")


def test_hugging_face_verifies_sha256(server, job, fetch):
    from hashlib import sha256

    content = b"npz" * 1000
    server.files = {f"datasets/meteofrance/fr-radar-rainfall/resolve/main/{year}.tar": content for year in (2021, 2022)}
    entry = {"type": "file", "size": 130, "oid": "0" * 40, "lfs": {"oid": sha256(content).hexdigest(), "size": 3000}}
    server.answers["api/datasets/meteofrance/fr-radar-rainfall/tree/main"] = [
        {**entry, "path": "2021.tar"}, {**entry, "path": "2022.tar"}, {"type": "directory", "path": "x"},
    ]  # fmt: skip
    download = job("fr", None, "2022-03-01", "2022-03-02")
    assert fetch(download) == [] and files_of(download.target) == {"2022/01/01/2022.tar": content}
    server.answers["api/datasets/meteofrance/fr-radar-rainfall/tree/main"] = [
        {**entry, "path": "2021.tar", "lfs": {"oid": "a" * 64, "size": 3000}}
    ]
    with pytest.raises(DownloadError, match="the checksum of the download differs from its SHA-256"):
        fetch(job("fr", None, "2021-03-01", "2021-03-02"))


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]><ListBucketResult/>", "document type definition"),
        (b"<ListBucketResult><Contents>", "is not XML"),
        (b"<html><body>503</body></html>", "not the listing of a bucket"),
        (b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>", "has no continuation"),
        (
            b"<ListBucketResult><Contents><Key>radar/2025/01/10/202501100000_ODIM_ng_radar_rainrate_composite_1km_UK.h5"
            b"</Key><Size>-1</Size></Contents></ListBucketResult>", "invalid size or ETag",
        ),
        (
            b"<ListBucketResult><Contents><Key>radar/2025/01/10/202501100000_ODIM_ng_radar_rainrate_composite_1km_UK.h5"
            b"</Key><Size>99999999999</Size></Contents></ListBucketResult>", "the largest valid size is",
        ),
    ],
)  # fmt: skip
def test_invalid_listings_are_named(server, job, monkeypatch, listing, message):
    server.listing = lambda *_args: listing
    with pytest.raises(DownloadError, match=message):
        job("uk", None, "2025-01-10", "2025-01-11").plan()


def test_names_that_leave_the_folder_are_ignored(server, job, fetch, tmp_path):
    good = "radar/2025/01/10/202501100000_ODIM_ng_radar_rainrate_composite_1km_UK.h5"
    server.files = {good: b"good"}
    for name in ("../../evil.h5", "..", "a/../../b.h5", "202501100015_ODIM\n.h5", "-rf", "x" * 300):
        server.files[f"radar/2025/01/10/{name}"] = b"bad"
    download = job("uk", None, "2025-01-10", "2025-01-10T00:15")
    fetch(download)
    assert list(files_of(tmp_path)) == [f"target/2025/01/10/{good.rpartition('/')[2]}"]


def test_dry_run_counts_and_writes_nothing(server, job):
    server.files = frames("radar/%Y/%m/%d/%Y%m%d%H%M_ODIM_ng_radar_rainrate_composite_1km_UK.h5", every(15, 4))
    download = job("uk", None, "2025-01-10", "2025-01-10T02:00")
    plan = download.plan()
    assert (len(plan.files), len(plan.pending), len(plan.missing), plan.is_estimate) == (4, 4, 4, False)
    assert plan.pending_bytes == sum(map(len, server.files.values())) and not download.target.exists()


@pytest.mark.parametrize(
    ("name", "pattern", "time"),
    [
        ("rzc262252120vl.001.h5", "rzc%y%j%H%Mv*.h5", datetime(2026, 8, 13, 21, 20, tzinfo=UTC)),
        ("rzc263670000vl.001.h5", "rzc%y%j%H%Mv*.h5", None),
        ("202402300000.h5", "%Y%m%d%H%M.h5", None),
        ("2024/2023.h5", "%Y/%Y.h5", None),
        ("20240101\n.h5", "%Y%m%d*.h5", None),
        ("２０240101.h5", "%Y%m%d.h5", None),
    ],
)
def test_times_of_names(name, pattern, time):
    assert time_of_name(name, (pattern,)) == time


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_every_archive_is_complete(name):
    archive = ARCHIVES[name]
    assert archive.url.startswith("https://") and archive.license and archive.attribution and archive.checked
    assert archive.terms.startswith("https://") and not any("/" in host for host in archive.other_hosts)
    for product in archive.products.values():
        period = Period(datetime(2021, 3, 1, tzinfo=UTC), datetime(2021, 3, 2, tzinfo=UTC))
        for pattern in product.names:
            made = period.begin.strftime(pattern).replace("*", "x1")
            assert time_of_name(made, (pattern,)) is not None and product.file_times(period)
        for inside in product.names_inside:
            assert time_of_name(period.begin.strftime(inside), (inside,)) == period.begin


def test_errors_name_the_choices(job):
    with pytest.raises(ConfigError, match="'era5' is unknown; choose sevir, opera, knmi"):
        find_archive("era5")
    with pytest.raises(ConfigError, match="opera has dbzh, rate, odyssey-dbzh"):
        ARCHIVES["opera"].product("vil", archive="opera")
    with pytest.raises(ConfigError, match="choose --product odyssey-dbzh or odyssey-rate"):
        job("opera", "dbzh", "2020-01-01", "2020-01-02")
    with pytest.raises(ConfigError, match="the host keeps 14 days"):
        job("mch", None, "2025-10-01", "2025-10-02")
    for begin, end, message in [
        (None, "2024-01-01", "a period is required"), ("2024-13-01", "2024-01-01", "is not a time"),
        ("2024-01-02", "2024-01-02", "must be after"), ("yesterday", "2024-01-02", "--from 'yesterday' is not a time"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            parse_period(begin, end)
    assert parse_period("2024-01-01T02:00+02:00", "2024-01-02").begin == datetime(2024, 1, 1, tzinfo=UTC)


def test_one_folder_is_one_product(server, job, fetch):
    fetch(job("opera", "dbzh", "2025-01-10", "2025-01-10T00:05"))
    server.files = frames("2025/01/10/OPERA/COMP/OPERA@%Y%m%dT%H%M@0@DBZH.h5", every(5, 1))
    fetch(job("opera", "dbzh", "2025-01-10", "2025-01-10T00:05"))
    with pytest.raises(ConfigError, match="contains opera dbzh; choose another folder for opera rate"):
        job("opera", "rate", "2025-01-10", "2025-01-10T00:15").plan()


def test_links_to_other_hosts_are_followed_only_if_listed_and_https(server, job):
    client = job("fr", None, "2022-03-01", "2022-03-02").client()
    assert client.trusted("https://cdn-lfs.hf.co/a") == "https://cdn-lfs.hf.co/a"
    assert client.trusted("https://huggingface.co/a/b") == f"{server.url}/a/b", "a mirror replaces the public host"
    for link in ("http://cdn-lfs.hf.co/a", "https://hf.co.evil.example/a", "https://evil.example/.hf.co", "file:///etc",
                 "https://user@evil.example/", "//evil.example/x", "ftp://cdn-lfs.hf.co/a"):  # fmt: skip
        with pytest.raises(DownloadError, match="is not a known host"):
            client.trusted(link)


def test_guide_lists_every_archive_product_and_license():
    guide = (Path(__file__).parents[3] / "docs/guides/download-archives.md").read_text(encoding="utf-8")
    for name, archive in ARCHIVES.items():
        license_name = archive.license.rpartition(", ")[2]
        for text in (name, *(archive.products if archive.products.keys() != {"store"} else ())):
            assert f"`{text}`" in guide, text
        row = next(line for line in guide.splitlines() if line.startswith("| ") and f"`{name}`" in line)
        assert license_name in row, name
        assert not archive.key or f"`{archive.key}`" in guide
