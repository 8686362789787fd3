"""Inventory of a source, without writing anything (``simcast data import --dry-run``)."""

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.distributed.ranks import Ranks
from simcast_hpc.radar.radar_frame import RadarGrid

from .choose_events import choose_events, window_counts, window_warnings
from .frame_selection import FrameSeries, Selection, find_series, select_frames
from .import_recipe import ImportOptions, Recipe, derive_recipe
from .inventory import inventory
from .scan_frames import FrameOptions, scan
from .scan_table import ScanTable
from .source_defaults import default_name, with_license
from .source_files import SourceFile, is_remote, list_source

logger = logging.getLogger(__name__)


def frame_options(options: ImportOptions) -> FrameOptions:
    """Return how frames are read.

    Raises:
        ConfigError: ``--importer`` is invalid.
    """
    importer = None
    if options.importer is not None:
        from simcast_hpc.radar.importer_choice import parse_importer

        importer = parse_importer([options.importer])
    return FrameOptions(options.unit or "mm/h", options.rule, options.relation, options.tile, options.dataset, importer)


def list_files(
    sources: Sequence[str],
    pattern: str,
    since: datetime | None,
    until: datetime | None,
    ranks: Ranks,
    reading: FrameOptions,
    *,
    target: Path | None = None,
) -> list[SourceFile]:
    """Return the files of the sources, listed by rank 0, without those in ``target``; a collective.

    Raises:
        ConfigError: a source does not exist or contains no matching file.
    """
    files: list[SourceFile] = []
    with ranks.together():
        if ranks.is_first:
            is_composite = reading.importer is not None and reading.importer.is_composite
            files = list_source(sources, pattern=pattern, since=since, until=until, is_composite=is_composite)
            if target is not None and not is_composite:
                files = outside(files, target, sources)
    return ranks.broadcast(files)


def outside(files: list[SourceFile], target: Path, sources: Sequence[str]) -> list[SourceFile]:
    """Return the files that are not in ``target``, which may be below a source.

    Raises:
        ConfigError: there are others only in ``target``.
    """
    folder = f"{target.resolve()}/"
    kept = [file for file in files if is_remote(file.path) or not str(Path(file.path).resolve()).startswith(folder)]
    if not kept:
        raise ConfigError(f"SOURCE {sources[0]} contains no file but those of TARGET {target}")
    return kept


def reference_grid(options: ImportOptions) -> RadarGrid | None:
    """Return the grid of the file ``--grid-of``.

    Raises:
        DataError: the file cannot be read.
    """
    return None if options.grid_of is None else frame_options(options).read(options.grid_of)[0].grid


def take_inventory(
    sources: Sequence[str],
    options: ImportOptions,
    ranks: Ranks,
    *,
    pattern: str = "*",
    since: datetime | None = None,
    until: datetime | None = None,
) -> dict[str, Any]:
    """Return the inventory of the sources as a JSON object, on every rank; nothing is written.

    Raises:
        ConfigError: an option or source is invalid.
        DataError: no frame can be read.
    """
    with ranks.together():
        options.check()
    reading = frame_options(options)
    files = list_files(sources, pattern, since, until, ranks, reading)
    table = within(scan(files, reading, ranks, cache=None, since=since, until=until), since, until)
    with ranks.together():
        series = find_series(table, step_minutes=options.step, grid=reference_grid(options), any_interval=True)
        selection: Selection = select_frames(table, series)
        content = inventory(table, series, selection, options.rule)
        content["warnings"] = _warnings(options, content)
        if len(selection.used):
            recipe, _ = new_recipe(table, series, selection, options, sources)
            choice = choose_events(table, selection, recipe, recipe.spec(covered_percent=None, source=""))
            content["windows"] = window_counts(choice)
            content["warnings"] += window_warnings(content["windows"], recipe.frames)
    return content


def new_recipe(
    table: ScanTable, series: FrameSeries, selection: Selection, options: ImportOptions, sources: Sequence[str]
) -> tuple[Recipe, list[str]]:
    """Return the recipe of a new import and notes about what was derived.

    Raises:
        ConfigError: an option contradicts the data.
        DataError: no frame is usable.
    """
    used = selection.used
    if not len(used):
        raise DataError("no frame of the source is usable; --dry-run lists the reasons")
    if len(used) > 1 and not (np.diff(selection.slot[used]) == 1).any():
        raise ConfigError(
            f"no two consecutive frames are {series.step_minutes:g} minutes apart, but at least "
            f"{np.diff(selection.slot[used]).min() * series.step_minutes:g}; change --step or omit it"
        )
    kinds = np.bincount(table.kind[used], minlength=len(table.kinds))
    times = (selection.slot[used] * series.step).tolist()
    return derive_recipe(
        with_license(options, sources, table), series, table.kinds[int(kinds.argmax())], times,
        default_name=default_name(sources[0]),
    )  # fmt: skip


def within(table: ScanTable, since: datetime | None, until: datetime | None) -> ScanTable:
    """Return the frames from ``since`` to ``until``, both inclusive.

    Raises:
        DataError: there are frames, and all are outside.
    """
    from .scan_frames import microseconds

    if since is None and until is None:
        return table
    keep = (table.time >= (-(2**63) if since is None else microseconds(since))) & (
        table.time <= (2**63 - 1 if until is None else microseconds(until))
    )
    count = max(len(table), sum(table.totals))
    if count and not keep.any():
        raise DataError(f"none of {count} frames is in the time from {since} to {until}")
    return table.take(keep.nonzero()[0])


def _warnings(options: ImportOptions, content: dict[str, Any]) -> list[str]:
    """Return what an import of this source would reject."""
    found = []
    step = content["step_minutes"]
    longest = max((float(key) for key in content["intervals_minutes"] if key != "instantaneous"), default=0.0)
    if longest > 1.5 * step and not options.any_interval:
        found.append(
            f"accumulations over {longest:g} minutes every {step:g} minutes: an import rejects intervals of more than "
            "1.5 steps without --any-interval"
        )
    return found
