"""License of downloaded data: its file ``license.json``, and what a share-alike license requires."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from simcast_hpc.config import DataError
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.storage.atomic_files import write_json

LICENSE_FILE = "license.json"
_LONGEST_TEXT = 2000


@dataclass(frozen=True)
class DataLicense:
    """Terms under which data was obtained.

    Attributes:
        archive: name of the archive, as in ``simcast data download``.
        product: name of the product of the archive.
        license: SPDX identifier, such as ``CC-BY-4.0``, or the name of the terms if they have none.
        attribution: credit that the license requires.
        url: page of the terms.
        retrieved: day of the last download, ``YYYY-MM-DD``.
    """

    archive: str
    product: str
    license: str
    attribution: str
    url: str
    retrieved: str

    def write(self, folder: Path) -> Path:
        """Write ``license.json`` into ``folder``; return its path."""
        path = folder / LICENSE_FILE
        write_json(path, asdict(self))
        return path


def read_license(folder: Path) -> DataLicense | None:
    """Return the license in ``folder/license.json``, or None without such a file.

    Raises:
        DataError: the file is not a JSON object of texts with the fields ``license`` and ``attribution``.
    """
    path = folder / LICENSE_FILE
    if not path.is_file():
        return None
    content: Any = read_json_file(path, error=DataError, what="the license")
    if not isinstance(content, Mapping):
        raise DataError(f"{path} must contain a JSON object, not {type(content).__name__}")
    values = {field.name: content.get(field.name, "") for field in fields(DataLicense)}
    for name, value in values.items():
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
            raise DataError(f"{path}: {name} must be a text of at most {_LONGEST_TEXT} printable characters")
    for name in ("license", "attribution"):
        if not values[name].strip():
            raise DataError(f"{path}: {name} is missing")
    return DataLicense(**values)


def share_alike_notice(license_name: str) -> str:
    """Return what a share-alike license requires of published weights and fields; empty for other licenses."""
    words = license_name.upper().replace("_", "-").replace(" ", "-").split("-")
    if "SA" not in words and "SHARE" not in words and "SHAREALIKE" not in words:
        return ""
    return (
        f"{license_name} is a share-alike license: if you publish data, forecast fields or model weights that are "
        "adapted from this data, publish them under the same or a compatible license, and credit the source. "
        "Whether weights are adapted material is not settled; ask the provider before you choose other terms."
    )
