"""Download of SEVIR from its public bucket: the catalog and the files of one image type, of all or some years."""

import logging
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from simcast_hpc.config import ConfigError
from simcast_hpc.config.names import check_name
from simcast_hpc.data.archive_catalog import CATALOG
from simcast_hpc.storage.directory_lock import hold_directory

from .object_transfer import (
    DownloadError,
    ObjectChangedError,
    RemoteObject,
    RetryPolicy,
    download_object,
    downloaded_bytes,
    is_downloaded,
)
from .s3_transfer import S3Reader

logger = logging.getLogger(__name__)
_RESTARTS = 3
_SPARE_BYTES = 2**30


@dataclass(frozen=True)
class Store:
    """Location of the bucket: the public one, or another with the same layout at ``endpoint``."""

    bucket: str = "sevir"
    endpoint: str | None = None
    stall_seconds: float = 30.0

    def connect(self) -> Any:
        """Return an anonymous ``s3fs.S3FileSystem`` without retries of its own.

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
        DownloadError: the bucket cannot be listed, or has no file of the image type or of one of the years.
    """
    check_name(image_type, where="--image-type")
    prefix = f"{bucket}/data/{image_type}"
    try:
        keys = filesystem.find(prefix, detail=True)
        catalog = filesystem.info(f"{bucket}/{CATALOG}")
    except Exception as error:  # botocore, aiohttp and s3fs raise different errors
        raise DownloadError(f"s3://{prefix} cannot be listed: {error or type(error).__name__}") from error
    objects: dict[int, list[RemoteObject]] = {}
    for key, info in sorted(keys.items()):
        if key.endswith(".h5"):
            objects.setdefault(_year_of(key, prefix), []).append(_remote(key, info))
    _reject_equal_names([remote for part in objects.values() for remote in part])
    absent = sorted(set(years or ()) - set(objects))
    if not objects or absent:
        missing = f"year {absent[0]}" if absent else "files"
        raise DownloadError(f"s3://{prefix} has no {missing}; it has the years {sorted(objects)}")
    chosen = [remote for year in sorted(objects) if not years or year in years for remote in objects[year]]
    return [_remote(f"{bucket}/{CATALOG}", catalog), *chosen]


def _year_of(key: str, prefix: str) -> int:
    """Return the year in a key, which becomes a path below the root: ``<prefix>/<year>/<name>.h5``."""
    found = re.fullmatch(r"/([0-9]{4})/[A-Za-z0-9][A-Za-z0-9._-]*\.h5", key.removeprefix(prefix), re.ASCII)
    if found is None or not key.startswith(prefix):
        raise DownloadError(f"the bucket contains the key {key!r}, which is not {prefix}/YEAR/NAME.h5")
    return int(found[1])


def _reject_equal_names(objects: Sequence[RemoteObject]) -> None:
    """Raise an error if two keys are one file where file names have no case."""
    keys: dict[str, str] = {}
    for remote in objects:
        if (other := keys.setdefault(remote.key.casefold(), remote.key)) != remote.key:
            raise DownloadError(f"the bucket contains {other!r} and {remote.key!r}, which differ only in case")


def _remote(key: str, info: Any) -> RemoteObject:
    try:
        size, etag = int(info["size"]), str(info["ETag"]).strip('"')
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DownloadError(f"the bucket lists {key!r} without a size or ETag: {error!r}") from error
    if size < 0 or not etag.isprintable():
        raise DownloadError(f"the bucket lists {key!r} with size {size} and ETag {etag!r}")
    return RemoteObject(key, size, etag)


def require_space(objects: Sequence[RemoteObject], root: Path) -> int:
    """Return the number of bytes that remain to be downloaded.

    Raises:
        DownloadError: they do not fit on the disk of ``root``; gives the needed and the free space.
    """
    missing = sum((remote.size or 0) - downloaded_bytes(remote, local_path(remote, root)) for remote in objects)
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if missing and missing + _SPARE_BYTES > free:
        raise DownloadError(
            f"the download needs {missing / 1e9:.1f} GB and a reserve of 1.1 GB, but {root} has {free / 1e9:.1f} GB "
            "free; select years, or another disk"
        )
    return missing


def local_path(remote: RemoteObject, root: Path) -> Path:
    """Return the file of an object below ``root``, in the folders of the bucket."""
    return root.joinpath(*remote.key.split("/")[1:])


def download(
    store: Store,
    root: Path,
    *,
    image_type: str = "vil",
    years: Collection[int] | None = None,
    retry: RetryPolicy | None = None,
    on_start: Callable[[int], Callable[[int], None]] | None = None,
) -> list[RemoteObject]:
    """Download the objects that are missing; return all objects.

    ``on_start`` is called with the number of bytes to download and returns the progress callback.

    Raises:
        DownloadError: an object cannot be downloaded completely; all that was downloaded is kept.
    """
    filesystem = store.connect()
    objects = list_objects(filesystem, store.bucket, image_type=image_type, years=years)
    missing = require_space(objects, root)
    with hold_directory(root, "a download", field="ROOT") as lock:
        progress = on_start(missing) if on_start else lambda _bytes: None
        for remote in objects:
            lock.check()
            into = local_path(remote, root)
            if is_downloaded(remote, into):
                continue
            verified = _download_newest(filesystem, remote, into, retry or RetryPolicy(), progress)
            if not verified:
                logger.warning("%s: multipart upload of unknown part size, only the file size is verified", into)
            if into.suffix == ".h5":
                _require_hdf5(into)
    return objects


def _download_newest(
    filesystem: Any, remote: RemoteObject, into: Path, retry: RetryPolicy, progress: Callable[[int], None]
) -> bool:
    """Download an object; restart with its newest version if it changes during the download."""
    for restart in range(_RESTARTS):
        try:
            return download_object(S3Reader(filesystem), remote, into, retry=retry, progress=progress).verified
        except ObjectChangedError as error:
            if restart + 1 == _RESTARTS:
                raise
            logger.warning("%s; restarting", error)
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
        raise DownloadError(f"{path.name} is not a complete HDF5 file on the server: {error}") from error
