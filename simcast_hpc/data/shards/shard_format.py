"""File format of prepared data: names, manifest and index."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import h5py
import hdf5plugin
import numpy as np
from pydantic import Field, PositiveInt, ValidationError, model_validator

from simcast_hpc.config import DataError, StrictModel
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.hdf5_guard import HDF5_ERRORS, check_hdf5, read_column
from simcast_hpc.storage.hdf5_target import atomic_hdf5
from simcast_hpc.storage.run_directory import file_hash

FORMAT = 1
MANIFEST, INDEX, CLAIM = "manifest.json", "index.h5", "claim.txt"
SPLITS = ("", "train", "val", "test")
CODECS = ("lz4", "zstd")
_CHUNK_BYTES = 2**16
_NUMBERS = re.compile(r"\[\s*(-?\d[\d.e+-]*(?:,\s*-?\d[\d.e+-]*)*)\s*\]")
_DAY_SHARD = re.compile(r"shard-\d{8}\.h5")


class ShardFile(StrictModel):
    """A shard: file name, size, SHA-256 and number of events."""

    name: str
    bytes: PositiveInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    events: PositiveInt


class Manifest(StrictModel):
    """Content of ``manifest.json``; ``description`` is :func:`stored_description_hash` of the dataset."""

    format: int
    dataset: str
    description: str
    made_of: str
    codec: str
    grid: tuple[PositiveInt, PositiveInt]
    frames_per_event: PositiveInt
    chunk_frames: PositiveInt
    whole_frames: bool
    shards: tuple[ShardFile, ...]
    index: ShardFile
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    statistics: dict[str, Any]
    license: str = ""
    attribution: str = ""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Accept only the names that are written: they become paths, also where shards are copied to.

        A preparation numbers its shards; those of an import are named after ascending UTC days.
        """
        expected = [INDEX, *(shard_name(number) for number in range(len(self.shards)))]
        names = [shard.name for shard in self.shards]
        if self.index.name == INDEX and all(map(_DAY_SHARD.fullmatch, names)) and names == sorted(set(names)):
            return self
        for file, name in zip((self.index, *self.shards), expected, strict=True):
            if file.name != name:
                raise ValueError(f"the file name {file.name!r} is invalid; the name at this place is {name!r}")
        return self

    @property
    def hash(self) -> str:
        """SHA-256 of the manifest's text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def text(self) -> str:
        """The manifest as text; fields that are newer than the format are omitted where empty."""
        newer = {name for name in ("license", "attribution") if not getattr(self, name)}
        return json.dumps(self.model_dump(mode="json", exclude=newer), indent=1) + "\n"

    @property
    def file_text(self) -> str:
        """The same content for a file, with lists of numbers, such as histograms, on one line."""
        return _NUMBERS.sub(lambda match: f"[{', '.join(match[1].replace(',', ' ').split())}]", self.text)


@dataclass(frozen=True)
class Index:
    """One row per event, as arrays: ids (bytes), times and first frames in seconds since 1970 UTC, and location.

    ``gaps`` is bool ``[E, T]``, true where a frame is entirely missing, or None if no frame is.
    ``shard`` is -1 for a skipped event, which counts where an id must be unique and is never read.
    ``file`` is an index into ``files`` of the manifest, ``file_index`` the position in that file.

    Only an import of radar files has the last four columns: the upper left pixel of the tile, whether the event is wet,
    and the probability with which it was kept.
    """

    id: np.ndarray
    time: np.ndarray
    begin: np.ndarray
    split: np.ndarray
    percent_missing: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    file: np.ndarray
    file_index: np.ndarray
    sha256: np.ndarray
    gaps: np.ndarray | None
    tile_y: np.ndarray | None = None
    tile_x: np.ndarray | None = None
    is_wet: np.ndarray | None = None
    probability: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.id)


def stored_description_hash(spec: DatasetSpec) -> str:
    """Return a hash of encoding, layout, cadence and splits of a description, without descriptive fields."""
    excluded = {"name", "title", "quantity", "license", "citation", "source", "grid", "thresholds", "z_r"}
    return hashlib.sha256(spec.hashed_json(exclude=excluded).encode()).hexdigest()[:16]


def require_description(spec: DatasetSpec, root: Path, manifest: Manifest) -> None:
    """Check that the data was prepared with this description.

    Raises:
        DataError: it was prepared with another one; names both.
    """
    if manifest.description != stored_description_hash(spec):
        raise DataError(
            f"{root / MANIFEST}: prepared as {manifest.dataset}, with a description that differs from {spec.name} now "
            "(encoding, cadence, splits or layout); set the right data.dataset (--dataset), or prepare again"
        )


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.h5"


def day_shard_name(day: str) -> str:
    """Return the file name of the shard of a UTC day ``YYYYMMDD``."""
    return f"shard-{day}.h5"


def chunk_frames(frames: int, grid: tuple[int, int]) -> int:
    """Return the frames per chunk: one, or as many of a small grid as fit in 64 KiB."""
    return min(frames, max(1, _CHUNK_BYTES // (grid[0] * grid[1])))


def compression(codec: str) -> dict[str, Any]:
    """Return the h5py options of a codec.

    Raises:
        DataError: the codec is unknown.
    """
    if codec == "lz4":
        return dict(hdf5plugin.LZ4())
    if codec == "zstd":
        return dict(hdf5plugin.Zstd(clevel=3))
    raise DataError(f"{codec!r} is not a codec; choose {' or '.join(CODECS)}")


_LARGEST_MANIFEST = 2**26


def write_index(path: Path, index: Index) -> None:
    """Write the index atomically."""
    with atomic_hdf5(path, libver="v110") as file:
        for name, values in vars(index).items():
            if values is not None:
                file.create_dataset(name, data=np.packbits(values, axis=1) if name == "gaps" else values)


def read_index(root: Path, manifest: Manifest) -> Index:
    """Return the index that belongs to a manifest.

    Raises:
        DataError: it is missing, does not match the manifest, or its columns are not those of an index.
    """
    path = root / INDEX
    if not path.is_file() or file_hash(path) != manifest.index.sha256:
        raise DataError(
            f"{path} {'does not match its manifest' if path.is_file() else 'is missing'}; prepare {root} again"
        )
    try:
        with h5py.File(path, "r") as file:
            check_hdf5(file, path, reads_whole=False)
            columns: dict[str, Any] = {str(name): column(file, str(name)) for name in file}
    except DataError:
        raise
    except (*HDF5_ERRORS, AssertionError) as error:
        raise DataError(f"{path} is damaged: {str(error) or 'it contains groups'}; prepare {root} again") from error
    if problem := _index_problem(columns, manifest):
        raise DataError(f"{path} is not an index of {MANIFEST}: {problem}; prepare {root} again")
    if "gaps" in columns:
        columns["gaps"] = np.unpackbits(columns["gaps"], axis=1, count=manifest.frames_per_event).astype(bool)
    columns.setdefault("gaps", None)
    return Index(**columns)


# Kinds of the types and number of axes of the columns.
_COLUMNS = {
    "id": ("S", 1), "time": ("iu", 1), "begin": ("iu", 1), "split": ("iu", 1), "percent_missing": ("f", 1),
    "shard": ("iu", 1), "row": ("iu", 1), "file": ("iu", 1), "file_index": ("iu", 1), "sha256": ("u", 2),
}  # fmt: skip
_OPTIONAL = {"gaps": ("u", 2), "tile_y": ("iu", 1), "tile_x": ("iu", 1), "is_wet": ("u", 1), "probability": ("f", 1)}


def _index_problem(columns: dict[str, Any], manifest: Manifest) -> str | None:
    """Return why columns are not an index of this manifest; None if they are."""
    if missing := _COLUMNS.keys() - columns.keys():
        return f"column {min(missing)} is missing"
    if unknown := columns.keys() - _COLUMNS.keys() - _OPTIONAL.keys():
        return f"column {min(unknown)!r} is unknown"
    events = columns["id"].shape[:1]
    for name, values in columns.items():
        kinds, axes = (_COLUMNS | _OPTIONAL)[name]
        if values.dtype.kind not in kinds or values.ndim != axes or values.shape[:1] != events:
            return f"column {name} is {values.dtype} {list(values.shape)} for {events[0] if events else 0} events"
    if "gaps" in columns and columns["gaps"].shape[1] != -(-manifest.frames_per_event // 8):
        return f"column gaps has {columns['gaps'].shape[1]} bytes for {manifest.frames_per_event} frames"
    try:
        b"\n".join(columns["id"]).decode()
    except UnicodeDecodeError:
        return "column id is not UTF-8 text"
    stored = columns["shard"] >= 0
    sizes = np.array([shard.events for shard in manifest.shards], np.int64)
    limits = {"shard": len(sizes), "split": len(SPLITS), "file": len(manifest.files)}
    for name, limit in limits.items():
        values = columns[name][stored] if name == "shard" else columns[name]
        if np.any((values < 0) | (values >= limit)):
            return f"column {name} has numbers outside 0 .. {limit - 1}"
    rows = columns["row"][stored]
    if np.any((rows < 0) | (rows >= sizes[columns["shard"][stored]])):
        return "column row has numbers that exceed the events of a shard"
    return None


def column(file: h5py.File, name: str) -> np.ndarray:
    """Return a dataset of an HDF5 file as an array."""
    stored = file[name]
    assert isinstance(stored, h5py.Dataset)
    return read_column(stored, numbers=False)


def read_manifest(root: Path) -> Manifest:
    """Return the manifest of prepared data.

    Raises:
        DataError: there is none (the preparation is unfinished), or it is not a manifest of this format.
    """
    path = root / MANIFEST
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise DataError(f"{path} is larger than {_LARGEST_MANIFEST >> 20} MiB, the largest valid size")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; copy or prepare the data again") from error
    except OSError as error:
        unfinished = (root / CLAIM).is_file()
        raise DataError(
            f"{root} contains prepared data without {MANIFEST}: the preparation is unfinished; run it again to resume"
            if unfinished
            else f"{path} cannot be read: {error.strerror}"
        ) from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path} is not a manifest of format {FORMAT}: {place + ': ' if place else ''}{first['msg']}"
        ) from error
    if manifest.format != FORMAT:
        raise DataError(f"{path} has format {manifest.format}; the supported format is {FORMAT}: prepare again")
    return manifest


def is_prepared(root: Path) -> bool:
    """Return whether a folder contains prepared data, finished or not."""
    return (root / MANIFEST).is_file() or (root / CLAIM).is_file()


def check_present(root: Path, manifest: Manifest, shards: Iterable[int]) -> None:
    """Check that these shards exist with the size in the manifest.

    Raises:
        DataError: one does not; names it.
    """
    for number in shards:
        shard = manifest.shards[number]
        path = root / shard.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"shard {path} with {shard.events} events is missing; copy or prepare it again") from error
        if size != shard.bytes:
            raise DataError(
                f"shard {path} has {size} bytes, not {shard.bytes} as in {MANIFEST}; copy or prepare it again"
            )
