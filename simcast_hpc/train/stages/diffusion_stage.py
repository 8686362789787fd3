"""Stage ``diffusion``: a denoiser of latent sequences, conditioned on the student's forecast (CasCast, section 3)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.loader import MicroBatch
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.diffusion import add_noise, training_target
from simcast_hpc.diffusion.counter_noise import sample_timesteps, training_noise
from simcast_hpc.diffusion.guidance import drop_condition
from simcast_hpc.distill.cut_windows import to_frames
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.inference.trained_ensemble import (
    TrainedAutoencoder,
    denoiser,
    denoising_steps,
    load_autoencoder,
    noise_schedule,
)
from simcast_hpc.models.autoencoder import Posterior
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.storage.block_store import BlockStore
from simcast_hpc.train.condition_forecasts import ConditionForecasts, reject_other_data
from simcast_hpc.train.ensemble_validation import EnsembleValidation
from simcast_hpc.train.precompute_latents import StoredLatents, fill_latents

from .stage import Stage


class DiffusionModule(torch.nn.Module):
    """The denoiser and the mean squared error of its prediction (Ho et al. 2020, Eq. 14)."""

    def __init__(self, model: CasFormer):
        super().__init__()
        self.model = model

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, target: Tensor, *more: Tensor) -> Tensor:
        """Return the loss, fp32 scalar."""
        return (self.model(noisy, timesteps, condition, *more) - target).square().mean()


class DiffusionStage(Stage):
    """Latents of whole sequences from a cache; noise, timesteps and dropped conditions from counters."""

    name = "diffusion"

    def __init__(self, config: TrainConfig, source: WindowSource):
        """Load autoencoder and students, and check them, the denoiser's shapes and any stored latents.

        Raises:
            ConfigError: a run is not set, not finished or has other frames or data; the denoiser does not fit; section
                ``sampling`` does not suit the noise schedule; or the stored latents were computed from other runs.
        """
        super().__init__(config, source)
        # 1. Fields of other sections that exclude this stage
        section = config.diffusion
        if section.autoencoder is None or section.student is None:
            missing = "autoencoder" if section.autoencoder is None else "student"
            raise ConfigError(f"diffusion.{missing} is not set; set it to the run directory of a finished {missing}")
        for key, value in (("augment", config.data.augment), ("crop", config.data.crop)):
            if value:
                raise ConfigError(
                    f"data.{key}={value} is invalid in stage diffusion: latents of whole frames are cached"
                )
        # 2. Finished runs
        self.autoencoder: TrainedAutoencoder = load_autoencoder(section.autoencoder)
        reject_other_data(config, section.autoencoder, self.autoencoder.config, forecasts=False)
        self.conditions = ConditionForecasts(config, section.student)
        self.inputs = {"autoencoder": self.autoencoder.weights_hash, **self.conditions.inputs}
        # 3. Shapes
        model = self.autoencoder.config.autoencoder.model
        self.channels = model.latent_channels
        self.latent_grid = (source.grid[0] // model.reduction, source.grid[1] // model.reduction)
        self.check_shapes()
        if any(size % model.reduction for size in source.grid):
            raise ConfigError(
                f"frames of {source.grid[0]} x {source.grid[1]} cannot be encoded: the autoencoder requires multiples "
                f"of {model.reduction}"
            )
        # 4. Stored latents, noise schedule
        self.latents.is_complete()
        self.schedule = noise_schedule(section)
        try:
            denoising_steps(section, config.sampling)
        except ValueError as error:
            raise ConfigError(f"the trained network could not be sampled: sampling: {error}") from error

    @property
    def latents(self) -> BlockStore:
        """The store of the latents."""
        name, sequence = self.config.diffusion.latents, self.config.sequence
        directory = self.config.run_dir / "latents" if name == "cached" else Path(name)
        identity = {
            **self.inputs,
            "source": self.source.fingerprint,
            "windows": len(self.source),
            "frames_in": sequence.frames_in,
            "frames_out": sequence.frames_out,
            "observations": self.config.diffusion.casformer.observations,
        }
        return BlockStore(directory, identity, name="diffusion.latents")

    def module(self) -> DiffusionModule:
        """Return the denoiser and its loss."""
        return DiffusionModule(denoiser(self.config, channels=self.channels))

    def prepare(self, ranks: TorchRanks) -> StoredLatents:
        """Return the latents of all windows; compute those that are missing, then free the device of other networks."""
        self.autoencoder.network.to(ranks.device)
        self.conditions.to(ranks.device)
        batch_size = self.config.batch.micro_size
        latents = fill_latents(self.latents, self.source, self.encode, ranks, batch_size=batch_size)
        self.autoencoder.network.cpu()
        self.conditions.to(torch.device("cpu"))
        return latents

    def encode(self, codes: Tensor, events: Sequence[str]) -> Tensor:
        """Return the stored row of windows of these events, uint8 codes ``[B, T + T', H, W]``: ``[B, F, C, h, w]``."""
        frames_in = self.config.sequence.frames_in
        past, future = codes[:, :frames_in], codes[:, frames_in:]
        forecast = self.conditions.forecast(past, events)
        parts = [*self.autoencoder.moments(to_frames(future).values), self.autoencoder.moments(forecast)[0]]
        if self.config.diffusion.casformer.observations:
            parts.append(self.autoencoder.moments(to_frames(past).values)[0])
        return torch.cat(parts, dim=1)

    def sample(self, batch: MicroBatch) -> tuple[Tensor, ...]:
        """Return noisy latents, timesteps, condition and target, and observed latents if the denoiser takes them."""
        section, frames = self.config.diffusion, self.config.sequence.frames_out

        def rows(purpose: str):
            return training_noise(batch.positions, seed=self.config.seed, purpose=purpose, device=batch.windows.device)

        # 1. Latents: a sample of the posterior, and the condition's means
        stored = batch.windows.float()
        mean, log_variance, condition = stored[:, : 3 * frames].unflatten(1, (3, frames)).unbind(1)
        shape = tuple(mean.shape[1:])
        clean = Posterior(mean, log_variance).sample(rows("posterior").normal(shape)) * self.autoencoder.scale
        # 2. Conditions, some of them dropped for classifier-free guidance
        conditions = [condition * self.autoencoder.scale]
        if section.casformer.observations:
            conditions.append(stored[:, 3 * frames :] * self.autoencoder.scale)
        conditions = [drop_condition(part, rows("condition"), section.condition_dropout) for part in conditions]
        # 3. Forward process
        noise, timesteps = rows("noise").normal(shape), sample_timesteps(rows("timestep"), section.timesteps)
        noisy = add_noise(self.schedule, clean, noise, timesteps)
        target = training_target(self.schedule, section.prediction, clean, noise, timesteps)
        return noisy, timesteps, conditions[0], target, *conditions[1:]

    def example_sample(self, batch_size: int, device: torch.device) -> tuple[Tensor, ...]:
        """Return latents of zeros."""
        sequence = self.config.sequence

        def latents(frames: int) -> Tensor:
            return torch.zeros(batch_size, frames, self.channels, *self.latent_grid, device=device)

        noisy, condition, target = (latents(sequence.frames_out) for _ in range(3))
        observed = (latents(sequence.frames_in),) if self.config.diffusion.casformer.observations else ()
        return noisy, torch.zeros(batch_size, dtype=torch.int64, device=device), condition, target, *observed

    def open_validation(self) -> EnsembleValidation | None:
        """Return the validation of sampled ensembles, if it is on."""
        if self.config.diffusion.validation.every_steps == 0:
            return None
        return EnsembleValidation(self.config, self.autoencoder, self.conditions.student)
