"""``simcast leaderboard``: tables that compare the results of several evaluations."""

from pathlib import Path
from typing import Annotated

import typer


def leaderboard(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Score files, output folders of simcast evaluate or run directories of simcast pipeline.",
            show_default=False,
        ),
    ],
    by: Annotated[
        str, typer.Option(help="Score by which the rows are sorted, such as csi/mean or csi_pool16/mean.")
    ] = "csi/mean",
    csv: Annotated[
        Path | None,
        typer.Option(help="CSV file to write with all rows and scores (default: none).", show_default=False),
    ] = None,
) -> None:
    """Compare forecasts in one table per data set, set of windows and protocol.

    Reads score files of simcast evaluate and simcast pipeline, and prints the tables.

    Example: simcast leaderboard scores-a scores-b runs/sevir --by csi_pool16/mean --csv board.csv
    """
    from simcast_hpc.report import print_leaderboard

    print_leaderboard(results, by=by, csv_path=csv)
