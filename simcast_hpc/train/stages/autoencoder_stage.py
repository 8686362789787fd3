"""Stage ``autoencoder``: single frames to a small latent and back, later against a discriminator."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.augment import augmented, training_grid
from simcast_hpc.data.loader import Extension, MicroBatch
from simcast_hpc.data.sample_order import draw
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.diffusion.counter_noise import rows_of
from simcast_hpc.distill.windows import cut, starts, to_frames
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.discriminator import Discriminator
from simcast_hpc.monitoring.metrics import MetricsWriter
from simcast_hpc.train.adversarial import AdversarialEngine, AutoencoderModule
from simcast_hpc.train.checkpoint import Checkpoint
from simcast_hpc.train.ema import EMA
from simcast_hpc.train.loop import Every

logger = logging.getLogger(__name__)
SCALE = "scale_factor"
_PREFIX = "model."


class FrameSample(NamedTuple):
    """A micro batch: ``frames`` fp32 ``[B, 1, H, W]``, ``valid`` bool, ``noise`` of the latents' shape."""

    frames: Tensor
    valid: Tensor
    noise: Tensor


class AutoencoderStage:
    """One frame of each sequence, drawn for each sample (CasCast: any of the 25)."""

    extension: Extension | None = None

    def __init__(self, config: TrainConfig):
        self.config = config
        self.sequence_frames = config.sequence.frames_in + config.sequence.frames_out
        self.inputs: dict[str, str] = {}

    def open(self, source: WindowSource, device: torch.device) -> None:
        """Nothing besides the windows is needed."""

    def initialise(self, model: torch.nn.Module) -> None:
        """The model starts as it was drawn."""

    def sample(self, batch: MicroBatch, device: torch.device) -> FrameSample:
        """Return the training sample of a micro batch."""
        seed, model = self.config.seed, self.config.autoencoder.model
        codes = batch.codes.to(device, non_blocking=True)
        codes = augmented(codes, batch.positions, self.config.data, seed=seed)
        which = starts(
            batch.positions, seed=seed, purpose="autoencoder-frame", choices=codes.shape[1], device=codes.device
        )
        frames = to_frames(cut(codes, which, 1))
        height, width = (size // model.reduction for size in codes.shape[-2:])
        rows = rows_of(batch.positions, seed=seed, purpose="autoencoder-noise", device=device)
        return FrameSample(frames.values, frames.valid, rows.normal((model.latent_channels, height, width)))


class AutoencoderTask:
    """The autoencoder with its losses; the scale factor of its latents is measured at the end."""

    def __init__(self, config: TrainConfig, source: WindowSource):
        """Try the networks on shapes alone.

        Raises:
            ConfigError: the grid does not fall into latents, or leaves the discriminator no patch.
        """
        self.config, self.source = config, source
        self.grid = training_grid(config.data, source.grid)
        with torch.device("meta"):
            discriminator = Discriminator(config.autoencoder.discriminator)
            try:
                self._network()(torch.empty(1, 1, *self.grid))
            except ValueError as error:
                raise ConfigError(f"the autoencoder does not fit: {error}") from error
        if min(self.grid) < discriminator.smallest_frame:
            raise ConfigError(
                f"frames of {self.grid[0]} x {self.grid[1]} leave no patch to a discriminator of "
                f"autoencoder.discriminator.layers={config.autoencoder.discriminator.layers}, which needs "
                f"{discriminator.smallest_frame}; take fewer layers"
            )

    def prepare(self, ranks: TorchRanks) -> WindowSource:
        """Return the data's own windows."""
        return self.source

    def module(self) -> torch.nn.Module:
        """Return the autoencoder and its learned variance."""
        return AutoencoderModule(self._network())

    def learner(self, engine: Any, ranks: TorchRanks) -> AdversarialEngine:
        """Return the engine with a discriminator beside it."""
        discriminator = Discriminator(self.config.autoencoder.discriminator)
        return AdversarialEngine(
            engine, discriminator, ranks, config=self.config.autoencoder, optimizer=self.config.optimizer
        )

    def warm_up(self, engine: Any, device: torch.device) -> Tensor:
        """Return the sum of what the module makes of empty frames."""
        model, micro = self.config.autoencoder.model, self.config.batch.micro_size
        height, width = (size // model.reduction for size in self.grid)
        noise = torch.zeros(micro, model.latent_channels, height, width, device=device)
        made = engine(torch.zeros(micro, 1, *self.grid, device=device), noise)
        return torch.stack([part.sum() for part in made]).sum()

    def hooks(self, engine: Any, ranks: TorchRanks, ema: EMA | None, writer: MetricsWriter | None) -> list[Every]:
        """Nothing else happens between steps."""
        return []

    def exported(self, checkpoint: Checkpoint, ranks: TorchRanks) -> Mapping[str, str]:
        """Return the scale factor: 1 over the latents' standard deviation, of one frame of each training window.

        Measured with the weights that are exported, by all ranks; the variance of a latent is that of the means plus
        the mean of the variances, so nothing is drawn.
        """
        network = self._network().to(ranks.device).eval()
        weights = checkpoint.weights()
        network.load_state_dict({n.removeprefix(_PREFIX): t for n, t in weights.items() if n.startswith(_PREFIX)})
        sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        mine = range(ranks.rank, len(self.source), ranks.size)
        step = self.config.batch.micro_size
        for begin in range(0, len(mine), step):
            posterior = _posterior(network, self.source, mine[begin : begin + step], self.config.seed, ranks.device)
            mean, variance = posterior.mean.double(), posterior.log_variance.double().exp()
            sums += torch.stack([torch.full_like(sums[0], mean.numel()), mean.sum(), (mean**2 + variance).sum()])
        total = torch.stack([part.to(ranks.device) for part in ranks.gather(sums.cpu())]).sum(dim=0)
        count, first, second = total.tolist()
        deviation = (second / count - (first / count) ** 2) ** 0.5
        logger.info("scale factor %.6f, from %d latents", 1.0 / deviation, len(self.source))
        return {SCALE: repr(1.0 / deviation)}

    def _network(self) -> Autoencoder:
        return Autoencoder(self.config.autoencoder.model)


@torch.no_grad()
def _posterior(network: Autoencoder, source: WindowSource, indices: range, seed: int, device: torch.device):
    frames = []
    for index in indices:
        window = source.read(index)
        frames.append(window[draw(index, seed=seed, purpose="scale-factor-frame", choices=len(window))])
    codes = torch.from_numpy(np.stack(frames))[:, None]
    return network.encode(to_frames(codes.to(device)).values)
