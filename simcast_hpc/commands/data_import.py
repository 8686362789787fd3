"""``simcast data import``: convert folders of radar files to training data, on one process or under ``mpiexec``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from simcast_hpc.config import ConfigError

from .options import Quiet


def import_(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... TARGET",
            help="SOURCE: a folder, a file, a Zarr store (also s3://), or a path with directives of strftime. TARGET: "
            "the folder to write; set data.root to it.",
            show_default=False,
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print an inventory of SOURCE; TARGET is not written.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the inventory or summary as JSON.")] = False,
    append: Annotated[
        bool, typer.Option("--append", help="Add SOURCE to a complete import, with its options and splits.")
    ] = False,
    pattern: Annotated[
        str,
        typer.Option(
            help="Names of files in folders, for example '*.h5'; with / the path below SOURCE, also with directives of "
            "strftime."
        ),
    ] = "*",
    since: Annotated[
        str | None, typer.Option("--from", help="First time in UTC, for example 2019-01-01.", show_default=False)
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--to", help="Last time in UTC, inclusive; a date includes its day.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the data set (default: the last folder with a letter).", show_default=False),
    ] = None,
    step: Annotated[
        float | None, typer.Option(help="Minutes between frames (default: from the data).", show_default=False)
    ] = None,
    event: Annotated[
        str | None,
        typer.Option(
            help="Length of an event, for example 4h; it divides a day (default: 48 frames, or for a short archive at "
            "least 24).",
            show_default=False,
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Height and width of tiles in pixels (default: the whole domain).", show_default=False),
    ] = None,
    wet: Annotated[
        str | None,
        typer.Option(
            help='Keep events in which a frame is wet, for example "1 mm/h on 2 %" of the valid pixels (default: keep '
            "all).",
            show_default=False,
        ),
    ] = None,
    keep_dry: Annotated[
        str | None,
        typer.Option(help="Share of the other events that are kept, for example 5% (default: 0).", show_default=False),
    ] = None,
    importance: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Keep an event with the probability MIN + WEIGHT x its mean rate in mm/h, for example 0.01 0.1.",
            metavar="MIN WEIGHT",
            show_default=False,
        ),
    ] = None,
    max_missing: Annotated[
        str | None,
        typer.Option(
            help="Drop events with a larger share of missing pixels, for example 50% (default: only entirely missing "
            "ones).",
            show_default=False,
        ),
    ] = None,
    train_until: Annotated[
        str | None,
        typer.Option(
            help="Last time of the split train in UTC (default: 70, 15 and 15 % of the days).", show_default=False
        ),
    ] = None,
    val_until: Annotated[
        str | None, typer.Option(help="Last time of the split val; later events are test data.", show_default=False)
    ] = None,
    gap_days: Annotated[
        float | None,
        typer.Option(help="Days after a split that belong to no split (default: 1 from 20 days on).", min=0,
                     show_default=False),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="Preferred unit of files with several quantities: mm/h (default), dBZ or kg/m^2.",
                     show_default=False),
    ] = None,
    dataset: Annotated[
        int | None, typer.Option(help="Number N of datasetN that is read from ODIM files.", min=1, show_default=False)
    ] = None,
    importer: Annotated[
        str | None,
        typer.Option(help="Reader and its options, for example 'pysteps:dwd_radolan product_name=RY' (default: by the "
                     "content of the files).", show_default=False),
    ] = None,
    z_r: Annotated[
        tuple[float, float] | None,
        typer.Option("--z-r", help="A and B of the Z-R relation Z = A R^B (default: 200 1.6).", metavar="A B",
                     show_default=False),
    ] = None,
    any_interval: Annotated[
        bool, typer.Option("--any-interval", help="Accept accumulations over more than 1.5 steps.")
    ] = False,
    grid_of: Annotated[
        str | None,
        typer.Option(help="Radar file with the reference grid (default: the grid of most frames).", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the choice of events (default: 0).", show_default=False)
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="Compression: lz4 (default) or zstd (smaller).", show_default=False)
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="License of the data (default: by the files).", show_default=False)
    ] = None,
    attribution: Annotated[
        str | None, typer.Option(help="Text that the license requires to be shown (default: by the "
                                           "files).", show_default=False)
    ] = None,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Convert radar files to training data: shards, index and a data set description.

    Frames are aligned to the cadence, and files that do not belong to the series are listed in TARGET/import.json.
    Under mpiexec or srun the files are distributed over the processes, with identical bytes for any number of
    processes. Run again, the command resumes an interrupted import.

    Example: simcast data import /archive/radar /data/mine --dry-run

    Example: simcast data import '/archive/%Y/%m/%d/RAD_%Y%m%d%H%M.h5' /data/mine --wet "1 mm/h on 2 %" --keep-dry 5%
    """
    import json
    import os

    from simcast_hpc.data.ingest.import_recipe import ImportOptions
    from simcast_hpc.data.ingest.import_source import take_inventory
    from simcast_hpc.data.ingest.import_target import import_source
    from simcast_hpc.data.ingest.inventory import inventory_text
    from simcast_hpc.data.ingest.time_patterns import parse_limit
    from simcast_hpc.distributed.ranks import find_rank, join_mpi_ranks
    from simcast_hpc.monitoring.log import set_up_logging

    if len(places) < 2:
        raise ConfigError("give at least one SOURCE and the TARGET folder")
    if unit not in (None, "mm/h", "dBZ", "kg/m^2"):
        raise ConfigError(f"--unit {unit!r} is invalid; choose mm/h, dBZ or kg/m^2")
    set_up_logging(find_rank(os.environ).rank, quiet=quiet)
    *sources, target = places
    options = ImportOptions(
        name=name, step=step, event=event, wet=wet, keep_dry=keep_dry, importance=importance, max_missing=max_missing,
        tile=tile, train_until=train_until, val_until=val_until, gap_days=gap_days, seed=seed, codec=codec,
        license=license_, attribution=attribution, unit=unit, dataset=dataset, importer=importer, z_r=z_r,
        any_interval=any_interval, grid_of=grid_of,
    )  # fmt: skip
    limits: dict[str, Any] = {
        "pattern": pattern,
        "since": None if since is None else parse_limit(since, option="--from", is_end=False),
        "until": None if until is None else parse_limit(until, option="--to", is_end=True),
    }
    ranks = join_mpi_ranks()
    if dry_run:
        content = take_inventory(sources, options, ranks, **limits)
        if ranks.is_first:
            lines = [inventory_text(content), *_window_lines(content)]
            print(json.dumps(content, indent=1) if as_json else "\n".join(lines))
        return
    content = import_source(sources, Path(target), options, ranks, append=append, **limits)
    if ranks.is_first:
        print(json.dumps(content, indent=1) if as_json else _summary(Path(target), content))


def _summary(target: Path, content: dict[str, Any]) -> str:
    """Return what was imported, as text for a terminal."""
    from simcast_hpc.data.ingest.inventory import inventory_text

    counts = content["events"]
    lines = [
        inventory_text(content["inventory"]),
        *content["notes"],
        f"{target}: {counts['kept']} of {counts['candidates']} events in {len(content['slots'])} shards, "
        f"{counts['kept_dry']} of them dry; {counts['wet']} are wet, {counts['between_splits']} are between splits",
        f"description {target / 'dataset.yaml'}",
        *_window_lines(content),
    ]
    return "\n".join(lines)


def _window_lines(content: dict[str, Any]) -> list[str]:
    """Return the number of windows of each split, and the warnings."""
    from simcast_hpc.data.ingest.default_splits import WINDOW_FRAMES

    lines = []
    if "windows" in content:
        counts = ", ".join(f"{count} {split}" for split, count in content["windows"].items())
        lines.append(f"windows        of {WINDOW_FRAMES} frames: {counts}")
    return lines + [f"warning        {warning}" for warning in content["warnings"]]
