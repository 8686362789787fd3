"""Zarr stores in a folder, or in a bucket of an S3 service that is read anonymously.

A store in a folder may contain only regular files: a symbolic link could return any file as pixel values, and a pipe
would block the reader. This is checked for every object as it is read.
"""

import os
import re
import stat
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcast_hpc.config import ConfigError, DataError

if TYPE_CHECKING:
    from zarr.abc.store import Store

ENDPOINT_VARIABLE = "AWS_ENDPOINT_URL"
_SCHEME = re.compile(r"s3:/{1,2}(?=[^/])")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?")
_ENDPOINT = re.compile(r"https?://[\w.:\[\]-]+(/[\w./-]*)?")


def is_remote(path: Path) -> bool:
    """Return whether a path is the URL of a store, ``s3://BUCKET/STORE``, in which ``Path`` removes a slash."""
    return _SCHEME.match(str(path)) is not None


def is_zarr(path: Path) -> bool:
    """Return whether a path is a Zarr group (format 2 or 3), which is a folder, or the URL of one."""
    return is_remote(path) or any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def open_store(path: Path, endpoint_url: str = "") -> "Store":
    """Return the store of a folder or URL, for ``xarray`` and ``zarr``.

    Args:
        path: folder, or URL ``s3://BUCKET/STORE``.
        endpoint_url: of an S3 service; by default that of the environment variable ``AWS_ENDPOINT_URL``, or of AWS.

    Raises:
        ConfigError: the URL or the endpoint is invalid, or s3fs is not installed.
    """
    if is_remote(path):
        return _remote_store(path, endpoint_url)
    if endpoint_url:
        raise ConfigError(f"endpoint_url={endpoint_url!r} applies to s3:// stores, and {path} is a folder")
    return _folder_store_class()(path, read_only=True)


def _remote_store(path: Path, endpoint_url: str) -> "Store":
    endpoint = endpoint_url or os.environ.get(ENDPOINT_VARIABLE, "")
    address = _SCHEME.sub("", str(path))
    if not _BUCKET.fullmatch(address) or ".." in address.split("/"):
        raise ConfigError(f"{_url(path)} is not the URL of a store; expected s3://BUCKET/PATH/STORE.zarr")
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        raise ConfigError(f"endpoint_url={endpoint!r} is invalid; expected http(s)://HOST or http(s)://HOST:PORT")
    try:
        import s3fs
        from zarr.storage import FsspecStore
    except ImportError as error:
        raise ConfigError(
            f"{_url(path)} needs the package s3fs ({error}): pip install -c constraints.txt -e '.[data]'"
        ) from error
    settings: dict[str, Any] = {"endpoint_url": endpoint} if endpoint else {}
    system = s3fs.S3FileSystem(anon=True, asynchronous=True, skip_instance_cache=True, client_kwargs=settings)
    return FsspecStore(system, read_only=True, path=address)


def _url(path: Path) -> str:
    return _SCHEME.sub("s3://", str(path))


@cache
def _folder_store_class() -> Any:
    from zarr.storage import LocalStore

    class FolderStore(LocalStore):
        """A folder that returns only the content of regular files in it."""

        async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
            self._check(key)
            return await super().get(key, *arguments, **options)

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
            ranges = list(key_ranges)
            for key, _ in ranges:
                self._check(key)
            return await super().get_partial_values(prototype, ranges)

        def _check(self, key: str) -> None:
            place = self.root
            for part in Path(key).parts:
                place = place / part
                try:
                    mode = os.lstat(place).st_mode
                except OSError:  # an absent chunk is filled
                    return
                if stat.S_ISLNK(mode) or part == "..":
                    raise DataError(f"{self.root}: {part} is a symbolic link; all data must be in the store")
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise DataError(f"{self.root}: {part} is not a regular file; all data must be in the store")

    return FolderStore
