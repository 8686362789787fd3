"""``simcast report``: the HTML report of a pipeline run, or one that compares several runs and evaluations."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Run directory of a finished pipeline; or several run directories, output folders of simcast evaluate "
            "and score files, for a report that compares them.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder (default: folder report in the given folder; for several results, folder comparison).",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Also write the example frames of one run (inputs, observation, forecasts) to this PNG.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the HTML report from stored results.

    Reads stored scores and metrics; no score is recomputed. Writes index.html, one self-contained file that opens
    in any browser without a network.

    Example: simcast report runs/a runs/b scores --out comparison
    """
    from simcast_hpc.config import ConfigError
    from simcast_hpc.report import print_tables, write_comparison, write_picture, write_report

    first = results[0]
    is_run = len(results) == 1 and (first / "config.yaml").is_file()
    if picture is not None:
        if not is_run:
            raise ConfigError("--picture requires the run directory of one pipeline")
        write_picture(first, picture)
    if is_run and out is None:
        page = write_report(first)
        print_tables(first)
    else:
        folder = first if first.is_dir() else first.parent
        page = write_comparison(results, out or (folder / "report" if len(results) == 1 else Path("comparison")))
    print(page)
