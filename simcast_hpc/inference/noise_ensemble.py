"""Ensembles of networks with noise inputs: one forward pass per member, without a diffusion model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simcast_hpc.config import ConfigError, SamplingConfig, TrainConfig
from simcast_hpc.models import missing_value, noise_shape
from simcast_hpc.models.fp32_precision import fp32_precision

from .cuda_graph import GraphCache
from .ensemble import Ensemble, Members, sample_identity
from .trained_model import TrainedModel, load_network


@dataclass(frozen=True)
class NoiseEnsemble(Ensemble):
    """A trained network with noise channels, on one device; of ``sampling`` only the fields of members have an effect.

    Missing input pixels have the model's :func:`.missing_value`, as in training. fp32 is IEEE fp32, without TF32.
    """

    network: Any
    config: TrainConfig
    sampling: SamplingConfig
    weights_hash: str
    steps: int | None = None
    graphs: GraphCache = field(default_factory=GraphCache, compare=False, repr=False)

    @property
    def inputs(self) -> dict[str, str]:
        """No other run is needed."""
        return {}

    @property
    def frames_config(self) -> TrainConfig:
        """Configuration of the run."""
        return self.config

    @property
    def note(self) -> str:
        """Number of members and network."""
        members, title = self.sampling.members, self.config.model.title
        return f"{members} members of {self.config.stage}, one pass per member; {title} with noise"

    @property
    def noise_spacing(self) -> int:
        """Noise has one element per pixel."""
        return 1

    def noise_shape(self, grid: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the shape of the noise of one member, (max(T, T'), N, H, W)."""
        frames = {"frames_in": self.config.sequence.frames_in, "frames_out": self.config.frames_out}
        return noise_shape(self.config.model, grid=grid, **frames)

    def on(self, device: torch.device) -> "NoiseEnsemble":
        """Move the network to ``device``; return the ensemble."""
        self.network.to(device)
        self.graphs.clear()  # recorded graphs contain the addresses of the weights
        return self

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Check that the network can take frames of ``grid`` (H, W).

        Raises:
            ConfigError: names the grid and what is needed.
        """
        self._model.check_grid(grid)

    def sampled_by(self, sampling: SamplingConfig) -> "NoiseEnsemble":
        """Return the same network with other settings of its members.

        Raises:
            ConfigError: a field of diffusion sampling is set.
        """
        sampling.reject_denoising(f"the {self.config.stage} {self.config.name}")
        return replace(self, sampling=sampling)

    @torch.no_grad()
    @fp32_precision()
    def sample_members(
        self, codes: Tensor, numbers: Sequence[int], *, start: Tensor | None = None, base: Tensor | None = None
    ) -> Members:
        """Return the members with these numbers; the base forecast is computed once per sample and chunk of members.

        Args:
            codes: ``[B, T, H, W]``, uint8 encoded values (255 missing) or floats in [0, 1] (NaN missing).
            numbers: which members.
            start: noise fp32 ``[B, len(numbers), *noise_shape]``, instead of the noise of each sample.
            base: base forecast, a part of that of a larger domain.

        Raises:
            ConfigError: the network cannot take this grid.
            TypeError: ``codes`` is neither uint8 nor floating.
            ValueError: wrong number of axes or of frames.
        """
        inputs = self._model.frames(codes).fill(missing_value(self.config.model))[:, :, None]
        device, shape = inputs.device, self.noise_shape((codes.shape[2], codes.shape[3]))
        identity, members = sample_identity(codes).to(device), torch.tensor(list(numbers), device=device)
        # Rows of a pass are complete samples, or members of one sample, at most sampling.chunk of them.
        at_once = min(len(members), self.sampling.chunk)
        frames = []
        for rows in torch.arange(len(inputs), device=device).split(max(1, self.sampling.chunk // at_once)):
            parts = []
            for part in torch.arange(len(members), device=device).split(at_once):
                if start is None:
                    sample, member = identity[rows].repeat_interleave(len(part)), members[part].repeat(len(rows))
                    noise = self.noise_rows(sample, member).initial(shape).unflatten(0, (len(rows), len(part)))
                else:
                    noise = start.to(device)[rows][:, part]
                given = () if base is None else (base[rows],)
                parts.append(self._run(inputs[rows], noise, *given)[:, :, :, 0].clamp(0.0, 1.0))
            frames.append(torch.cat(parts, dim=1))
        return Members(torch.cat(frames), torch.zeros((), device=device))

    def base_forecast(self, codes: Tensor, *, side: int) -> Tensor | None:
        """Return the base forecast of a domain; see :meth:`.TrainedModel.base_forecast`."""
        return self._model.base_forecast(codes, side=side)

    def _run(self, *inputs: Tensor) -> Tensor:
        if not self.sampling.cuda_graph:
            return self.network(*inputs)
        return self.graphs.run(self.network, *inputs, network=self.network)

    @property
    def _model(self) -> TrainedModel:
        return TrainedModel(self.network, self.config, self.weights_hash, self.steps)


def load_noise_ensemble(
    run_dir: Path,
    *,
    device: torch.device | None = None,
    change_sampling: Callable[[SamplingConfig], SamplingConfig] | None = None,
) -> NoiseEnsemble:
    """Return the ensemble of a finished run whose network has noise channels, on ``device`` (default: CPU).

    ``change_sampling`` returns the settings to use from those of the run.

    Raises:
        ConfigError: no finished run, its network has no noise channels, or the settings are invalid.
    """
    model = load_network(run_dir, device=device)
    if not model.config.model.noise_channels:
        raise ConfigError(f"{run_dir} is deterministic (model.noise_channels=0); a run of an ensemble is needed here")
    sampling = model.config.sampling
    ensemble = NoiseEnsemble(model.network, model.config, sampling, model.weights_hash, model.steps)
    return ensemble if change_sampling is None else ensemble.sampled_by(change_sampling(sampling))
