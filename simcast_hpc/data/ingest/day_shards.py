"""Second pass of an import: read the frames of chosen events again and write the shard of one UTC day."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.sampling_statistics import COLUMNS, EventStatistics, frame_histograms
from simcast_hpc.data.shards.shard_format import chunk_frames, column, compression
from simcast_hpc.radar import ModelEncoding, RadarFrame
from simcast_hpc.storage.hdf5_target import atomic_hdf5

from .choose_events import DAY, EventChoice, event_id
from .import_recipe import Recipe
from .scan_frames import FrameOptions, Task, microseconds, moment, read_ahead
from .scan_table import ScanTable
from .wet_rule import row_blocks

StoredFrames = Mapping[int, np.ndarray]
_FRAMES_AT_ONCE = 16  # of a store
_NOT_IN_FRAMES = {"license", "attribution", "name"}


def model_encoding(recipe: Recipe, spec: DatasetSpec) -> ModelEncoding:
    """Return the encoding of the frames, which is that of ``simcast predict``."""
    return ModelEncoding(
        spec, recipe.step_minutes, spec.grid.spacing_km, recipe.relation, any_spacing=True, any_interval=True,
        dataset=recipe.dataset,
    )  # fmt: skip


def day_name(day: int) -> str:
    """Return a day as ``YYYYMMDD``."""
    return f"{moment(day * DAY):%Y%m%d}"


def slot_keys(day: int, table: ScanTable, choice: EventChoice, recipe: Recipe) -> dict[int, str]:
    """Return for each slot of a day with events a hash of what it is made of, by its start in microseconds.

    It depends on the recipe, the chosen tiles, and size and time of change of the files.
    """
    events, slots = choice.of_day(day)
    text = recipe.model_dump_json(exclude=_NOT_IN_FRAMES | ({"side_multiple"} if recipe.side_multiple == 1 else set()))
    keys: dict[int, str] = {}
    for slot in slots:
        begin = int(choice.slots[slot])
        tiles = choice.tile[events[choice.begin[events] == begin]].tolist()
        if not tiles:
            continue
        frames = [
            None if row < 0 else (*_state(table, row), int(table.time[row])) for row in choice.frames[slot].tolist()
        ]
        keys[begin] = hashlib.sha256(repr((text, begin, tiles, frames)).encode()).hexdigest()[:16]
    return keys


def _state(table: ScanTable, row: int) -> tuple[int, int]:
    file = table.files[table.file[row]]
    return file.size, file.mtime_ns


def write_day(
    path: Path,
    day: int,
    table: ScanTable,
    choice: EventChoice,
    recipe: Recipe,
    spec: DatasetSpec,
    options: FrameOptions,
    *,
    stored: StoredFrames,
    previous: Path | None = None,
    unchanged: Collection[int] = (),
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write the shard of a day. Memory holds one frame and one chunk of each event of a slot.

    Args:
        path: shard to write.
        day: number of the day since 1970.
        table: all frames.
        choice: all events.
        recipe: of the import.
        spec: the dataset description.
        options: how frames are read.
        stored: encoded frames by time, used for files that no longer exist.
        previous: earlier shard of the day.
        unchanged: starts of the slots that are copied from ``previous``.
        advance: called after each frame.

    Raises:
        DataError: a file changed since it was scanned, or cannot be read.
        OSError: the disk is full; no shard of this name is created.
    """
    events, slots = choice.of_day(day)
    height, width = recipe.tile_shape
    count, frames, each = len(events), recipe.frames, chunk_frames(recipe.frames, recipe.tile_shape)
    encoding = model_encoding(recipe, spec)
    # 1. Columns of the index
    histograms = np.zeros((count, frames, MISSING_CODE + 1), np.uint32)
    checksums = [hashlib.sha256() for _ in events]
    corners = np.array([(choice.tiles[tile][0].start, choice.tiles[tile][1].start) for tile in choice.tile[events]])
    with atomic_hdf5(path, libver="v110") as file:
        codes = file.create_dataset(
            "codes", shape=(count, frames, height, width), dtype=np.uint8, chunks=(1, each, height, width),
            **compression(recipe.codec),
        )  # fmt: skip
        # 2. Frames, slot by slot; the order of writing decides the bytes, also of slots that are copied
        for slot in slots:
            rows = np.flatnonzero(choice.begin[events] == choice.slots[slot])
            if not len(rows):
                continue
            tiles = [choice.tiles[choice.tile[events[row]]] for row in rows]
            if previous is not None and int(choice.slots[slot]) in unchanged:
                images = _copies(previous, int(choice.slots[slot]), frames)
            else:
                images = _images(table, choice.frames[slot], options, encoding, stored, tiles, (height, width))
            buffer = np.full((len(rows), each, height, width), MISSING_CODE, np.uint8)
            for position, image in enumerate(images):
                place = position % each
                buffer[:, place] = MISSING_CODE if image is None else image
                for k, row in enumerate(rows):
                    checksums[row].update(buffer[k, place].data)
                    histograms[row, position] = frame_histograms(buffer[k, place])
                advance()
                if place == each - 1 or position == frames - 1:
                    for k, row in enumerate(rows):
                        codes[row, position - place : position + 1] = buffer[k, : place + 1]
        # 3. Statistics
        statistics = EventStatistics.of_histograms(spec, histograms)
        missing = histograms[..., MISSING_CODE] == height * width
        ids = [event_id(int(choice.begin[e]), choice.tiles[choice.tile[e]], recipe) for e in events]
        file["id"] = np.array([name.encode() for name in ids])
        file["begin"] = choice.begin[events] // 1_000_000
        file["split"], file["is_wet"] = choice.split[events], choice.is_wet[events].astype(np.uint8)
        file["probability"] = choice.probability[events]
        file["tile_y"], file["tile_x"] = corners[:, 0].astype(np.int32), corners[:, 1].astype(np.int32)
        file["sha256"] = np.array([np.frombuffer(one.digest(), np.uint8) for one in checksums])
        file["gaps"] = missing.astype(np.uint8)
        for name in COLUMNS:
            file[name] = getattr(statistics, name)
        file.create_dataset("histogram", data=histograms.sum(axis=1, dtype=np.uint32), compression="gzip")


