"""``simcast data inspect``: list problems and statistics of raw or prepared data."""

import json
from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.data.data_errors import KINDS

from .options import Dataset, read_dataset_option


def inspect(
    root: Annotated[Path, typer.Argument(help="Folder of prepared shards or of raw data.", show_default=False)],
    dataset: Dataset = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Kind of problem to ignore in the exit status (repeatable): {', '.join(KINDS)}.", show_default=False
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder to write PNG pictures of a few events to (default: none).", show_default=False),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file to write the rain statistics of all windows of prepared data to (default: none).",
            show_default=False,
        ),
    ] = None,
    table_frames: Annotated[int, typer.Option(min=1, help="Frames per window of --table.")] = 18,
    report: Annotated[
        Path | None,
        typer.Option(
            help="HTML page to write: climatology, coverage and clutter, changes in time, persistence (default: none).",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="With --report, folder to write its charts to as PNG files (default: none).", show_default=False
        ),
    ] = None,
) -> None:
    """Inspect all files of a data set, and print its problems and statistics.

    The exit status is 1 if there is a problem whose kind is not given with --allow.

    Example: simcast data inspect /data/sevir --allow repeated-id --pictures look

    Example: simcast data inspect /data/mine --report look.html
    """
    from simcast_hpc.config import ConfigError

    allowed = set(allow or ())
    unknown = sorted(allowed - set(KINDS))
    if unknown:
        raise ConfigError(f"--allow {unknown[0]} is unknown; choose from {', '.join(KINDS)}")
    if figures is not None and report is None:
        raise ConfigError(f"--figures {figures} requires --report")
    if report is not None and report.is_dir():
        raise ConfigError(f"--report {report} is a folder; give the name of the page, for example {report}/look.html")
    from simcast_hpc.config.names import file_stem
    from simcast_hpc.data.climatology import Climatology, summarize
    from simcast_hpc.data.inspection import inspect
    from simcast_hpc.data.window_table import write_window_table
    from simcast_hpc.monitoring.log import set_up_logging
    from simcast_hpc.report.event_strip import draw_event

    # 1. Inspect in one pass
    set_up_logging(0)
    spec = read_dataset_option(dataset, root)
    if table is not None:
        rows = write_window_table(root, table, frames=table_frames, step_minutes=spec.step_minutes)
        print(f"{table}: {rows} windows of {table_frames} frames")
    climatology = None if report is None else Climatology(spec)
    visit = None if climatology is None else climatology.add
    inspection = inspect(spec, root, visit=visit)
    for name, fact in inspection.facts.items():
        print(f"{name}: {json.dumps(fact)}")
    # 2. Pictures and report
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for sample in inspection.samples:
            path = pictures / f"{file_stem(sample.event)}.png"
            draw_event(spec, sample.event, sample.codes).savefig(path)
            print(path)
    if report is not None and climatology is not None and climatology.events:
        from simcast_hpc.report.climatology_page import write_climatology_page

        written = write_climatology_page(
            report, spec, root, summarize(climatology), facts=inspection.facts, problems=inspection.problems,
            figures=figures,
        )  # fmt: skip
        for path in written:
            print(path)
    # 3. Problems
    for problem in inspection.problems:
        print(f"{'allowed ' if problem.kind in allowed else ''}{problem}")
    count = sum(problem.kind not in allowed for problem in inspection.problems)
    print(f"{root}: {count} problems, {len(inspection.problems) - count} allowed")
    if count:
        raise typer.Exit(1)
