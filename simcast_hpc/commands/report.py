"""``simcast report``: the page of a pipeline run."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[Path, typer.Argument(help="Run folder of a finished `simcast pipeline`.", show_default=False)],
) -> None:
    """Write the page of a finished pipeline again, from its results alone, and print its tables."""
    from simcast_hpc.report import print_tables, write_page

    page = write_page(run_dir)
    print_tables(run_dir)
    print(page)
