"""Download of a product of an open archive for a period: listing, space, transfer by several connections, unpacking."""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from simcast_hpc.config import ConfigError
from simcast_hpc.data.data_license import DataLicense
from simcast_hpc.storage.atomic_files import write_text
from simcast_hpc.storage.directory_lock import DirectoryLock, hold_directory

from .archive_description import Archive, Period, Product, require_overlap
from .archive_listing import ArchiveFile, list_files
from .download_ledger import DownloadLedger
from .http_client import HttpClient, size_of
from .http_ranges import HttpReader, TemporaryAddressReader
from .object_transfer import (
    DownloadError,
    MissingObjectError,
    ObjectChangedError,
    RangeReader,
    RemoteObject,
    RetryPolicy,
    Transferred,
    download_object,
    part_of,
)
from .tar_frames import frame_path, unpack_frames

logger = logging.getLogger(__name__)
MISSING_TIMES = ".missing-times.txt"
_TAR_FOLDER = ".tar"
_SAMPLED = 8
_RESTARTS = 3
SPARE_BYTES = 2**30


@dataclass(frozen=True)
class TransferOptions:
    """How files are transferred.

    Attributes:
        endpoint: URL of a mirror of the archive, None for the archive itself.
        connections: number of files that are transferred at once.
        stall_seconds: seconds without data until a connection is closed.
        retry: when to give up.
    """

    endpoint: str | None = None
    connections: int = 4
    stall_seconds: float = 30.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True)
class DownloadPlan:
    """Files of a period: all, and those that are not downloaded yet, with their bytes.

    ``pending_bytes`` includes what is unpacked from tar files. ``is_estimate``: it is partly extrapolated.
    """

    files: Sequence[ArchiveFile]
    pending: Sequence[ArchiveFile]
    pending_bytes: int
    is_estimate: bool
    missing: Sequence[datetime]


