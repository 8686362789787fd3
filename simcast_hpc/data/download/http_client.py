"""HTTP client of the downloads: bounded answers, retries that respect the server, redirects only to known hosts.

The access key is sent only to the host of the archive, in a header; no message or file contains it.
"""

import email.utils
import json
import logging
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.client import HTTPException
from typing import Any
from urllib.parse import urljoin, urlsplit

from simcast_hpc.config import ConfigError
from simcast_hpc.config.text_files import printable
from simcast_hpc.version import __version__

from .object_transfer import DownloadError, MissingObjectError, ObjectChangedError, RetryPolicy, TryLaterError

logger = logging.getLogger(__name__)
LARGEST_LISTING = 2**26
_REDIRECTS = 5
_LONGEST_WAIT = 900.0
_RETRIED = (408, 425, 429, 500, 502, 503, 504)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class HttpClient:
    """Client of one archive.

    Attributes:
        base: URL of the archive; requests go to its host and to ``other_hosts``.
        public: published URL of the archive, if ``base`` is a mirror of it; links to it are rewritten.
        other_hosts: further hosts, only by https; ``*`` matches any characters.
        secret_headers: sent only to the host of ``base``.
        missing_statuses: statuses that mean that a file does not exist.
        key_hint: text for errors of rejected requests, such as the name of the variable with the key.
        timeout: seconds without data until a connection is closed.
        retry: when to give up.
    """

    base: str
    public: str = ""
    other_hosts: tuple[str, ...] = ()
    secret_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    missing_statuses: tuple[int, ...] = (404, 410)
    key_hint: str = ""
    timeout: float = 30.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self):
        parts = urlsplit(self.base)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigError(f"--endpoint {self.base!r} must be a URL such as https://mirror.example/radar")

    def url(self, path: str) -> str:
        """Return the URL of a path below the base URL."""
        return f"{self.base.rstrip('/')}/{path.lstrip('/')}"

    def trusted(self, link: str, *, referrer: str | None = None) -> str:
        """Return the absolute URL of a link that a server sent, rewritten to the mirror if there is one.

        Raises:
            DownloadError: it leads to a host that does not belong to the archive, or is neither https nor on the host
                of ``base``.
        """
        url = urljoin(referrer or self.base.rstrip("/") + "/", link)
        if self.public and url.startswith(self.public.rstrip("/") + "/"):
            url = self.url(url[len(self.public.rstrip("/")) :])
        parts = urlsplit(url)
        if self._is_base(url):
            return url
        if parts.scheme == "https" and any(fnmatchcase(parts.netloc.lower(), host) for host in self.other_hosts):
            return url
        raise DownloadError(
            f"{self.base} refers to {printable(f'{parts.scheme}://{parts.netloc}')}, which is not a known host of this "
            "archive; nothing was requested from it"
        )

    def _is_base(self, url: str) -> bool:
        one, base = urlsplit(url), urlsplit(self.base)
        return (one.scheme, one.netloc.lower()) == (base.scheme, base.netloc.lower())

    @contextmanager
    def open(self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """Yield the response of one request, after redirects; no retries.

        Raises:
            MissingObjectError: the file does not exist.
            TryLaterError: the server asks to try again later, or its answer breaks off (``wait`` seconds).
            DownloadError: the request is rejected or redirected to another host.
        """
        opener = urllib.request.build_opener(_NoRedirects)
        for _ in range(_REDIRECTS + 1):
            sent = {"User-Agent": f"simcast-hpc/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
            sent |= self.secret_headers if self._is_base(url) else {}
            request = urllib.request.Request(url, headers=sent, method=method)
            try:
                response = opener.open(request, timeout=self.timeout)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in (301, 302, 303, 307, 308):
                        url = self.trusted(error.headers.get("Location", ""), referrer=url)
                        continue
                    raise self._rejection(url, error) from None
            except (OSError, HTTPException, ValueError) as error:  # ValueError: an invalid port or header
                if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                    raise DownloadError(f"{plain(url)}: {_reason(error)}") from error
                raise TryLaterError(f"{plain(url)}: {_reason(error)}") from error
            try:
                with response:
                    yield response
            except (OSError, HTTPException) as error:
                if isinstance(error, TryLaterError):
                    raise
                raise TryLaterError(f"{plain(url)}: {_reason(error)}") from error
            return
        raise DownloadError(f"{plain(url)}: more than {_REDIRECTS} redirects")

    def _rejection(self, url: str, error: urllib.error.HTTPError) -> Exception:
        if error.code in self.missing_statuses:
            return MissingObjectError(f"{plain(url)} does not exist (HTTP status {error.code})")
        if error.code == 416:
            return ObjectChangedError(f"{plain(url)} is shorter than its partial download")
        if error.code in _RETRIED:
            return TryLaterError(
                f"{plain(url)}: HTTP status {error.code}", wait=_seconds(error.headers.get("Retry-After"))
            )
        hint = f"; {self.key_hint}" if error.code in (401, 403) and self.key_hint else ""
        return DownloadError(f"{plain(url)}: rejected with HTTP status {error.code}{hint}")

    def fetch(self, url: str, *, method: str = "GET") -> tuple[bytes, Mapping[str, str]]:
        """Return a small answer and its headers; retries.

        Raises:
            DownloadError: no complete answer in the allowed tries, or an answer above 64 MiB.
            MissingObjectError: the file does not exist.
        """
        failures = 0
        while True:
            try:
                with self.open(url, method=method) as response:
                    content = response.read(LARGEST_LISTING + 1)
                    length = response.headers.get("Content-Length", "")
                    if len(content) > LARGEST_LISTING:
                        raise DownloadError(f"{plain(url)}: the answer is larger than {LARGEST_LISTING >> 20} MiB")
                    if method != "HEAD" and length.isdecimal() and int(length) != len(content):
                        raise TryLaterError(f"{plain(url)}: {len(content)} of {length} bytes were sent")
                    return content, response.headers
            except TryLaterError as error:
                failures += 1
                self.retry.pause_after(error, failures)

    def json(self, url: str) -> Any:
        """Return the value of a JSON answer; retries.

        Raises:
            DownloadError: as :meth:`fetch`, or the answer is not JSON.
        """
        return self.parse(url, self.fetch(url)[0])

    def parse(self, url: str, content: bytes) -> Any:
        """Return the value of the JSON answer of ``url``.

        Raises:
            DownloadError: it is not JSON.
        """
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DownloadError(f"{plain(url)}: the answer is not JSON: {printable(str(error))[:200]}") from None


def plain(url: str) -> str:
    """Return a URL for messages: without query, which can contain a signature, and with printable characters."""
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")[:300]


def size_of(headers: Mapping[str, str]) -> int | None:
    """Return the size of the complete file by the headers of an answer, None if they do not contain it."""
    found = re.fullmatch(r"bytes (?:[0-9]+-[0-9]+|\*)/([0-9]{1,18})", headers.get("Content-Range", "") or "")
    if found is not None:
        return int(found[1])
    length = headers.get("Content-Length", "") or ""
    return int(length) if length.isdecimal() and len(length) <= 18 else None


def version_of(headers: Mapping[str, str]) -> str:
    """Return the ETag of an answer without quotes, else its time of modification, else an empty text."""
    etag = (headers.get("ETag") or "").removeprefix("W/").strip('"')
    modified = headers.get("Last-Modified") or ""
    version = etag or (f"modified {modified}" if modified else "")
    return version if version.isprintable() and len(version) <= 200 else ""


def _seconds(text: str | None) -> float:
    """Return the seconds of a Retry-After header, a number or a date; at most 15 minutes."""
    if not text:
        return 0.0
    if text.strip().isdecimal():
        return min(_LONGEST_WAIT, float(text.strip()))
    try:
        return max(0.0, min(_LONGEST_WAIT, email.utils.parsedate_to_datetime(text).timestamp() - time.time()))
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return printable(str(reason or error) or type(error).__name__)[:200]
