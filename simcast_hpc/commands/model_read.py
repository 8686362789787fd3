"""The network that the commands of ``simcast model`` analyze: that of one stage of a configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from simcast_hpc.config import FORECASTING, AutoencoderConfig, ConfigError, PipelineConfig, TrainConfig, read_config

if TYPE_CHECKING:
    import torch

    from simcast_hpc.planning.flops import Network

_ADAM_STATES = 4


class ModelTarget(NamedTuple):
    """One training run to analyze.

    Attributes:
        run: its configuration.
        grid: height and width of its frames.
        autoencoder: sizes of the autoencoder whose latents a diffusion model is trained on.
        prefix: prefix of its keys in the file that was read, for example ``stages.student.`` in a pipeline.
    """

    run: TrainConfig
    grid: tuple[int, int]
    autoencoder: AutoencoderConfig
    prefix: str


def read_run(path: Path, overrides: Sequence[str], stage: str | None) -> ModelTarget:
    """Return the training run of a configuration, or of one stage of a pipeline (default: the last).

    The grid is that of the model, else that of the description of its data.

    Raises:
        ConfigError: the configuration is invalid, or has no such stage.
    """
    from simcast_hpc.data.open_windows import sample_grid
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
            raise ConfigError(
                f"--stage {chosen} is not in this pipeline; choose from {', '.join(pipeline.stages)}"
            ) from None
        run, size = pipeline.train_config(chosen), pipeline.synthesis and pipeline.synthesis.size
        within = "autoencoder" in pipeline.stages and run.stage == "diffusion"
        source = pipeline.train_config("autoencoder") if within else run
        autoencoder = source.autoencoder.model if within else _autoencoder_under(run)
        prefix = f"stages.{chosen}."
    stated = grid_of(run.model) if run.stage in FORECASTING else None
    return ModelTarget(run, stated or ((size, size) if size else sample_grid(run.data)), autoencoder, prefix)


def _autoencoder_under(run: TrainConfig) -> AutoencoderConfig:
    """Return the sizes of the autoencoder in ``diffusion.autoencoder``, or the defaults if that run does not exist."""
    from simcast_hpc.storage.run_directory import RunDirectory

    if run.stage == "autoencoder":
        return run.autoencoder.model
    if run.diffusion.autoencoder is None or not (path := RunDirectory(run.diffusion.autoencoder).config).is_file():
        return AutoencoderConfig()
    return read_config(TrainConfig, path).autoencoder.model


def dtype_of(run: TrainConfig) -> "torch.dtype":
    """Return the compute dtype of a run."""
    import torch

    return torch.bfloat16 if run.engine.precision == "bf16" else torch.float32


def subject_of(run: TrainConfig, grid: tuple[int, int], autoencoder: AutoencoderConfig) -> "Network":
    """Return the network that a run trains.

    Raises:
        ValueError: the sizes are inconsistent.
    """
    from simcast_hpc.models import with_grid
    from simcast_hpc.planning import flops

    if run.stage == "autoencoder":
        return flops.autoencoder(autoencoder, grid=grid)
    frames = {"frames_in": run.sequence.frames_in, "frames_out": run.frames_out}
    if run.stage in FORECASTING:
        return flops.forecaster(
            with_grid(run.model, grid), grid=grid, dtype=dtype_of(run), members=run.loss.members, **frames
        )
    reduction = autoencoder.reduction
    if grid[0] % reduction or grid[1] % reduction:
        raise ValueError(
            f"frames of {grid[0]} x {grid[1]} are not divisible by the autoencoder's reduction {reduction}"
        )
    latent = (grid[0] // reduction, grid[1] // reduction)
    return flops.denoiser(run.diffusion.casformer, channels=autoencoder.latent_channels, grid=latent, **frames)


def teacher_of(run: TrainConfig) -> TrainConfig:
    """Return the teacher of a student, assumed to have its ``model``; teachers are deterministic."""
    model = run.model.model_copy(update={"noise_channels": 0})
    return run.model_copy(update={"stage": "teacher", "model": model})


def auxiliary_bytes(run: TrainConfig, grid: tuple[int, int], autoencoder: AutoencoderConfig) -> tuple[int, int]:
    """Return the bytes of networks outside the engine on the device, and their activations per sample."""
    import torch

    from simcast_hpc.models.discriminator import Discriminator
    from simcast_hpc.planning.peak_memory import peak_bytes

    if run.stage == "autoencoder":
        with torch.device("meta"):
            network = Discriminator(run.autoencoder.discriminator)
        # fp32, replicated on every rank with gradients and Adam moments; its batch is real and reconstructed frames.
        activations = peak_bytes(network, torch.empty(2, 1, *grid, device="meta"))
        return 4 * _ADAM_STATES * sum(parameter.numel() for parameter in network.parameters()), activations
    online = run.stage == "student" and run.student.extension == "teacher" and run.student.rollouts == "online"
    if not online:
        return 0, 0
    dtype = dtype_of(run)
    network = subject_of(teacher_of(run), grid, autoencoder).on_meta(None, dtype)
    return dtype.itemsize * sum(parameter.numel() for parameter in network.parameters()), 0
