"""Lists the files of a product in a period, one function per service."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

from simcast_hpc.config.text_files import printable

from .archive_description import Period, Product, time_of_name
from .http_client import HttpClient, plain, size_of, version_of
from .object_transfer import DownloadError, MissingObjectError, RemoteObject

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,199}", re.ASCII)
_PAGE = 1000
_MOST_PAGES = 10_000


@dataclass(frozen=True)
class ArchiveFile:
    """A file of an archive: name, time by its name (aware, UTC), and address."""

    name: str
    time: datetime
    remote: RemoteObject


def list_files(client: HttpClient, product: Product, period: Period) -> list[ArchiveFile]:
    """Return the files of a product with frames in a period, ascending by time and name.

    Files whose name does not match a pattern of the product are ignored: folders contain other products too.

    Raises:
        DownloadError: the listing is invalid or incomplete, or two files differ only in case.
    """
    found: dict[str, ArchiveFile] = {}
    for name, remote in _SERVICES[product.service](client, product, period):
        time = time_of_name(name, product.names)
        if time is None or not product.overlaps(time, period):
            continue
        if _NAME.fullmatch(name) is None:
            raise DownloadError(f"{client.base} lists the file {printable(name)[:100]!r}, which is not a valid name")
        if remote.size is not None and remote.size > remote.largest:
            raise DownloadError(
                f"{client.base} lists {name} with {remote.size} bytes; the largest valid size is {remote.largest}"
            )
        other = found.setdefault(name.casefold(), ArchiveFile(name, time, remote))
        if other.name != name:
            raise DownloadError(f"{client.base} lists {other.name!r} and {name!r}, which differ only in case")
    return sorted(found.values(), key=lambda file: (file.time, file.name))


_Listing = Iterator[tuple[str, RemoteObject]]


def _remote(
    name: str, product: Product, *, size: int | None = None, etag: str = "", url: str, sha256: str = ""
) -> RemoteObject:
    return RemoteObject(name, size, etag, url=url, sha256=sha256, largest=product.largest_mib * 2**20)


def _files(client: HttpClient, product: Product, period: Period) -> _Listing:
    """Ask for each name that the pattern gives: one HEAD request per file."""
    for time in product.file_times(period):
        name = time.strftime(product.names[0])
        url = client.url(f"{time.strftime(product.folder)}/{name}")
        try:
            _, headers = client.fetch(url, method="HEAD")
        except MissingObjectError:
            continue
        yield name, _remote(name, product, size=size_of(headers), etag=version_of(headers), url=url)


def _s3(client: HttpClient, product: Product, period: Period) -> _Listing:
    """List a bucket anonymously (ListObjectsV2), one prefix per day."""
    for day in period.days():
        prefix, token = day.strftime(product.folder), ""
        for _ in range(_MOST_PAGES):
            query = {"list-type": "2", "prefix": prefix, "max-keys": str(_PAGE)}
            query |= {"continuation-token": token} if token else {}
            root = _xml(client, client.url("?" + urlencode(query)))
            for entry in root.iterfind("{*}Contents"):
                key, size = entry.findtext("{*}Key", ""), entry.findtext("{*}Size", "")
                folder, _, name = key.rpartition("/")
                if not key.startswith(prefix) or folder != prefix.rpartition("/")[0]:
                    continue  # a folder below, or another bucket's answer
                etag = entry.findtext("{*}ETag", "").strip('"')
                if not size.isdecimal() or len(size) > 18 or not etag.isprintable() or len(etag) > 200:
                    raise DownloadError(f"{client.base} lists {printable(key)[:200]!r} with an invalid size or ETag")
                yield name, _remote(name, product, size=int(size), etag=etag, url=client.url(quote(key)))
            token = root.findtext("{*}NextContinuationToken", "")
            if root.findtext("{*}IsTruncated", "") != "true":
                break
            if not token:
                raise DownloadError(f"{client.base}: the listing of {prefix} is truncated and has no continuation")


def _xml(client: HttpClient, url: str) -> ElementTree.Element:
    content, _ = client.fetch(url)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # entities expand without bound
        raise DownloadError(f"{plain(url)}: the listing contains a document type definition")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DownloadError(f"{plain(url)}: the listing is not XML: {error}") from None
    if root.tag.rpartition("}")[2] != "ListBucketResult":
        raise DownloadError(f"{plain(url)}: the answer is not the listing of a bucket")
    return root


def _stac(client: HttpClient, product: Product, period: Period) -> _Listing:
    """Read the STAC item of each day; its assets are files."""
    for day in period.days():
        url = client.url(day.strftime(product.folder))
        try:
            item = client.json(url)
        except MissingObjectError:
            continue
        assets = item.get("assets") if isinstance(item, Mapping) else None
        if not isinstance(assets, Mapping):
            raise DownloadError(f"{plain(url)}: the answer is not a STAC item with assets")
        for asset in assets.values():
            link = _text(asset, "href", url)
            name = urlsplit(link).path.rpartition("/")[2]
            if time_of_name(name, product.names) is None:
                continue
            size, checksum = asset.get("file:size"), asset.get("file:checksum")
            # A multihash: 12 is SHA-256, 20 its length in bytes.
            multihash = re.fullmatch("1220([0-9a-f]{64})", checksum) if isinstance(checksum, str) else None
            yield (
                name,
                _remote(
                    name,
                    product,
                    size=size if isinstance(size, int) and size >= 0 else None,
                    url=client.trusted(link, referrer=url),
                    sha256=multihash[1] if multihash else "",
                ),
            )


def _knmi(client: HttpClient, product: Product, period: Period) -> _Listing:
    """List a data set of the KNMI Data Platform by name; each page begins after the last name of the one before."""
    begin = period.begin
    if product.names_inside:
        begin -= product.end_of_file(begin) - begin
    after = begin.strftime(product.listing_begin)
    folder = client.url(f"{product.folder}/files")
    for _ in range(_MOST_PAGES):
        url = f"{folder}?{urlencode({'maxKeys': _PAGE, 'startAfterFilename': after})}"
        page = client.json(url)
        files = page.get("files") if isinstance(page, Mapping) else None
        if not isinstance(files, list):
            raise DownloadError(f"{plain(url)}: the answer contains no list of files")
        names = [_text(file, "filename", url) for file in files]
        for name, file in zip(names, files, strict=True):
            size = file.get("size")
            address = f"{folder}/{quote(name, safe='')}/url"
            yield name, _remote(name, product, size=size if isinstance(size, int) and size >= 0 else None, url=address)
        times = [time for name in names if (time := time_of_name(name, product.names)) is not None]
        if not page.get("isTruncated") or not names or (times and max(times) >= period.end):
            return
        if max(names) <= after:
            raise DownloadError(f"{plain(url)}: the listing does not advance beyond {printable(after)[:100]}")
        after = max(names)
    raise DownloadError(f"{plain(folder)}: the listing has more than {_MOST_PAGES} pages")


def _dmi(client: HttpClient, product: Product, period: Period) -> _Listing:
    """List a collection of the DMI radar data API in pages by offset, one day at a time."""
    for day in period.days():
        end = day + timedelta(days=1) - timedelta(seconds=1)
        query = {"datetime": f"{day:%Y-%m-%dT%H:%M:%SZ}/{end:%Y-%m-%dT%H:%M:%SZ}", "limit": str(_PAGE)}
        for page in range(_MOST_PAGES):
            url = client.url(f"{product.folder}?{urlencode({**query, 'offset': str(page * _PAGE)})}")
            answer = client.json(f"{url}&{product.query}" if product.query else url)
            features = answer.get("features") if isinstance(answer, Mapping) else None
            if not isinstance(features, list):
                raise DownloadError(f"{plain(url)}: the answer contains no list of features")
            for feature in features:
                # The API calls the field ``asset``, STAC ``assets``.
                assets = feature.get("asset") or feature.get("assets") if isinstance(feature, Mapping) else None
                link = _text(assets.get("data") if isinstance(assets, Mapping) else None, "href", url)
                name = urlsplit(link).path.rpartition("/")[2]
                yield name, _remote(name, product, url=client.trusted(link, referrer=url))
            if len(features) < _PAGE:
                break


def _huggingface(client: HttpClient, product: Product, period: Period) -> _Listing:
    """List the top folder of a data set of the Hugging Face Hub."""
    url = client.url(f"api/{product.folder}/tree/main")
    entries = client.json(url)
    if not isinstance(entries, list):
        raise DownloadError(f"{plain(url)}: the answer is not a list of files")
    for entry in entries:
        name = _text(entry, "path", url)
        if entry.get("type") != "file" or "/" in name:
            continue
        stored = entry.get("lfs") if isinstance(entry.get("lfs"), Mapping) else entry
        size, digest = stored.get("size"), stored.get("oid") or ""
        known = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None
        yield (
            name,
            _remote(
                name,
                product,
                size=size if isinstance(size, int) and size >= 0 else None,
                url=client.url(f"{product.folder}/resolve/main/{quote(name)}"),
                sha256=digest if known else "",
            ),
        )


def _text(value: Any, key: str, url: str) -> str:
    text = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(text, str) or len(text) > 4000:
        raise DownloadError(f"{plain(url)}: an entry of the listing has no text {key!r}")
    return text


_SERVICES: Mapping[str, Callable[[HttpClient, Product, Period], _Listing]] = {
    "files": _files, "s3": _s3, "stac": _stac, "knmi": _knmi, "dmi": _dmi, "huggingface": _huggingface,
}  # fmt: skip