@dataclass(frozen=True)
class ArchiveDownload:
    """A download of one product into one folder.

    Attributes:
        name: of the archive.
        archive: its description.
        product_name: name of the product.
        period: times from begin (inclusive) to end (exclusive).
        target: folder; files are stored in ``target/YYYY/MM/DD``.
        options: of the transfer.
    """

    name: str
    archive: Archive
    product_name: str
    period: Period
    target: Path
    options: TransferOptions = TransferOptions()

    def __post_init__(self):
        require_overlap(self.period, self.name, self.archive, self.product_name)

    @property
    def product(self) -> Product:
        """Description of the product."""
        return self.archive.products[self.product_name]

    def client(self) -> HttpClient:
        """Return the HTTP client of the archive.

        Raises:
            ConfigError: the archive needs a key and its environment variable is not set, or the endpoint is invalid.
        """
        archive, endpoint = self.archive, self.options.endpoint
        key = os.environ.get(archive.key, "").strip() if archive.key else ""
        if archive.needs_key and not key:
            raise ConfigError(
                f"the archive {self.name} needs an access key in the environment variable {archive.key}; "
                f"{archive.terms} and the documentation of the provider say how to obtain one"
            )
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"the access key in {archive.key} contains invalid characters")
        where = urlsplit(endpoint or archive.url)
        if key and where.scheme != "https" and where.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigError(f"--endpoint {endpoint}: the access key in {archive.key} is sent only by https")
        header, form = archive.key_header
        return HttpClient(
            endpoint or archive.url,
            public=archive.url if endpoint else "",
            other_hosts=archive.other_hosts,
            secret_headers={header: form.format(key)} if key else {},
            missing_statuses=archive.missing_statuses,
            key_hint=f"check the access key in {archive.key}" if archive.key else "",
            timeout=self.options.stall_seconds,
            retry=self.options.retry,
        )

    def plan(self) -> DownloadPlan:
        """List the files of the period and compare them with those in the folder; write nothing.

        Raises:
            DownloadError: the listing fails.
            ConfigError: the folder contains another product.
        """
        client, ledger = self.client(), self._ledger()
        files = list_files(client, self.product, self.period)
        pending = [file for file in files if not self._is_complete(file, ledger)]
        size, is_estimate = _bytes_of(client, pending)
        size -= sum(_partial_bytes(self._path(file)) for file in pending)
        frames = len(self.product.frame_times(self.period)) if self.product.names_inside and pending else 0
        return DownloadPlan(
            files, pending, max(0, size) + frames * self.product.frame_kib * 1024, is_estimate or bool(frames),
            self._missing([file.time for file in files]),
        )  # fmt: skip

    def run(self, plan: DownloadPlan, *, on_start: Callable[[int], Callable[[int], None]]) -> list[datetime]:
        """Download the pending files of a plan; return the times without a file.

        ``on_start`` is called with the number of bytes and returns the progress callback. ``license.json`` is written
        before the first file.

        Raises:
            DownloadError: a file cannot be downloaded completely, or the disk is too small; complete files are kept.
        """
        require_space(plan, self.target)
        with hold_directory(self.target, "a download", field="TARGET") as lock:
            ledger = self._ledger()
            DataLicense(
                self.name, self.product_name, self.archive.license, self.archive.attribution, self.archive.terms,
                f"{datetime.now(UTC):%Y-%m-%d}",
            ).write(self.target)  # fmt: skip
            absent = self._transfer(plan.pending, ledger, lock, on_start(plan.pending_bytes))
            with suppress(OSError):  # not empty, or no tar files
                (self.target / _TAR_FOLDER).rmdir()
            times = [file.time for file in plan.files if file.name not in absent]
            missing = self._missing(times, unpacked=self._unpacked(plan.files, ledger))
            write_text(self.target / MISSING_TIMES, "".join(f"{time:%Y-%m-%dT%H:%MZ}\n" for time in missing))
        return missing

    def _transfer(
        self,
        pending: Sequence[ArchiveFile],
        ledger: DownloadLedger,
        lock: DirectoryLock,
        progress: Callable[[int], None],
    ) -> set[str]:
        """Transfer files; return the names of those that do not exist."""
        client = self.client()
        reader: RangeReader = TemporaryAddressReader(client) if self.product.service == "knmi" else HttpReader(client)
        stopped, mutex, absent = threading.Event(), threading.Lock(), set[str]()

        def check() -> None:
            lock.check()
            if stopped.is_set():
                raise DownloadError("stopped")

        def advance(count: int) -> None:
            check()
            with mutex:
                progress(count)

        def transfer(file: ArchiveFile) -> None:
            check()
            try:
                self._transfer_file(file, reader, ledger, advance, check)
            except MissingObjectError:
                with mutex:
                    absent.add(file.name)

        with ThreadPoolExecutor(self.options.connections, thread_name_prefix="download") as pool:
            futures = [pool.submit(transfer, file) for file in pending]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = next((future for future in done if future.exception() is not None), None)
            except BaseException:  # SIGTERM or Ctrl-C: the running transfers end after their block
                stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            if failed is not None:
                stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise failed.exception() or AssertionError
        return absent

    def _transfer_file(
        self,
        file: ArchiveFile,
        reader: RangeReader,
        ledger: DownloadLedger,
        progress: Callable[[int], None],
        check: Callable[[], None],
    ) -> None:
        into = self._path(file)
        if self.product.names_inside and into.is_file() and not into.is_symlink():  # a stop during the unpacking
            size, etag = into.stat().st_size, ""
        else:
            done = self._newest(file.remote, reader, into, progress)
            size, etag = done.size, done.etag
        if not self.product.names_inside:
            ledger.add(file.name, size=size, etag=etag)
            return
        try:
            times = unpack_frames(into, self.product, self.period, self.target, check=check)
        except DownloadError:
            if not _is_stopped(check):
                into.unlink(missing_ok=True)  # so that the next call downloads it again
            raise
        ledger.add(
            file.name, size=size, etag=etag, begin=self.period.begin.isoformat(),
            end=self.period.end.isoformat(), frames=[f"{time:%Y-%m-%dT%H:%M}" for time in times],
        )  # fmt: skip
        into.unlink()

    def _newest(
        self, remote: RemoteObject, reader: RangeReader, into: Path, progress: Callable[[int], None]
    ) -> Transferred:
        """Download a file; restart with its newest version if it changes during the download."""
        for restart in range(_RESTARTS):
            try:
                return download_object(
                    reader, remote, into, retry=self.options.retry, progress=progress, keep_etag=False
                )
            except ObjectChangedError as error:
                if restart + 1 == _RESTARTS:
                    raise
                logger.warning("%s; restarting with the version that the server has now", error)
                remote = replace(remote, size=None, etag="", sha256="")
        raise AssertionError

    def _ledger(self) -> DownloadLedger:
        return DownloadLedger(self.target, archive=self.name, product=self.product_name)

    def _path(self, file: ArchiveFile) -> Path:
        if self.product.names_inside:
            return self.target / _TAR_FOLDER / file.name
        return frame_path(self.target, file.time, file.name)

    def _is_complete(self, file: ArchiveFile, ledger: DownloadLedger) -> bool:
        """Return whether a file was downloaded; a file that changed on the server since then was not."""
        entry, remote = ledger.entry(file.name), file.remote
        changed = remote.size is not None and entry.get("size") != remote.size
        changed |= bool(remote.etag and entry.get("etag")) and entry.get("etag") != remote.etag
        if not entry or changed:
            return False
        if not self.product.names_inside:
            path = self._path(file)
            return path.is_file() and path.stat().st_size == entry["size"]
        begin = max(self.period.begin, self.product.begin_of_file(file.time)).isoformat()
        end = min(self.period.end, self.product.end_of_file(file.time)).isoformat()
        covers = str(entry.get("begin", "9")) <= begin and str(entry.get("end", "")) >= end
        return covers and all(
            any(frame_path(self.target, time, "").glob("*")) for time in _days_of(entry.get("frames", ()))
        )

    def _unpacked(self, files: Sequence[ArchiveFile], ledger: DownloadLedger) -> list[datetime]:
        return [
            datetime.fromisoformat(text).replace(tzinfo=UTC)
            for file in files
            for text in ledger.entry(file.name).get("frames", ())
        ]

    def _missing(self, file_times: Sequence[datetime], *, unpacked: Sequence[datetime] | None = None) -> list[datetime]:
        """Return the nominal times without a file within half a step; of tar files, without an unpacked frame."""
        product = self.product
        if not product.frame_minutes or (product.names_inside and unpacked is None):
            present = {product.begin_of_file(time).date() for time in file_times}
            return [time for time in product.file_times(self.period) if time.date() not in present]
        half = timedelta(minutes=product.frame_minutes) / 2
        times = sorted(unpacked or () if product.names_inside else file_times)
        missing, k = [], 0
        for nominal in product.frame_times(self.period):
            while k < len(times) and times[k] < nominal - half:
                k += 1
            if k == len(times) or times[k] >= nominal + half:
                missing.append(nominal)
        return missing


