"""``simcast data import``: scan a source, choose events, write shards, index, description and manifest.

The target contains ``import.json`` (recipe, inventory, files that are not used), ``scan.h5`` (all frames), so that an
append reads new files only, and ``open.h5`` (frames of the last slot, if it is incomplete).
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simcast_hpc.config import ConfigError, DataError, from_mapping
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.data.hdf5_guard import HDF5_ERRORS
from simcast_hpc.data.shards.shard_format import CLAIM, column, day_shard_name
from simcast_hpc.distributed.ranks import Ranks
from simcast_hpc.monitoring.progress import Progress
from simcast_hpc.radar.radar_frame import RadarGrid
from simcast_hpc.storage.atomic_files import remove, sweep, write_text
from simcast_hpc.storage.directory_lock import DirectoryLock, hold_directory, is_lock_file

from .choose_events import EventChoice, choose_events, window_counts, window_warnings
from .day_shards import day_name, slot_keys, write_day
from .frame_selection import Selection, find_series, select_frames
from .import_files import IMPORT, STAGED, Finished, finish, open_frames, staged_name
from .import_recipe import ImportOptions, Recipe, require_same
from .import_source import frame_options, list_files, new_recipe, reference_grid, within
from .inventory import COVERED_PERCENT, inventory, valid_counts
from .scan_frames import PARTS, FrameOptions, clear_parts, scan
from .scan_table import ScanTable, read_table
from .source_files import SourceFile, is_remote
from .wet_rule import parse_wet_rule

logger = logging.getLogger(__name__)
_FINISHED_CLAIM = "data import\n"


@dataclass(frozen=True)
class Earlier:
    """A complete import, to which files are added."""

    content: dict[str, Any]
    recipe: Recipe
    table: ScanTable


def import_source(
    sources: Sequence[str],
    target: Path,
    options: ImportOptions,
    ranks: Ranks,
    *,
    pattern: str = "*",
    since: datetime | None = None,
    until: datetime | None = None,
    append: bool = False,
) -> dict[str, Any]:
    """Import radar files into the folder ``target`` and return the content of ``import.json``, on every rank.

    An interrupted import is resumed.

    Args:
        sources: see :func:`~.source_files.list_source`.
        target: folder to write.
        options: options of the import; of an append those that differ from the import are rejected.
        ranks: that share the files.
        pattern: names of files in folders.
        since: first time.
        until: last time.
        append: whether to add to a complete import.

    Raises:
        ConfigError: an option is invalid, or another process writes to the folder.
        DataError: no frame is usable, or the folder contains something else.
        SimcastError: another rank failed.
    """
    with ranks.together():
        options.check()
    with hold_directory(target, "data import", field="TARGET", ranks=ranks) as lock:
        # 1. State of the target
        earlier: Earlier | None = None
        with ranks.together():
            request = _request(sources, pattern, since, until, frame_options(options))
            if ranks.is_first:
                _claim(target, request, append=append)
        with ranks.together():
            earlier = _earlier(target)
            if earlier is not None:
                require_same(options, earlier.recipe)
                _require_same_grid(reference_grid(options), earlier.recipe)
                options = _with_recipe(options, earlier.recipe)
        # 2. Scan
        reading = frame_options(options)
        files = list_files(sources, pattern, since, until, ranks, reading, target=target)
        with ranks.together():
            _require_append(target, earlier, files, append=append)
        scanned = scan(files, reading, ranks, cache=target, since=since, until=until)
        with ranks.together():
            table = _frames_of_import(scanned, files, earlier, since, until)
            recipe, notes = _recipe(table, options, earlier, sources)
            selection = select_frames(table, recipe.series)
            spec = _spec(table, recipe)
            choice = choose_events(table, selection, recipe, spec)
            if not len(choice.begin):
                raise DataError(_no_event(choice, recipe))
        # 3. Shards
        keys = _write_shards(target, table, choice, recipe, spec, reading, earlier, ranks, lock)
        # 4. Index, description and manifest
        content: dict[str, Any] = {}
        with ranks.together():
            if ranks.is_first:
                lock.check()
                content = _content(sources, table, selection, choice, recipe, spec, notes, keys, earlier)
                finish(target, Finished(content, table, selection, choice, recipe, spec, reading))
                clear_parts(target)
                remove(target / STAGED)
                write_text(target / CLAIM, _FINISHED_CLAIM)
        return ranks.broadcast(content)


def _request(
    sources: Sequence[str], pattern: str, since: datetime | None, until: datetime | None, reading: FrameOptions
) -> str:
    return json.dumps([list(sources), pattern, str(since), str(until), reading.text])


def _claim(target: Path, request: str, *, append: bool) -> None:
    """Record what the folder is used for.

    Raises:
        DataError: it contains something else, or nothing to append to.
    """
    claim, text = target / CLAIM, f"data import {request}\n"
    is_import = claim.is_file() and claim.read_text(encoding="utf-8").startswith("data import")
    sweep(target)
    if not is_import and any(not is_lock_file(path) for path in target.iterdir()):
        raise DataError(f"TARGET {target} is not empty and contains no import; choose another folder")
    if append and not (target / IMPORT).is_file():
        raise DataError(f"TARGET {target} contains no complete import to append to; omit --append")
    if is_import and claim.read_text(encoding="utf-8") not in (text, _FINISHED_CLAIM):
        logger.warning("the unfinished import of another source or with other options in %s is discarded", target)
        remove(target / PARTS)
        remove(target / STAGED)
    write_text(claim, text)


def _earlier(target: Path) -> Earlier | None:
    """Return the import that the folder contains.

    Raises:
        DataError: it is damaged.
    """
    path = target / IMPORT
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recipe = from_mapping(Recipe, content["recipe"], where=str(path))
        table = read_table(target / "scan.h5", options=content["reading"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}; import into another folder") from error
    if table is None:
        raise DataError(f"{target / 'scan.h5'} does not match {path}; import into another folder")
    return Earlier(content, recipe, table)


def _require_append(target: Path, earlier: Earlier | None, files: list[SourceFile], *, append: bool) -> None:
    if earlier is None or append:
        return
    new = sorted({file.path for file in files if not file.is_store} - {file.path for file in earlier.table.files})
    if new:
        raise DataError(
            f"TARGET {target} contains a complete import, and SOURCE has {len(new)} new files, such as {new[0]}; "
            "--append adds them"
        )


def _require_same_grid(grid: RadarGrid | None, recipe: Recipe) -> None:
    if grid is not None and (difference := grid.difference(recipe.series.grid)):
        raise ConfigError(f"--grid-of differs from the import to append to: {difference}; omit it")


def _with_recipe(options: ImportOptions, recipe: Recipe) -> ImportOptions:
    """Return the options of reading of an earlier import."""
    return ImportOptions(
        wet=recipe.wet, tile=recipe.tile, unit=recipe.prefer, dataset=recipe.dataset, importer=recipe.importer,
        z_r=recipe.z_r, any_interval=recipe.any_interval, name=recipe.name,
    )  # fmt: skip


def _frames_of_import(
    scanned: ScanTable, files: list[SourceFile], earlier: Earlier | None, since: datetime | None, until: datetime | None
) -> ScanTable:
    """Return the frames of the files and of the earlier import; the cache may contain others."""
    listed = set(files)
    stores = tuple(f"{file.path}::" for file in files if file.is_store)
    listed |= {file for file in scanned.files if stores and file.path.startswith(stores)}
    new = within(scanned.of_files(listed & set(scanned.files)), since, until)
    if earlier is None:
        return new
    kept = earlier.table.of_files(set(earlier.table.files) & set(scanned.files))
    counts = scanned.valid
    merged = ScanTable.merge([kept, new, scanned.take(np.zeros(0, int))], counts=False)
    merged = merged.of_files(set(kept.files) | set(new.files))
    merged.valid = [counts[scanned.grids.index(grid)] for grid in merged.grids]
    return merged


def _recipe(
    table: ScanTable, options: ImportOptions, earlier: Earlier | None, sources: Sequence[str]
) -> tuple[Recipe, list[str]]:
    if earlier is not None:
        return earlier.recipe, list(earlier.content["notes"])
    series = find_series(
        table, step_minutes=options.step, grid=reference_grid(options), any_interval=options.any_interval
    )
    recipe, notes = new_recipe(table, series, select_frames(table, series), options, sources)
    for note in notes:
        logger.info("%s", note)
    return recipe, notes


def _spec(table: ScanTable, recipe: Recipe) -> DatasetSpec:
    counts = valid_counts(table, recipe.series)
    frames = int(
        np.isin(table.grid, [k for k, grid in enumerate(table.grids) if not grid.difference(recipe.series.grid)]).sum()
    )
    percent = round(100 * float((counts > COVERED_PERCENT / 100 * frames).mean()), 4)
    return recipe.spec(covered_percent=percent, source="simcast data import; see import.json in the data root")


def _write_shards(
    target: Path,
    table: ScanTable,
    choice: EventChoice,
    recipe: Recipe,
    spec: DatasetSpec,
    reading: FrameOptions,
    earlier: Earlier | None,
    ranks: Ranks,
    lock: DirectoryLock,
) -> dict[str, dict[str, str]]:
    """Write the shards of new and changed days and return the keys of the slots of all days; a collective."""
    known: dict[str, dict[str, str]] = {} if earlier is None else earlier.content["slots"]
    keys: dict[str, dict[str, str]] = {}
    with ranks.together():
        (target / STAGED).mkdir(exist_ok=True)
        stored = open_frames(target)
        # 1. What is to be written
        work: list[tuple[int, str, set[int]]] = []
        for day in choice.days:
            name, of_slots = day_name(day), slot_keys(day, table, choice, recipe)
            keys[name] = {str(begin // 1_000_000): key for begin, key in of_slots.items()}
            present = (target / day_shard_name(name)).is_file()
            if keys[name] == known.get(name) and present:
                continue
            same = {begin for begin, key in of_slots.items() if known.get(name, {}).get(str(begin // 1_000_000)) == key}
            work.append((day, name, same if present and _is_shard_of(target, name, known.get(name, {})) else set()))
        # 2. Days of this rank
        own = work[ranks.rank :: ranks.size]
        progress = Progress(logger, "write", sum(len(keys[name]) for _, name, _ in own) * recipe.frames, unit="frames")
        for day, name, same in own:
            lock.check()
            path = target / STAGED / staged_name(name, keys[name])
            if not path.is_file():
                write_day(
                    path, day, table, choice, recipe, spec, reading, stored=stored,
                    previous=target / day_shard_name(name), unchanged=same, advance=progress.advance,
                )  # fmt: skip
    ranks.gather(None)
    return keys


def _is_shard_of(target: Path, name: str, slots: dict[str, str]) -> bool:
    """Return whether a shard has exactly these slots; a killed append may have replaced it."""
    try:
        with h5py.File(target / day_shard_name(name), "r") as file:
            return set(np.unique(column(file, "begin")).tolist()) == {int(begin) for begin in slots}
    except HDF5_ERRORS:
        return False


def _no_event(choice: EventChoice, recipe: Recipe) -> str:
    return (
        f"no event is kept: {choice.counts['candidates']} events of {recipe.event_minutes:g} minutes have valid "
        f"pixels, {choice.counts['wet']} of them are wet ({recipe.wet or 'no rule'}), and "
        f"{choice.counts['between_splits']} are in the gap between splits; change --wet, --keep-dry, --event or "
        "--gap-days"
    )


def _content(
    sources: Sequence[str],
    table: ScanTable,
    selection: Selection,
    choice: EventChoice,
    recipe: Recipe,
    spec: DatasetSpec,
    notes: list[str],
    keys: dict[str, dict[str, str]],
    earlier: Earlier | None,
) -> dict[str, Any]:
    """Return the content of ``import.json``."""
    rule = ImportOptions(unit=recipe.prefer).rule if recipe.wet is None else parse_wet_rule(recipe.wet)
    options = FrameOptions(
        recipe.prefer, rule, recipe.relation, recipe.tile, recipe.dataset,
        frame_options(ImportOptions(importer=recipe.importer)).importer,
    )  # fmt: skip
    past = [] if earlier is None else earlier.content["sources"]
    return {
        "format": 1,
        "dataset": spec.name,
        "sources": list(dict.fromkeys([*past, *(source if is_remote(source) else str(Path(source).absolute())
                                                for source in sources)])),
        "recipe": json.loads(recipe.model_dump_json()),
        "padding": dict(zip(("south", "east"), recipe.padding, strict=True)),
        "notes": notes,
        "events": choice.counts,
        "windows": (windows := window_counts(choice)),
        "warnings": window_warnings(windows, recipe.frames),
        "inventory": inventory(table, recipe.series, selection, rule),
        "reading": options.text,
        "slots": keys,
    }  # fmt: skip
