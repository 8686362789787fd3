"""Check of an HDF5 file from elsewhere before its content is read: nothing outside of the file, and plausible sizes.

HDF5 opens other files for external links, external storage and virtual datasets, so a file could copy any file of the
user into a forecast. A few kilobytes can also declare a dataset of terabytes.
"""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5t  # pyright: ignore[reportAttributeAccessIssue]

from simcast_hpc.config import DataError

from .hdf5_chunks import check_all, check_layout

MAX_OBJECTS = 50_000
# What h5py raises on damaged files, and TypeError for types that NumPy does not have.
HDF5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError)
# HDF5 reads these attributes of dimension scales into buffers of the right size, whatever the type in the file is.
_SCALE_ATTRIBUTES = {
    b"CLASS": h5t.STRING, b"DIMENSION_LABELS": h5t.STRING, b"DIMENSION_LIST": h5t.VLEN, b"REFERENCE_LIST": h5t.COMPOUND,
}  # fmt: skip
# No filter compresses radar fields more than this; deflate cannot exceed 1032.
_MAX_RATIO = 2000
_PLAUSIBLE_BYTES = 256 << 20
_MAX_TEXT = 1000


def check_hdf5(file: h5py.File, path: Path, *, reads_whole: bool = True) -> None:
    """Check all objects of an open file; each is visited once, also if links form a cycle.

    Args:
        file: the open file.
        path: named in messages.
        reads_whole: whether arrays are read as a whole, so that their size matters. If false, arrays of three or more
            axes are read one row at a time, and their size has no limit; :meth:`.OpenFiles.check_row` checks a row.

    Raises:
        DataError: the file links to another file or stores data in one, declares much more data than it contains, has
            chunks that expand beyond their size, contains too many objects, or attributes that make HDF5 write outside
            of its memory.
        HDF5_ERRORS: the file is damaged.
    """
    pending: list[tuple[str, h5g.GroupID]] = [("", h5g.open(file.id, b"/"))]
    visited: set[tuple[int, int]] = set()
    while pending:
        prefix, group = pending.pop()
        for link in list(group):
            name = f"{prefix}/{link.decode('utf-8', 'replace')}"
            kind = group.links.get_info(link).type
            if kind == h5l.TYPE_SOFT:  # within the file: all other objects are visited as well
                continue
            if kind != h5l.TYPE_HARD:
                raise DataError(f"{path}: {name} is a link to another file; the file must contain its data itself")
            found = h5o.open(group, link)
            info = h5o.get_info(found)
            if (info.fileno, info.addr) in visited:
                continue
            visited.add((info.fileno, info.addr))
            if len(visited) > MAX_OBJECTS:
                raise DataError(f"{path} contains more than {MAX_OBJECTS} objects; a radar file has a few hundred")
            if isinstance(found, h5d.DatasetID):
                _check_dataset(found, f"{path}: {name}", reads_whole=reads_whole)
            elif isinstance(found, h5g.GroupID):
                pending.append((name, found))


def _check_dataset(dataset: h5d.DatasetID, where: str, *, reads_whole: bool) -> None:
    """Check where a dataset is stored, its size, and its attributes of dimension scales."""
    properties = dataset.get_create_plist()
    layout = properties.get_layout()
    if layout == h5d.VIRTUAL or properties.get_external_count():
        raise DataError(f"{where} is stored in another file; the file must contain its data itself")
    stored, itemsize = dataset.get_storage_size(), dataset.get_type().get_size()
    shape = dataset.shape or ()  # None without a dataspace
    declared = math.prod(shape if reads_whole or len(shape) < 3 else shape[1:]) * itemsize
    if layout == h5d.CHUNKED:
        declared = max(declared, math.prod(properties.get_chunk()) * itemsize)
    if declared > max(_PLAUSIBLE_BYTES, _MAX_RATIO * stored):
        raise DataError(
            f"{where} declares {declared} bytes to read at once (shape {list(shape)}) and stores {stored}; it must "
            "store its data"
        )
    if layout == h5d.CHUNKED:
        check_layout(dataset, where, read_shape=shape if reads_whole or len(shape) < 3 else shape[1:])
        if reads_whole or len(shape) < 3:
            check_all(dataset, where)
    for name, kind in _SCALE_ATTRIBUTES.items():
        if h5a.exists(dataset, name):
            attribute = h5a.open(dataset, name)
            count = {b"CLASS": 1, b"REFERENCE_LIST": None}.get(name, len(shape))
            found = attribute.get_type().get_class(), math.prod(attribute.shape or ())
            if found[0] != kind or count not in (None, found[1]) or not _has_references(attribute.get_type()):
                raise DataError(f"{where} has an attribute {name.decode()} of the wrong type or size; it is damaged")


def _has_references(kind: h5t.TypeID) -> bool:
    """Return whether the type of an attribute, if it is a list, is one of references."""
    if isinstance(kind, h5t.TypeCompoundID):
        return kind.get_nmembers() == 2 and kind.get_member_class(0) == h5t.REFERENCE
    return kind.get_class() != h5t.VLEN or kind.get_super().get_class() == h5t.REFERENCE


def read_texts(dataset: h5py.Dataset) -> list[str]:
    """Return a dataset ``[N]`` of texts or integers as texts.

    Texts of variable length are read one at a time: all elements may refer to the same stored text, so that a small
    file would fill the memory.

    Raises:
        ValueError: it has another shape or type, or a text is long.
    """
    kind = dataset.dtype.kind
    if dataset.ndim != 1 or not (kind in "Siu" or h5py.check_string_dtype(dataset.dtype)):
        raise ValueError(f"{dataset.name} is {dataset.dtype} {dataset.shape}; it must be texts of shape (N,)")
    if kind in "iu":
        return [str(value) for value in dataset[:]]
    texts = []
    for value in dataset[:] if kind == "S" else map(dataset.__getitem__, range(len(dataset))):
        if len(value) > _MAX_TEXT:
            raise ValueError(f"{dataset.name} has a text of {len(value)} bytes; at most {_MAX_TEXT} are valid")
        texts.append(value.decode())
    return texts


def read_column(dataset: h5py.Dataset, *, numbers: bool = True) -> np.ndarray:
    """Return a dataset of numbers (or also texts of fixed length), whose size :func:`check_hdf5` has checked.

    Raises:
        ValueError: it has another type, or no axis.
    """
    if dataset.dtype.kind not in ("iufb" if numbers else "iufbS"):
        kinds = "numbers" if numbers else "numbers or texts of fixed length"
        raise ValueError(f"{dataset.name} is {dataset.dtype}; it must be {kinds}")
    return dataset[:]


def text_attribute(item: h5py.HLObject, name: str) -> str | None:
    """Return a scalar attribute as text, a description if it is an array, None if it is absent."""
    if name not in item.attrs:
        return None
    shape = item.attrs.get_id(name).shape
    if shape not in ((), (1,)):
        return f"an array of shape {shape}"
    value: Any = item.attrs[name]
    value = value[0] if shape else value
    return value.decode() if isinstance(value, bytes) else str(value)
