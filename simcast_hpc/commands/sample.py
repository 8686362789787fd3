"""``simcast sample``: ensembles of a data set's windows, drawn by a finished run of the stage ``diffusion``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from simcast_hpc.config import ConfigError, SamplingConfig, from_mapping

from .options import sampling_change

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Lay key=value over the run's section sampling: --set steps=6", show_default=False),
]


def sample(
    run: Annotated[Path, typer.Argument(help="A finished run folder of the stage diffusion.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The HDF5 file to write.")] = Path("ensemble.h5"),
    root: Annotated[Path | None, typer.Option(help="Data root; by default that of the run.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    windows: Annotated[int | None, typer.Option(help="The first windows of the split alone.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Windows whose forecasts are made together.", min=1)] = 1,
    single: Annotated[bool, typer.Option("--single", help="Write float32 in place of float16.")] = False,
    changes: Changes = None,
) -> None:
    """Draw members, their mean, probabilities of exceeding each threshold and the probability-matched mean.

    --set changes how it is drawn, without the section's name: --set steps=6 --set sampler=dpm_solver --set members=20.
    Started by a launcher, the ranks share the members.

    Example: simcast sample runs/sevir/diffusion --out ensemble.h5 --windows 100 --set members=20
    """
    from simcast_hpc.data.open_windows import open_windows, target_spec
    from simcast_hpc.distributed.process_group import join_ranks, local_device
    from simcast_hpc.distributed.ranks import find_rank
    from simcast_hpc.inference.ensemble import load_ensemble
    from simcast_hpc.inference.ensemble_files import draw_ensembles
    from simcast_hpc.monitoring.log import set_up_logging

    rank_info = find_rank(os.environ)
    set_up_logging(rank_info.rank)
    if split not in ("train", "val", "test", "all"):
        raise ConfigError(f"--split {split!r} is unknown; it is train, val, test or all")
    ensemble = load_ensemble(run)
    given = dict(sampling_change(word) for word in changes or ())
    sampling = from_mapping(SamplingConfig, {**ensemble.sampling.model_dump(mode="json"), **given}, where="--set")
    ensemble = ensemble.sampled_by(sampling)
    data = ensemble.config.data if root is None else ensemble.config.data.model_copy(update={"root": root})
    frames = ensemble.config.sequence.frames_in + ensemble.config.sequence.frames_out
    source = open_windows(data, split=split, frames=frames)
    ranks = join_ranks(timeout_minutes=ensemble.config.engine.timeout_minutes)
    try:
        draw_ensembles(
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
    if ranks.is_first:
        print(f"ensembles stand in {out}")
