"""Tags of a GeoTIFF by one set of names: those of GDAL, of ODIM, and items of XML within a tag (FMI)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from simcast_hpc.config import DataError

_TEXT_TAGS = ("standard_name", "long_name", "quantity", "netcdf_varname", "description", "variable")
_NESTED = "gdal_metadata"
_LONGEST_XML = 1 << 20


def band_tags(file: Any, band: int, path: Path) -> dict[str, str]:
    """Return the tags of a band, see :func:`all_tags`.

    Raises:
        DataError: XML within a tag is invalid.
    """
    return _normal(file.tags(band), path)


def all_tags(file: Any, band: int, path: Path) -> dict[str, str]:
    """Return the tags of file and band, those of the band first, with lower-case names and underscores.

    A tag ``GDAL_METADATA`` that contains XML is replaced by its items, and an attribute ``unit`` of the item
    ``Quantity`` becomes the tag ``unit``.

    Raises:
        DataError: XML within a tag is invalid.
    """
    return {**_normal(file.tags(), path), **band_tags(file, band, path)}


def odim_tag(tags: Mapping[str, str], name: str) -> str:
    """Return an attribute of ``what``: of the data group of ODIM tags first, last of a tag of this name alone."""
    for prefix in ("dataset1_data1_what_", "dataset1_what_", "what_"):
        if prefix + name in tags:
            return tags[prefix + name]
    return tags.get(name, "") if name in ("gain", "offset", "nodata", "undetect") else ""


def description(tags: Mapping[str, str], own: str | None) -> str:
    """Return what the tags, and ``own``, the description of the band, state about the quantity."""
    words = [tags.get(name, "") for name in _TEXT_TAGS] + [odim_tag(tags, "quantity"), own or ""]
    return " ".join(dict.fromkeys(word for word in words if word))


def _normal(tags: Mapping[str, Any], path: Path) -> dict[str, str]:
    named = {_name(key): str(value) for key, value in tags.items()}
    text = named.get(_NESTED, "").strip()
    return {**named, **_items(text, path)} if text.startswith("<") else named


def _name(key: str) -> str:
    return re.sub(r"[\s-]+", "_", key.strip().lower())


def _items(text: str, path: Path) -> dict[str, str]:
    if len(text) > _LONGEST_XML or "<!" in text:  # entities expand without bound
        raise DataError(f"{path}: the tag GDAL_METADATA is too long or contains a document type definition")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: the tag GDAL_METADATA is not XML: {error}") from error
    items: dict[str, str] = {}
    for item in root.iter("Item"):
        name = _name(item.get("name", ""))
        items[name] = (item.text or "").strip()
        if name == "quantity" and item.get("unit"):
            items["unit"] = str(item.get("unit")).strip()
    return items
