"""CasFormer: the denoiser of latent sequences, under the latents of a deterministic forecast.

Source: Gong et al., CasCast (2024), section 3.3, with the DiT blocks of Peebles and Xie (2023). Frames of noisy latent
and condition go through a frame-wise encoder with shared weights, are joined by one linear layer (the sequence
aggregator), and go through a sequence decoder together. Every block is modulated by the timestep; the stream of tokens
between two branches is one call of ``adaln_norm``.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simcast_hpc.config import CasFormerConfig
from simcast_kernels.adaln_norm import adaln_norm

from .layers import WideLinear

_FREQUENCIES = 256
_LONGEST = 10_000.0


class _Stream(NamedTuple):
    """Tokens ``[N, L, D]`` and what the last branch adds to them: ``branch``, weighted by ``gate`` ``[N, D]``."""

    tokens: Tensor
    branch: Tensor | None = None
    gate: Tensor | None = None


class CasFormer(nn.Module):
    """Predict noise or v of latents ``[B, T, C, h, w]``, fp32 out; h and w are multiples of ``config.patch``.

    Args:
        config: the ``casformer`` section of a run's configuration.
        frames: T, frames of a forecast.
        channels: C, channels of a latent.
        frames_in: frames of the observations, where ``config.observations`` is set.

    ``published_places`` is set by ``models.public``: patches along an axis of the published table of positions.
    """

    published_places: int | None = None

    def __init__(self, config: CasFormerConfig, *, frames: int, channels: int, frames_in: int | None = None):
        super().__init__()
        if config.observations and frames_in is None:
            raise ValueError("casformer.observations=true needs the number of observed frames")
        self.config, self.frames, self.channels = config, frames, channels
        patch, ratio = config.patch, config.feed_forward_ratio
        self.embed = nn.Conv2d(2 * channels, config.frame_width, patch, stride=patch)
        self.frame_time = TimestepEmbedding(config.frame_width)
        self.frame_blocks = nn.ModuleList(
            Block(config.frame_width, config.frame_heads, ratio) for _ in range(config.frame_depth)
        )
        self.aggregate = nn.Linear(config.frame_width * frames, config.width)
        self.time = TimestepEmbedding(config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, ratio, crosses=config.observations) for _ in range(config.depth)
        )
        self.observe = None
        if config.observations and frames_in is not None:
            self.observe = nn.Conv2d(frames_in * channels, config.width, patch, stride=patch)
        self.modulate = nn.Linear(config.width, 2 * config.width)
        self.head = WideLinear(config.width, frames * channels * patch**2)
        self._initialise()

    def forward(
        self, noisy: Tensor, timesteps: Tensor, condition: Tensor, observations: Tensor | None = None
    ) -> Tensor:
        """Return the prediction, fp32 ``[B, T, C, h, w]``.

        Args:
            noisy: latents x_t, ``[B, T, C, h, w]``.
            timesteps: t of each sample, int64 ``[B]``.
            condition: latents of the deterministic forecast, same shape; zeros stand for no condition.
            observations: latents of the observed frames, ``[B, T_in, C, h, w]``, for ``config.observations`` alone.

        Raises:
            ValueError: frames, channels or grid do not fit, or observations are given to a network without, or lack.
        """
        self._check(noisy, condition, observations)
        dtype = self.aggregate.weight.dtype
        patch, width = self.config.patch, self.config.frame_width
        batch, frames, _, height, across = noisy.shape
        rows, columns = height // patch, across // patch
        pairs = torch.cat([noisy, condition], dim=2).to(dtype).flatten(0, 1)
        tokens = self.embed(pairs).flatten(2).transpose(1, 2) + position_table(rows, columns, width, like=pairs)

        stream = _Stream(tokens.reshape(batch, frames * rows * columns, width))
        stream = self._through(self.frame_blocks, stream, self.frame_time(timesteps, dtype), apart=frames)
        tokens = _settled(stream).unflatten(1, (frames, -1)).transpose(1, 2).flatten(2)
        context = None
        if self.observe is not None and observations is not None:
            seen = self.observe(observations.to(dtype).flatten(1, 2)).flatten(2).transpose(1, 2)
            context = seen + position_table(rows, columns, self.config.width, like=seen)
        time = self.time(timesteps, dtype)
        stream = self._through(self.blocks, _Stream(self.aggregate(tokens)), time, context=context)

        shift, scale = self.modulate(F.silu(time)).chunk(2, dim=-1)
        modulated, _ = adaln_norm(stream.tokens, shift, scale, branch=stream.branch, gate=stream.gate)
        patches = self.head(modulated).view(batch, rows, columns, patch, patch, frames, self.channels)
        return patches.permute(0, 5, 6, 1, 3, 2, 4).reshape(batch, frames, self.channels, height, across)

    def _through(self, blocks: nn.ModuleList, stream: _Stream, time: Tensor, **more) -> _Stream:
        for block in blocks:
            if self.config.checkpoint and self.training:
                stream = _Stream(*checkpoint(block, *stream, time, use_reentrant=False, **more))
            else:
                stream = block(*stream, time, **more)
        return stream

    def _check(self, noisy: Tensor, condition: Tensor, observations: Tensor | None) -> None:
        patch = self.config.patch
        if noisy.ndim != 5 or noisy.shape[1:3] != (self.frames, self.channels) or noisy.shape != condition.shape:
            raise ValueError(
                f"latents {tuple(noisy.shape)} and condition {tuple(condition.shape)} must both be "
                f"[B, {self.frames}, {self.channels}, h, w]"
            )
        if noisy.shape[3] % patch or noisy.shape[4] % patch:
            raise ValueError(f"latents of {tuple(noisy.shape[3:])} do not fall into patches of {patch}")
        if (observations is None) != (self.observe is None):
            raise ValueError(
                "observations are given to a network without casformer.observations"
                if self.observe is None
                else "casformer.observations=true needs the latents of the observed frames"
            )

    def _initialise(self) -> None:
        """AdaLN-Zero (Peebles and Xie, section 3.2): at first every block is the identity and the prediction 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.frame_time, self.time):
            for layer in (embedding.inner, embedding.outer):
                nn.init.normal_(layer.weight, std=0.02)
        for block in (*self.frame_blocks, *self.blocks):
            assert isinstance(block, Block)
            nn.init.zeros_(block.modulate.weight)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.head.weight)


