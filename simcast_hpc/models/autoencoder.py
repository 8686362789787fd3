"""The KL autoencoder of single frames: encodes a frame as mean and log-variance of a latent 8 times smaller.

Source: Rombach et al., High-resolution image synthesis with latent diffusion models (2022), section 3.1, as CasCast
trains it on radar (Gong et al. 2024, section 4.1). Frames are encoded independently; a sequence is a batch of frames.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simcast_hpc.config import AutoencoderConfig

from .group_norm_silu import channels_last_on_cuda, norm_activation
from .layers import Fp32Conv2d

_EPS = 1e-6
_SILU = {"activation": "silu"}  # as arguments of the kernel
# Beyond these bounds the variance is meaningless and its exponential overflows.
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Posterior(NamedTuple):
    """Normal distribution of latents: ``mean`` and ``log_variance``, fp32 ``[N, C, h, w]`` each."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return the sample ``mean + std * noise``; ``noise`` is standard normal with the shape of the mean."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def divergence(self) -> Tensor:
        """Return the Kullback-Leibler divergence from a standard normal, summed over each latent, ``[N]``."""
        terms = self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * terms.flatten(1).sum(dim=1)


class Autoencoder(nn.Module):
    """Encode frames ``[N, C, H, W]`` in [0, 1] to a :class:`Posterior` and decode; H, W are multiples of the reduction.

    Args:
        config: the ``autoencoder`` section of a run's configuration.
        channels: C.
    """

    def __init__(self, config: AutoencoderConfig, *, channels: int = 1):
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config, channels)
        self.to_moments = Fp32Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.from_latent = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = _Decoder(config, channels)

    def encode(self, frames: Tensor) -> Posterior:
        """Return the posterior of latents, fp32 ``[N, C', H / r, W / r]``.

        Raises:
            ValueError: the grid is not a multiple of the reduction r.
        """
        reduction = self.config.reduction
        if frames.shape[-2] % reduction or frames.shape[-1] % reduction:
            raise ValueError(
                f"frames of {tuple(frames.shape[-2:])} pixels do not fit the autoencoder, which requires multiples of "
                f"{reduction}"
            )
        mean, log_variance = self.to_moments(self.encoder(frames.to(self._dtype))).chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(*_LOG_VARIANCE_RANGE))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the frames of latents ``[N, C', h, w]``, fp32 ``[N, C, H, W]``, unbounded."""
        return self.decoder(self.from_latent(latents.to(self._dtype)))

    def forward(self, frames: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Posterior]:
        """Return the reconstruction of ``frames`` and the posterior.

        The decoder gets the mean of the posterior, or with ``noise`` a sample of it.
        """
        posterior = self.encode(frames)
        latents = posterior.mean if noise is None else posterior.sample(noise)
        return self.decode(latents), posterior

    @property
    def last_layer(self) -> Fp32Conv2d:
        """The output convolution; the adaptive weight of the adversarial loss compares gradients of its weight."""
        return self.decoder.head

    @property
    def _dtype(self) -> torch.dtype:
        return self.from_latent.weight.dtype


class _Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, channels: int):
        super().__init__()
        widths, groups = config.widths, config.groups
        self.checkpoint = config.checkpoint
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        widths_in = (widths[0], *widths[:-1])
        last = len(widths) - 1
        self.levels = nn.ModuleList(
            _DownLevel(width_in, width, blocks=config.blocks, groups=groups, downsample=i < last)
            for i, (width_in, width) in enumerate(zip(widths_in, widths, strict=True))
        )
        self.middle = _Middle(widths[-1], groups)
        self.norm = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.head = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(channels_last_on_cuda(x))
        for level in (*self.levels, self.middle):
            x = _run(level, x, recompute=self.checkpoint and self.training)
        return self.head(norm_activation(x, self.norm, F.silu, _SILU))


class _Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, channels: int):
        super().__init__()
        widths, groups = config.widths[::-1], config.groups
        self.checkpoint = config.checkpoint
        self.stem = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = _Middle(widths[0], groups)
        widths_in = (widths[0], *widths[:-1])
        last = len(widths) - 1
        self.levels = nn.ModuleList(
            _UpLevel(width_in, width, blocks=config.blocks + 1, groups=groups, upsample=i < last)
            for i, (width_in, width) in enumerate(zip(widths_in, widths, strict=True))
        )
        self.norm = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.head = Fp32Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(channels_last_on_cuda(x))
        for level in (self.middle, *self.levels):
            x = _run(level, x, recompute=self.checkpoint and self.training)
        return self.head(norm_activation(x, self.norm, F.silu, _SILU))


class _DownLevel(nn.Module):
    def __init__(self, width_in: int, width: int, *, blocks: int, groups: int, downsample: bool):
        super().__init__()
        self.blocks = nn.ModuleList(_Residual(width_in if i == 0 else width, width, groups) for i in range(blocks))
        self.down = nn.Conv2d(width, width, 3, stride=2) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        # Padded only at the end, as for the published weights: an even grid is halved exactly.
        return x if self.down is None else self.down(F.pad(x, (0, 1, 0, 1)))


class _UpLevel(nn.Module):
    def __init__(self, width_in: int, width: int, *, blocks: int, groups: int, upsample: bool):
        super().__init__()
        self.blocks = nn.ModuleList(_Residual(width_in if i == 0 else width, width, groups) for i in range(blocks))
        self.up = nn.Conv2d(width, width, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.up is None else self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int):
        super().__init__()
        self.before = _Residual(width, width, groups)
        self.attention = _Attention(width, groups)
        self.after = _Residual(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.attention(self.before(x)))


class _Residual(nn.Module):
    def __init__(self, width_in: int, width: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=_EPS)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=_EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = None if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(norm_activation(x, self.norm1, F.silu, _SILU))
        inner = self.conv2(norm_activation(inner, self.norm2, F.silu, _SILU))
        return inner + (x if self.shortcut is None else self.shortcut(x))


class _Attention(nn.Module):
    """Self-attention over all positions of a frame, with one head."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=_EPS)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = (layer(tokens)[:, None] for layer in (self.query, self.key, self.value))
        attended = self.out(F.scaled_dot_product_attention(query, key, value)[:, 0])
        return x + attended.transpose(1, 2).reshape(x.shape)


def _run(part: nn.Module, x: Tensor, *, recompute: bool) -> Tensor:
    return checkpoint(part, x, use_reentrant=False) if recompute else part(x)
