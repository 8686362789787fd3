"""``simcast leaderboard``: results of several evaluations set side by side."""

from pathlib import Path
from typing import Annotated

import typer


def leaderboard(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Score files, folders of them (--out of `simcast evaluate`) or runs of `simcast pipeline`.",
            show_default=False,
        ),
    ],
    by: Annotated[str, typer.Option(help="The score that orders the rows.")] = "csi/mean",
    csv: Annotated[Path | None, typer.Option(help="Write all rows and scores there as well.")] = None,
) -> None:
    """Set forecasts side by side: one table for each data set, set of windows and protocol.

    Example: simcast leaderboard scores-a scores-b runs/sevir --by csi_pool16/mean --csv board.csv
    """
    from simcast_hpc.report import print_leaderboard

    print_leaderboard(results, by=by, csv_path=csv)
