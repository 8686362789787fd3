"""``simcast report``: the HTML report of a pipeline run, or one that compares several runs and evaluations."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Run directory of a finished pipeline; or several of them, output folders of simcast evaluate and "
            "score files, for a report that compares them.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report (default: `report` in the given folder, `comparison` for several).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the HTML report from stored results.

    The report is one self-contained file: it needs no network and opens in any browser.

    Example: simcast report runs/a runs/b scores --out comparison
    """
    from simcast_hpc.report import print_tables, write_comparison, write_report

    first = results[0]
    if len(results) == 1 and out is None and (first / "config.yaml").is_file():
        page = write_report(first)
        print_tables(first)
    else:
        folder = first if first.is_dir() else first.parent
        page = write_comparison(results, out or (folder / "report" if len(results) == 1 else Path("comparison")))
    print(page)