class TimestepEmbedding(nn.Module):
    """Timesteps to vectors: sines and cosines (Vaswani et al. 2017, section 3.5), and two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(_FREQUENCIES, width), nn.Linear(width, width)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``[B, D]`` of timesteps ``[B]``; the angles are fp32 whatever the weights are."""
        wide = torch.promote_types(dtype, torch.float32)
        exponents = torch.arange(_FREQUENCIES // 2, dtype=wide, device=timesteps.device) / (_FREQUENCIES // 2)
        angles = timesteps.to(wide)[:, None] * torch.exp(-math.log(_LONGEST) * exponents)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        return self.outer(F.silu(self.inner(waves)))


class Block(nn.Module):
    """Attention and feed-forward, modulated and gated by the timestep; with ``crosses``, attention to a context too."""

    def __init__(self, width: int, heads: int, ratio: float, *, crosses: bool = False):
        super().__init__()
        self.branches = 3 if crosses else 2
        hidden = int(width * ratio)
        self.attention = Attention(width, heads)
        self.cross = CrossAttention(width, heads) if crosses else None
        self.feed_forward = FeedForward(width, hidden)
        self.modulate = nn.Linear(width, 3 * self.branches * width)

    def forward(
        self,
        tokens: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        time: Tensor,
        *,
        apart: int = 1,
        context: Tensor | None = None,
    ) -> _Stream:
        """Return the stream after this block.

        Args:
            tokens: ``[N, L, D]``.
            branch: what the branch before adds, or None.
            gate: its weight.
            time: embedded timesteps, ``[N, D]``.
            apart: parts of the L tokens that do not see one another, such as frames.
            context: tokens ``[N, L', D]`` for the cross-attention.
        """
        parts = self.modulate(F.silu(time)).chunk(3 * self.branches, dim=-1)
        steps = [parts[i : i + 3] for i in range(0, len(parts), 3)]
        (shift, scale, next_gate), *rest = steps
        modulated, tokens = adaln_norm(tokens, shift, scale, branch=branch, gate=gate)
        split = modulated.unflatten(1, (apart, -1)).flatten(0, 1)
        branch, gate = self.attention(split).reshape(modulated.shape), next_gate
        if self.cross is not None and context is not None:
            (shift, scale, next_gate), *rest = rest
            modulated, tokens = adaln_norm(tokens, shift, scale, branch=branch, gate=gate)
            branch, gate = self.cross(modulated, context), next_gate
        ((shift, scale, next_gate),) = rest
        modulated, tokens = adaln_norm(tokens, shift, scale, branch=branch, gate=gate)
        return _Stream(tokens, self.feed_forward(modulated), next_gate)


class Attention(nn.Module):
    """All tokens of a sample see one another: ``[N, L, D] -> [N, L, D]``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the tokens saw."""
        query, key, value = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        return self.out(seen.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Tokens see those of a context: ``[N, L, D], [N, L', D] -> [N, L, D]``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.project, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return what the tokens saw of the context."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.project(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers with GELU (its tanh form) between: ``[N, L, D] -> [N, L, D]``."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the tokens made of themselves."""
        return self.outer(F.gelu(self.inner(x), approximate="tanh"))


def _settled(stream: _Stream) -> Tensor:
    if stream.branch is None or stream.gate is None:
        return stream.tokens
    return stream.tokens + stream.gate[:, None] * stream.branch


def position_table(rows: int, columns: int, width: int, *, like: Tensor) -> Tensor:
    """Return the fixed vector of each place, ``[rows * columns, D]``: half of it tells the column, half the row.

    Computed where it is used, in float64, and cast last: as a buffer an engine would cast it with the weights.
    """
    quarter = width // 4
    exponents = torch.arange(quarter, dtype=torch.float64, device=like.device) / quarter
    frequencies = _LONGEST**-exponents

    def waves(places: int) -> Tensor:
        angles = torch.arange(places, dtype=torch.float64, device=like.device)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    column = waves(columns)[None].expand(rows, -1, -1)
    row = waves(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1).to(like.dtype)
