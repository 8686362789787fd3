"""``simcast report``: the page of a pipeline run, or of several runs and evaluations side by side."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="The run folder of a finished `simcast pipeline`; or several of them, folders that `simcast evaluate "
            "--out` wrote, and score files, for one page that compares them.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the page; by default `report` in the folder given, or `comparison` for several."),
    ] = None,
) -> None:
    """Write the page of a finished pipeline again, from its results alone; or a page that compares several.

    The page is one file without anything from outside: copy it, mail it, open it in any browser.

    Example: simcast report runs/a runs/b scores --out comparison
    """
    from simcast_hpc.report import print_tables, write_comparison, write_report

    only = results[0]
    if len(results) == 1 and out is None and (only / "config.yaml").is_file():
        page = write_report(only)
        print_tables(only)
    else:
        beside = only if only.is_dir() else only.parent
        page = write_comparison(results, out or (beside / "report" if len(results) == 1 else Path("comparison")))
    print(page)
