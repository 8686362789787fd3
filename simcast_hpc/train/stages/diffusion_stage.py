"""Stage ``diffusion``: a denoiser of latent sequences under the student's forecast (CasCast, section 3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.loader import Extension, MicroBatch
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.diffusion import add_noise, make_schedule, training_target
from simcast_hpc.diffusion.counter_noise import draw_timesteps, rows_of
from simcast_hpc.diffusion.guidance import drop_condition
from simcast_hpc.distill.windows import to_frames
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.inference.ensemble import TrainedAutoencoder, denoiser, load_autoencoder
from simcast_hpc.models.autoencoder import Posterior
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.monitoring.metrics import MetricsWriter
from simcast_hpc.train.checkpoint import Checkpoint
from simcast_hpc.train.condition_forecasts import Conditions, reject_other_frames
from simcast_hpc.train.ema import EMA
from simcast_hpc.train.ensemble_validation import EnsembleValidation, ValidationHook
from simcast_hpc.train.loop import Every
from simcast_hpc.train.precompute_latents import LatentSource, fill_latents, reject_other_latents


class DiffusionStage:
    """Latents of whole sequences, from the cache; noise, timestep and dropped conditions by counters."""

    extension: Extension | None = None

    def __init__(self, config: TrainConfig):
        """Load autoencoder and student, and check that both speak of the same frames and data.

        Raises:
            ConfigError: one of them is not named, not finished, or of other frames or data.
        """
        self.config, sequence, chosen = config, config.sequence, config.diffusion
        if chosen.autoencoder is None or chosen.student is None:
            lacking = "autoencoder" if chosen.autoencoder is None else "student"
            raise ConfigError(f"diffusion.{lacking} is not set: the run folder of a finished {lacking}")
        for key, value in (("augment", config.data.augment), ("crop", config.data.crop)):
            if value:
                raise ConfigError(
                    f"data.{key}={value}: latents are stored once, so the stage diffusion sees whole frames"
                )
        self.sequence_frames = sequence.frames_in + sequence.frames_out
        self.autoencoder: TrainedAutoencoder = load_autoencoder(chosen.autoencoder)
        reject_other_frames(config, chosen.autoencoder, self.autoencoder.config, horizon=False)
        self.conditions = Conditions(config, chosen.student)
        self.inputs = {"autoencoder": self.autoencoder.weights_hash, **self.conditions.inputs}
        self.schedule = make_schedule(
            chosen.schedule, timesteps=chosen.timesteps, beta_start=chosen.beta_start, beta_end=chosen.beta_end
        )

    def open(self, source: WindowSource, device: torch.device) -> None:
        """Put autoencoder and students on the device, for what is not in the cache yet."""
        self.autoencoder.network.to(device)
        self.conditions.to(device)

    def release(self) -> None:
        """Give the device back what autoencoder and students held: from here on latents are read."""
        self.autoencoder.network.cpu()
        self.conditions.to(torch.device("cpu"))

    def initialise(self, model: torch.nn.Module) -> None:
        """The model starts as it was drawn: the identity."""

    def encode(self, codes: Tensor, events: Sequence[str]) -> Tensor:
        """Return what is stored of windows of these events, uint8 codes ``[B, T + T', H, W]``: ``[B, F, C, h, w]``."""
        frames_in = self.config.sequence.frames_in
        past, coming = codes[:, :frames_in], codes[:, frames_in:]
        forecast = self.conditions.forecast(past, events)
        parts = [*self.autoencoder.moments(to_frames(coming).values), self.autoencoder.moments(forecast)[0]]
        if self.config.diffusion.casformer.observations:
            parts.append(self.autoencoder.moments(to_frames(past).values)[0])
        return torch.cat(parts, dim=1)

    def sample(self, batch: MicroBatch, device: torch.device) -> tuple[Tensor, ...]:
        """Return noisy latents, timesteps, condition, target, and observations where they are wanted."""
        chosen, seed, frames = self.config.diffusion, self.config.seed, self.config.sequence.frames_out
        stored = batch.codes.to(device, non_blocking=True).float()
        mean, log_variance, condition = stored[:, : 3 * frames].unflatten(1, (3, frames)).unbind(1)

        def rows(purpose: str):
            return rows_of(batch.positions, seed=seed, purpose=purpose, device=device)

        shape = tuple(mean.shape[1:])
        clean = Posterior(mean, log_variance).sample(rows("posterior").normal(shape)) * self.autoencoder.scale
        noise, timesteps = rows("noise").normal(shape), draw_timesteps(rows("timestep"), chosen.timesteps)
        scaled = [condition * self.autoencoder.scale]
        if chosen.casformer.observations:
            scaled.append(stored[:, 3 * frames :] * self.autoencoder.scale)
        shown = [drop_condition(part, rows("condition"), chosen.condition_dropout) for part in scaled]
        noisy = add_noise(self.schedule, clean, noise, timesteps)
        target = training_target(self.schedule, chosen.prediction, clean, noise, timesteps)
        return noisy, timesteps, shown[0], target, *shown[1:]


class DiffusionModule(torch.nn.Module):
    """What the engine holds: the denoiser and the mean squared error of its prediction (Ho et al. 2020, Eq. 14)."""

    def __init__(self, model: CasFormer):
        super().__init__()
        self.model = model

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, target: Tensor, *more: Tensor) -> Tensor:
        """Return the loss, fp32 scalar."""
        return (self.model(noisy, timesteps, condition, *more) - target).square().mean()


