"""What the commands of ``simcast model`` look at: one training run, the grid of its frames, and its network."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from simcast_hpc.config import FORECASTING, AutoencoderConfig, ConfigError, PipelineConfig, TrainConfig, read_config

if TYPE_CHECKING:
    from simcast_hpc.planning.flops import Subject

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Asked(NamedTuple):
    """One training run to look at.

    ``grid`` is that of its frames; ``autoencoder`` are the sizes of the network that a diffusion would stand on;
    ``prefix`` stands before its keys in the configuration that was read, as ``stages.student.`` in a pipeline's.
    """

    run: TrainConfig
    grid: tuple[int, int]
    autoencoder: AutoencoderConfig
    prefix: str


def read_run(path: Path, overrides: Sequence[str], stage: str | None) -> Asked:
    """Return the training run of a configuration, or of a pipeline's ``stage``, by default its last.

    The grid is that of the model or of its data's description.

    Raises:
        ConfigError: the configuration cannot be used, or has no such stage.
    """
    from simcast_hpc.data.open_windows import frame_grid
    from simcast_hpc.models import grid_of

    try:
        run, size, prefix = read_config(TrainConfig, path, overrides), None, ""
        autoencoder = _autoencoder_under(run)
    except ConfigError as error:
        if "simcast pipeline" not in str(error):
            raise
        pipeline = read_config(PipelineConfig, path, overrides)
        chosen = stage or list(pipeline.stages)[-1]
        if chosen not in pipeline.stages:
            raise ConfigError(f"--stage {chosen} is none of this pipeline: {', '.join(pipeline.stages)}") from None
        run, size = pipeline.train_config(chosen), pipeline.synthesis and pipeline.synthesis.size
        within = "autoencoder" in pipeline.stages and run.stage == "diffusion"
        beside = pipeline.train_config("autoencoder") if within else run
        autoencoder = beside.autoencoder.model if within else _autoencoder_under(run)
        prefix = f"stages.{chosen}."
    stated = grid_of(run.model) if run.stage in FORECASTING else None
    return Asked(run, stated or ((size, size) if size else frame_grid(run.data)), autoencoder, prefix)


def _autoencoder_under(run: TrainConfig) -> AutoencoderConfig:
    """Return the sizes of ``diffusion.autoencoder``'s network, or the default's where that run does not stand yet."""
    from simcast_hpc.storage.run_directory import RunDirectory

    if run.stage == "autoencoder":
        return run.autoencoder.model
    if run.diffusion.autoencoder is None or not (found := RunDirectory(run.diffusion.autoencoder).config).is_file():
        return AutoencoderConfig()
    return read_config(TrainConfig, found).autoencoder.model


def subject_of(run: TrainConfig, grid: tuple[int, int], autoencoder: AutoencoderConfig) -> "Subject":
    """Return the network that a run trains.

    Raises:
        ValueError: the sizes do not fit one another.
    """
    from simcast_hpc.models import fitted_to
    from simcast_hpc.planning import flops as account

    if run.stage == "autoencoder":
        return account.autoencoder(autoencoder, grid=grid)
    frames = {"frames_in": run.sequence.frames_in, "frames_out": run.frames_out}
    if run.stage in FORECASTING:
        return account.forecaster(fitted_to(run.model, grid), grid=grid, dtype=DTYPES[run.engine.precision], **frames)
    reduction = autoencoder.reduction
    if grid[0] % reduction or grid[1] % reduction:
        raise ValueError(f"frames of {grid[0]} x {grid[1]} do not fall into latents {reduction} times smaller")
    latent = (grid[0] // reduction, grid[1] // reduction)
    return account.denoiser(run.diffusion.casformer, channels=autoencoder.latent_channels, grid=latent, **frames)
