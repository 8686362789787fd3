"""Byte ranges of files over HTTP, directly or by a temporary address that an API gives out."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .http_client import HttpClient, plain, size_of, version_of
from .object_transfer import DownloadError, ObjectChangedError, Piece, RemoteObject, TryLaterError

_SKIPPED_AT_ONCE = 2**20
_ADDRESS_SECONDS = 600.0


@dataclass(frozen=True)
class HttpReader:
    """A ``RangeReader`` of URLs, also of servers that ignore ranges."""

    client: HttpClient

    def read(self, remote: RemoteObject, begin: int, end: int) -> Piece:
        """Return the bytes from ``begin`` to ``end`` (exclusive), fewer only at the end of the file."""
        url = self._address(remote)
        with self.client.open(url, headers={"Range": f"bytes={begin}-{end - 1}"}) as response:
            size, etag = size_of(response.headers), version_of(response.headers)
            _require_same(remote, size, etag)
            if response.status == 206:
                _require_begin(url, response.headers, begin)
            else:
                _skip(response, url, begin)
            wanted = end - begin if size is None else min(end, size) - begin
            data = response.read(max(0, wanted))
        if size is not None and len(data) < wanted:
            raise TryLaterError(f"{plain(url)}: the connection was closed after {len(data)} of {wanted} bytes")
        return Piece(data, size, etag)

    def _address(self, remote: RemoteObject) -> str:
        return remote.url


@dataclass(frozen=True)
class TemporaryAddressReader(HttpReader):
    """A reader of files whose URL answers ``{"temporaryDownloadUrl": ...}``, as that of the KNMI Data Platform."""

    _known: dict[str, tuple[float, str]] = field(default_factory=dict, repr=False)
    _mutex: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self, remote: RemoteObject, begin: int, end: int) -> Piece:
        """Return a range of bytes; ask for a new address if the known one is rejected, because it expires."""
        known = remote.url in self._known
        try:
            return super().read(remote, begin, end)
        except DownloadError:
            with self._mutex:
                self._known.pop(remote.url, None)
            if not known:
                raise
            return super().read(remote, begin, end)

    def _address(self, remote: RemoteObject) -> str:
        with self._mutex:
            since, address = self._known.get(remote.url, (0.0, ""))
        if address and time.monotonic() - since < _ADDRESS_SECONDS:
            return address
        with self.client.open(remote.url) as response:
            answer = self.client.parse(remote.url, response.read(2**16))
        link = answer.get("temporaryDownloadUrl") if isinstance(answer, Mapping) else None
        if not isinstance(link, str):
            raise DownloadError(f"{plain(remote.url)}: the answer contains no temporaryDownloadUrl")
        address = self.client.trusted(link)
        with self._mutex:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[remote.url] = (time.monotonic(), address)
        return address


def _require_same(remote: RemoteObject, size: int | None, etag: str) -> None:
    if remote.etag and etag and etag != remote.etag:
        raise ObjectChangedError(f"{remote.key} changed on the server: from ETag {remote.etag} to {etag}")
    if remote.size is not None and size is not None and size != remote.size:
        raise ObjectChangedError(f"{remote.key} changed on the server: from {remote.size} to {size} bytes")


def _require_begin(url: str, headers: Mapping[str, str], begin: int) -> None:
    sent = headers.get("Content-Range", "") or ""
    if not sent.startswith(f"bytes {begin}-"):
        raise TryLaterError(f"{plain(url)}: bytes from {begin} were requested, the answer contains another range")


def _skip(response: Any, url: str, count: int) -> None:
    """Read and drop the first bytes of an answer without range."""
    while count > 0:
        dropped = len(response.read(min(count, _SKIPPED_AT_ONCE)))
        if not dropped:
            raise TryLaterError(f"{plain(url)}: the connection was closed {count} bytes before the requested range")
        count -= dropped