def require_space(plan: DownloadPlan, target: Path) -> None:
    """Check that the pending bytes of a plan fit on the disk of ``target``.

    Raises:
        DownloadError: they do not; gives the needed and the free space.
    """
    existing = target
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if plan.pending_bytes and plan.pending_bytes + SPARE_BYTES > free:
        raise DownloadError(
            f"the download needs {plan.pending_bytes / 1e9:.1f} GB and a reserve of {SPARE_BYTES / 1e9:.1f} GB, but "
            f"{existing} has {free / 1e9:.1f} GB free; choose a shorter period, or another disk"
        )


def _bytes_of(client: HttpClient, files: Sequence[ArchiveFile]) -> tuple[int, bool]:
    """Return the bytes of files, extrapolated from a few HEAD requests if the listing has no sizes."""
    known = [file.remote.size for file in files if file.remote.size is not None]
    unknown = [file for file in files if file.remote.size is None]
    if not unknown:
        return sum(known), False
    sampled = []
    for k in range(min(_SAMPLED, len(unknown))):
        file = unknown[k * len(unknown) // min(_SAMPLED, len(unknown))]
        try:
            sampled.append(size_of(client.fetch(file.remote.url, method="HEAD")[1]) or 0)
        except DownloadError as error:  # an estimate only; the transfer reports errors
            logger.info("no size of %s: %s", file.name, error)
    mean = sum(sampled) / len(sampled) if sampled else 0
    return sum(known) + round(mean * len(unknown)), True


def _is_stopped(check: Callable[[], None]) -> bool:
    try:
        check()
    except DownloadError:
        return True
    return False


def _partial_bytes(path: Path) -> int:
    for one in (path, part_of(path)):
        if one.is_file() and not one.is_symlink():
            return one.stat().st_size
    return 0


def _days_of(frames: Sequence[str]) -> list[datetime]:
    return sorted({datetime.fromisoformat(text[:10]) for text in frames})
