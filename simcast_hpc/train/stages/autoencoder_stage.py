"""Stage ``autoencoder``: encode and decode single frames, with a discriminator after a configured number of steps."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.augment import augment
from simcast_hpc.data.loader import MicroBatch
from simcast_hpc.data.sample_order import random_integer
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.diffusion.counter_noise import training_noise
from simcast_hpc.distill.cut_windows import cut, starts, to_frames
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.discriminator import Discriminator
from simcast_hpc.models.fp32_precision import fp32_precision
from simcast_hpc.train.adversarial import AdversarialEngine, AutoencoderModule
from simcast_hpc.train.checkpoint import Checkpoint

from .stage import Stage

logger = logging.getLogger(__name__)
SCALE = "scale_factor"


class FrameSample(NamedTuple):
    """A sample of single frames.

    Attributes:
        frames: fp32 ``[B, 1, H, W]`` in [0, 1], 0 where missing.
        valid: bool, same shape.
        noise: standard normal, in the shape of the latents.
    """

    frames: Tensor
    valid: Tensor
    noise: Tensor


class AutoencoderStage(Stage):
    """One random frame of each sequence (CasCast: any of the 25); the scale of the latents is measured at the end."""

    name = "autoencoder"

    def __init__(self, config: TrainConfig, source: WindowSource):
        """Check both networks on shapes.

        Raises:
            ConfigError: the encoder does not divide the grid, or the grid is too small for the discriminator.
        """
        super().__init__(config, source)
        self.check_shapes()
        with torch.device("meta"):
            smallest = Discriminator(config.autoencoder.discriminator).smallest_frame
        if min(self.grid) < smallest:
            raise ConfigError(
                f"frames of {self.grid[0]} x {self.grid[1]} are too small for a discriminator of "
                f"autoencoder.discriminator.layers={config.autoencoder.discriminator.layers}, which requires "
                f"{smallest}; choose fewer layers"
            )

    def module(self) -> AutoencoderModule:
        """Return the autoencoder and the learned variance of its error."""
        return AutoencoderModule(Autoencoder(self.config.autoencoder.model))

    def sample(self, batch: MicroBatch) -> FrameSample:
        """Return a random frame of each sequence and the noise of its latent."""
        seed, device = self.config.seed, batch.windows.device
        codes = augment(batch.windows, batch.positions, self.config.data, seed=seed, corners=batch.corners)
        frame = starts(batch.positions, seed=seed, purpose="autoencoder-frame", choices=codes.shape[1], device=device)
        frames = to_frames(cut(codes, frame, 1))
        rows = training_noise(batch.positions, seed=seed, purpose="autoencoder-noise", device=device)
        return FrameSample(frames.values, frames.valid, rows.normal(self._latent_shape))

    def example_sample(self, batch_size: int, device: torch.device) -> tuple[Tensor, ...]:
        """Return the arguments of the bare module, zero frames and noise: the mask is the loss's, not the module's."""
        frames = torch.zeros(batch_size, 1, *self.grid, device=device)
        return frames, torch.zeros(batch_size, *self._latent_shape, device=device)

    def wrap_engine(self, engine: Any, ranks: TorchRanks) -> AdversarialEngine:
        """Return the engine together with a discriminator."""
        discriminator = Discriminator(self.config.autoencoder.discriminator)
        return AdversarialEngine(
            engine, discriminator, ranks, config=self.config.autoencoder, optimizer=self.config.optimizer
        )

    def warm_up(self, engine: Any, device: torch.device) -> Tensor:
        """Return the sum of all outputs of the module."""
        outputs = engine(*self.example_sample(self.config.batch.micro_size, device))
        return torch.stack([output.sum() for output in outputs]).sum()

    @torch.no_grad()
    @fp32_precision()
    def export_metadata(self, checkpoint: Checkpoint, ranks: TorchRanks) -> Mapping[str, str]:
        """Return the scale factor: 1 / standard deviation of the latents of one frame of each training window.

        The exported weights are measured, by all ranks. The variance of a latent is the variance of the posterior means
        plus the mean of the posterior variances, so no random numbers are needed.
        """
        # 1. Exported weights
        network = Autoencoder(self.config.autoencoder.model).to(ranks.device).eval()
        network.load_state_dict(checkpoint.model_weights())
        # 2. Count, sum and sum of squares over this rank's share of the windows
        sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        share = range(ranks.rank, len(self.source), ranks.size)
        size = self.config.batch.micro_size
        for first in range(0, len(share), size):
            posterior = network.encode(self._measured_frames(share[first : first + size], ranks.device))
            mean, variance = posterior.mean.double(), posterior.log_variance.double().exp()
            sums += torch.stack([torch.full_like(sums[0], mean.numel()), mean.sum(), (mean**2 + variance).sum()])
        # 3. Over all ranks
        total = torch.tensor(ranks.gather(sums.tolist()), dtype=torch.float64).sum(dim=0)
        count, first_moment, second_moment = total.tolist()
        deviation = (second_moment / count - (first_moment / count) ** 2) ** 0.5
        logger.info("scale factor of the latents: %.6f, measured on %d frames", 1.0 / deviation, len(self.source))
        return {SCALE: repr(1.0 / deviation)}

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        model = self.config.autoencoder.model
        return model.latent_channels, self.grid[0] // model.reduction, self.grid[1] // model.reduction

    def _measured_frames(self, indices: range, device: torch.device) -> Tensor:
        """Return one random frame of each window, fp32 ``[B, 1, H, W]``."""
        frames = []
        for index in indices:
            window = self.source.read(index)
            frames.append(
                window[random_integer(index, seed=self.config.seed, purpose="scale-factor-frame", choices=len(window))]
            )
        return to_frames(torch.from_numpy(np.stack(frames))[:, None].to(device)).values
