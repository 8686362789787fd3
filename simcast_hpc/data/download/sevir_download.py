"""SEVIR out of its public bucket: the catalog and the files of one kind of image, all years or some."""

import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from simcast_hpc.config import ConfigError

from ..catalog import CATALOG
from .s3_transfer import DownloadError, ObjectChangedError, RemoteObject, RetryPolicy, fetch, fetched, stands

logger = logging.getLogger(__name__)
_RESTARTS = 3
_SPARE_BYTES = 2**30


@dataclass(frozen=True)
class Store:
    """Where the bucket is: the public one, or another of the same layout behind ``endpoint``."""

    bucket: str = "sevir"
    endpoint: str | None = None
    stall_seconds: float = 30.0

    def connect(self) -> Any:
        """Return an anonymous ``s3fs.S3FileSystem`` that leaves retries to the caller.

        Raises:
            ConfigError: s3fs is not installed.
        """
        try:
            import s3fs
        except ImportError as error:
            raise ConfigError("downloads need s3fs: pip install -c constraints.txt -e '.[data]'") from error
        filesystem = s3fs.S3FileSystem(
            anon=True,
            endpoint_url=self.endpoint,
            config_kwargs={
                "read_timeout": self.stall_seconds,
                "connect_timeout": self.stall_seconds,
                "retries": {"max_attempts": 1},
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        filesystem.retries = 1
        return filesystem


def list_objects(
    filesystem: Any, bucket: str, *, image_type: str = "vil", years: Collection[int] | None = None
) -> list[RemoteObject]:
    """Return the catalog and the HDF5 files of an image type, of all years or the given ones.

    Raises:
        DownloadError: the bucket cannot be listed, or has nothing of that kind or of one of the years.
    """
    prefix = f"{bucket}/data/{image_type}"
    try:
        found = filesystem.find(prefix, detail=True)
        catalog = filesystem.info(f"{bucket}/{CATALOG}")
    except Exception as error:  # botocore, aiohttp and s3fs each have errors of their own for the same thing
        raise DownloadError(f"s3://{prefix} cannot be listed: {error or type(error).__name__}") from error
    objects = {int(key.split("/")[-2]): [] for key in found if key.endswith(".h5")}
    for key, about in sorted(found.items()):
        if key.endswith(".h5"):
            objects[int(key.split("/")[-2])].append(_remote(key, about))
    absent = sorted(set(years or ()) - set(objects))
    if not objects or absent:
        wanted = f"year {absent[0]}" if absent else "files"
        raise DownloadError(f"s3://{prefix} has no {wanted}; it has the years {sorted(objects)}")
    chosen = [remote for year in sorted(objects) if not years or year in years for remote in objects[year]]
    return [_remote(f"{bucket}/{CATALOG}", catalog), *chosen]


def _remote(key: str, about: Any) -> RemoteObject:
    return RemoteObject(key, int(about["size"]), str(about["ETag"]).strip('"'))


def require_space(objects: Sequence[RemoteObject], root: Path) -> int:
    """Return the bytes that are still to come; refuse if they do not fit on the disk of ``root``.

    Raises:
        DownloadError: with what is needed and what is free.
    """
    missing = sum(remote.size - fetched(remote, place(remote, root)) for remote in objects)
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if missing and missing + _SPARE_BYTES > free:
        raise DownloadError(
            f"{missing / 1e9:.1f} GB are to come and a spare 1.1 GB stays free, but {root} has {free / 1e9:.1f} GB "
            "free; choose years, or another disk"
        )
    return missing


def place(remote: RemoteObject, root: Path) -> Path:
    """Return the file of an object below ``root``: the bucket's own tree."""
    return root.joinpath(*remote.key.split("/")[1:])


def download(
    store: Store,
    root: Path,
    *,
    image_type: str = "vil",
    years: Collection[int] | None = None,
    patience: RetryPolicy | None = None,
    started: Callable[[int], Callable[[int], None]] | None = None,
) -> list[RemoteObject]:
    """Fetch what is not there yet; return all objects.

    ``started`` is told the bytes to come and returns what is told of progress.

    Raises:
        DownloadError: something cannot be fetched whole; all that was fetched stays.
    """
    filesystem = store.connect()
    objects = list_objects(filesystem, store.bucket, image_type=image_type, years=years)
    missing = require_space(objects, root)
    progress = started(missing) if started else lambda _bytes: None
    for remote in objects:
        into = place(remote, root)
        if stands(remote, into):
            continue
        verified = _fetch_newest(filesystem, remote, into, patience or RetryPolicy(), progress)
        if not verified:
            logger.warning("%s: uploaded in parts of unknown size, so its size alone is verified", into)
        if into.suffix == ".h5":
            _require_hdf5(into)
    return objects


def _fetch_newest(
    filesystem: Any, remote: RemoteObject, into: Path, patience: RetryPolicy, progress: Callable[[int], None]
) -> bool:
    """Fetch an object; begin again with its newest version if it changes meanwhile."""
    for restart in range(_RESTARTS):
        try:
            return fetch(filesystem, remote, into, patience=patience, progress=progress)
        except ObjectChangedError as error:
            if restart + 1 == _RESTARTS:
                raise
            logger.warning("%s: from the beginning", error)
            try:
                remote = _remote(remote.key, filesystem.info(remote.key))
            except FileNotFoundError:
                raise error from None
    raise AssertionError


def _require_hdf5(path: Path) -> None:
    try:
        with h5py.File(path, "r"):
            pass
    except OSError as error:
        path.unlink()
        raise DownloadError(f"{path.name} is no whole HDF5 file on the server: {error}") from error
