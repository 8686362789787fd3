"""Byte ranges of S3 objects, read through s3fs."""

from dataclasses import dataclass
from typing import Any

from .object_transfer import ObjectChangedError, Piece, RemoteObject


@dataclass(frozen=True)
class S3Reader:
    """A ``RangeReader`` of S3 objects.

    Attributes:
        filesystem: an ``s3fs.S3FileSystem``; its read timeout ends a stalled connection.
    """

    filesystem: Any

    def read(self, remote: RemoteObject, begin: int, end: int) -> Piece:
        """Return a range of bytes; raise any connection failure of the libraries as ConnectionError."""
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError
        from s3fs.utils import FileExpired

        try:
            with self.filesystem.open(remote.key, "rb", cache_type="none") as stored:
                if stored.details["ETag"].strip('"') != remote.etag or stored.size != remote.size:
                    raise ObjectChangedError(
                        f"{remote.key} changed on the server: from {remote.size} bytes and ETag {remote.etag} to "
                        f"{stored.size} and {stored.details['ETag']}"
                    )
                stored.seek(begin)
                return Piece(stored.read(end - begin), remote.size, remote.etag)
        except FileExpired as error:
            raise ObjectChangedError(f"{remote.key} changed on the server during the download") from error
        except FileNotFoundError as error:
            raise ObjectChangedError(f"{remote.key} no longer exists on the server") from error
        except (OSError, TimeoutError, ClientError, BotoCoreError) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        except IndexError as error:  # s3fs 2026.9 expects an error number in a timeout
            if not isinstance(error.__context__, TimeoutError):
                raise
            raise ConnectionError("the connection timed out") from error