def _images(
    table: ScanTable,
    rows: np.ndarray,
    options: FrameOptions,
    encoding: ModelEncoding,
    stored: StoredFrames,
    tiles: list[tuple[slice, slice]],
    shape: tuple[int, int],
) -> Iterator[np.ndarray | None]:
    """Yield the tiles of each nominal time of a slot, uint8 ``[tiles, H, W]``, None where the frame is missing.

    Rows and columns of ``shape`` that a tile lacks are missing pixels.
    """
    for image in frame_images(table, rows, options, encoding, stored):
        yield None if image is None else np.stack([padded(image[tile], shape, MISSING_CODE) for tile in tiles])


def padded(image: np.ndarray, shape: tuple[int, int], value: int) -> np.ndarray:
    """Return an image ``[H, W]`` with rows and columns of ``value`` at the south and east, of the given shape."""
    if image.shape == shape:
        return image
    result = np.full(shape, value, image.dtype)
    result[: image.shape[0], : image.shape[1]] = image
    return result


def _copies(shard: Path, begin: int, frames: int) -> Iterator[np.ndarray]:
    """Yield the tiles of each nominal time of a slot from an earlier shard."""
    with h5py.File(shard, "r") as file:
        rows = np.flatnonzero(column(file, "begin") == begin // 1_000_000)
        codes = file["codes"]
        assert isinstance(codes, h5py.Dataset)
        for position in range(frames):
            yield codes[rows[0] : rows[-1] + 1, position]


def frame_images(
    table: ScanTable, rows: np.ndarray, options: FrameOptions, encoding: ModelEncoding, stored: StoredFrames
) -> Iterator[np.ndarray | None]:
    """Yield the encoded frame of each row of the table, uint8 ``[H, W]``, None for row -1.

    Raises:
        DataError: a file changed since it was scanned, or cannot be read.
    """
    tasks: list[Task] = []
    # 1. Consecutive frames of one file are read together
    for row in rows[rows >= 0].tolist():
        file, time = table.files[table.file[row]], moment(int(table.time[row]))
        if int(table.time[row]) in stored and not file.is_store and not Path(file.path).exists():
            continue
        last = tasks[-1] if tasks else None
        if last is not None and last.file == file and len(last.times or ()) < _FRAMES_AT_ONCE:
            tasks[-1] = Task(file, (*(last.times or ()), time))
        else:
            tasks.append(Task(file, (time,)))
    reading = read_ahead(tasks, options)
    # 2. In the order of the slot
    images: dict[int, np.ndarray] = {}
    read: set[int] = set()
    for row in rows.tolist():
        if row < 0:
            yield None
            continue
        time = int(table.time[row])
        file = table.files[table.file[row]]
        if time in stored and not file.is_store and not Path(file.path).exists():
            yield stored[time]
            continue
        while time not in images:
            if time in read:
                raise AssertionError("a frame is read twice")
            task, found = next(reading)
            if isinstance(found, DataError):
                raise found
            wanted = {microseconds(one) for one in task.times or ()}
            for frame in found:
                key = microseconds(frame.time)
                if key in wanted:
                    _require_unchanged(table, rows, key, frame.grid, frame.unit)
                    images[key] = encode_rows(frame, encoding)
                    read.add(key)
            if not wanted <= read:
                raise DataError(
                    f"{task.file.path} no longer contains the frame of {moment(min(wanted - read))}; it changed since "
                    "it was scanned: run the import again"
                )
        yield images.pop(time)


def encode_rows(frame: RadarFrame, encoding: ModelEncoding) -> np.ndarray:
    """Return a frame in the unit of the encoding as uint8 ``[H, W]``: ``encode_frame`` in blocks of rows."""
    codes = np.empty(frame.grid.shape, np.uint8)
    for rows in row_blocks(len(codes)):
        codes[rows] = encoding.codes(encoding.to_linear(frame.values[rows]), 1)
    return codes


def _require_unchanged(table: ScanTable, rows: np.ndarray, time: int, grid: object, unit: str) -> None:
    row = next(row for row in rows.tolist() if row >= 0 and int(table.time[row]) == time)
    if table.grids[table.grid[row]] != grid or table.kinds[table.kind[row]].unit != unit:
        path = table.files[table.file[row]].path
        raise DataError(f"{path} changed since it was scanned; run the import again")
