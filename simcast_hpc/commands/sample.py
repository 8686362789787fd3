"""``simcast sample``: sample ensembles of a data set's windows with a trained ensemble model."""

import os
from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import ConfigError

from .options import Quiet, override_sampling

_SPLITS = ("train", "val", "test", "all")


def sample(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run directory of a finished diffusion stage, or of a network with noise channels.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="HDF5 file to write.")] = Path("ensemble.h5"),
    root: Annotated[
        Path | None, typer.Option(help="Data folder (default: data.root of the run).", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data: train, val, test or all.")] = "test",
    windows: Annotated[
        int | None,
        typer.Option(help="Number of windows, starting with the first (default: all).", min=1, show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Windows that are sampled together; memory grows with it.", min=1)] = 1,
    single: Annotated[bool, typer.Option("--single", help="Store fields in float32 instead of float16.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Override a field of the section sampling, for example steps=6 (repeatable).",
            metavar="KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Sample ensemble members and store them with their mean, exceedance probabilities and probability-matched mean.

    Reads the run, for diffusion also its autoencoder and student, and the windows of one split. Writes one HDF5 file,
    which simcast evaluate scores. Under a launcher windows and members are distributed over the ranks.

    Example: simcast sample runs/sevir/diffusion --out ensemble.h5 --windows 100 --set members=20
    """
    if split not in _SPLITS:
        raise ConfigError(f"--split {split!r} is invalid; choose train, val, test or all")
    from simcast_hpc.data.open_windows import open_windows, target_spec
    from simcast_hpc.data.shared_reads import read_together
    from simcast_hpc.distributed.process_group import join_ranks
    from simcast_hpc.distributed.rank_devices import local_device
    from simcast_hpc.distributed.ranks import find_rank
    from simcast_hpc.inference.ensemble_files import write_ensembles
    from simcast_hpc.inference.trained_ensemble import load_any_ensemble
    from simcast_hpc.monitoring.log import set_up_logging

    rank_info = find_rank(os.environ)
    set_up_logging(rank_info.rank, quiet=quiet)
    ensemble = load_any_ensemble(run, change_sampling=lambda own: override_sampling(own, changes or ()))
    data, sequence = ensemble.config.data, ensemble.config.sequence
    data = data if root is None else data.model_copy(update={"root": root})
    frames = sequence.frames_in + sequence.frames_out
    ranks = join_ranks(timeout_minutes=ensemble.config.engine.timeout_minutes)
    try:
        source = read_together(lambda: open_windows(data, split=split, frames=frames), ranks)
        write_ensembles(
            ensemble.on(local_device(rank_info)),
            source,
            out,
            spec=target_spec(data),
            windows=windows or len(source),
            batch=batch,
            single=single,
            ranks=ranks,
        )
    finally:
        ranks.leave()
    if ranks.is_first and not quiet:
        print(f"ensembles: {out}")
