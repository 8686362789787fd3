"""``simcast calibrate``: fit the quantile mapping of a run on its validation split."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .options import Quiet


def calibrate(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run directory of a finished teacher, student, direct or diffusion stage.", show_default=False
        ),
    ],
    root: Annotated[
        Path | None, typer.Option(help="Data folder (default: data.root of the run).", show_default=False)
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            help="Number of validation windows, evenly spaced over the split (default: all).",
            min=1,
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Windows per forward pass.", min=1)] = 8,
    quiet: Quiet = False,
) -> None:
    """Fit a quantile mapping, which gives forecasts the distribution of observed pixel values at each lead time.

    Reads the run and the windows of the split val, never those of train or test. Writes quantile_mapping.npz to the run
    directory, for the option --postprocess quantile-mapping of simcast predict and simcast evaluate. Under a launcher
    the windows are distributed over the ranks.

    Example: simcast calibrate runs/sevir/student
    """
    from simcast_hpc.distributed.process_group import join_ranks
    from simcast_hpc.distributed.rank_devices import local_device
    from simcast_hpc.distributed.ranks import find_rank
    from simcast_hpc.inference.calibration import calibrate_run
    from simcast_hpc.inference.trained_ensemble import load_run
    from simcast_hpc.monitoring.log import set_up_logging

    rank_info = find_rank(os.environ)
    set_up_logging(rank_info.rank, quiet=quiet)
    ranks = join_ranks(timeout_minutes=240)
    try:
        model = load_run(run, device=local_device(rank_info))
        data = model.config.data if root is None else model.config.data.model_copy(update={"root": root})
        path = calibrate_run(run, model, data, windows=windows, batch_size=batch, ranks=ranks)
    finally:
        ranks.leave()
    if ranks.is_first and not quiet:
        print(f"quantile mapping: {path}")