class DiffusionTask:
    """The denoiser, on latents that all ranks make before the first step."""

    def __init__(self, config: TrainConfig, stage: DiffusionStage, source: WindowSource):
        """Try the denoiser on shapes alone.

        Raises:
            ConfigError: it does not fit, or stored latents are of another making.
        """
        self.config, self.stage, self.source = config, stage, source
        model = stage.autoencoder.config.autoencoder.model
        self.channels = model.latent_channels
        self.grid = (source.grid[0] // model.reduction, source.grid[1] // model.reduction)
        with torch.device("meta"):
            try:
                stage_sample = self._empty(1, torch.device("meta"))
                self.module()(*stage_sample)
            except ValueError as error:
                raise ConfigError(f"the denoiser does not fit: {error}") from error
        if any(size % model.reduction for size in source.grid):
            raise ConfigError(f"frames of {source.grid[0]} x {source.grid[1]} do not fall into latents")
        reject_other_latents(self.folder, self.identity)
        wanted = config.diffusion.validation.every_steps > 0
        self.validation = EnsembleValidation(config, stage.autoencoder, stage.conditions.student) if wanted else None

    @property
    def folder(self) -> Path:
        """Where the latents are stored."""
        stored = self.config.diffusion.latents
        return self.config.run_dir / "latents" if stored == "cached" else Path(stored)

    @property
    def identity(self) -> dict[str, object]:
        """What the stored latents must have been made of."""
        sequence = self.config.sequence
        return {
            **self.stage.inputs,
            "source": self.source.fingerprint,
            "windows": len(self.source),
            "frames_in": sequence.frames_in,
            "frames_out": sequence.frames_out,
            "observations": self.config.diffusion.casformer.observations,
        }

    def prepare(self, ranks: TorchRanks) -> WindowSource:
        """Return the latents in place of the windows, made where they are missing. A collective."""
        batch = self.config.batch.micro_size
        fill_latents(self.folder, self.identity, self.source, self.stage.encode, ranks, batch=batch)
        self.stage.release()
        return LatentSource(self.folder, self.source)

    def module(self) -> DiffusionModule:
        """Return the denoiser and its loss."""
        return DiffusionModule(denoiser(self.config, channels=self.channels))

    def learner(self, engine: Any, ranks: TorchRanks) -> Any:
        """Return the engine itself."""
        return engine

    def warm_up(self, engine: Any, device: torch.device) -> Tensor:
        """Return the loss of empty latents."""
        return engine(*self._empty(self.config.batch.micro_size, device))

    def hooks(self, engine: Any, ranks: TorchRanks, ema: EMA | None, writer: MetricsWriter | None) -> list[Every]:
        """Return the validation, where there is one."""
        if self.validation is None:
            return []
        hook = ValidationHook(self.validation, engine, ranks, ema, writer)
        return [Every(self.config.diffusion.validation.every_steps, hook)]

    def exported(self, checkpoint: Checkpoint, ranks: TorchRanks) -> Mapping[str, str]:
        """Nothing stands beside the weights."""
        return {}

    def _empty(self, batch: int, device: torch.device) -> tuple[Tensor, ...]:
        sequence = self.config.sequence

        def latents(frames: int) -> Tensor:
            return torch.zeros(batch, frames, self.channels, *self.grid, device=device)

        noisy, condition, target = (latents(sequence.frames_out) for _ in range(3))
        more = (latents(sequence.frames_in),) if self.config.diffusion.casformer.observations else ()
        return noisy, torch.zeros(batch, dtype=torch.int64, device=device), condition, target, *more
