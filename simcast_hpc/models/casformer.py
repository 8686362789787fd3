"""CasFormer: a denoiser of latent sequences conditioned on the latents of a deterministic forecast.

Source: Gong et al., CasCast (2024), section 3.3, with the DiT blocks of Peebles and Xie (2023). A frame-wise encoder
with shared weights processes each frame of noisy latents and condition, a linear layer aggregates the frames, and a
sequence decoder processes them jointly. The timestep modulates every block. The residual addition, norm and modulation
between two branches are one call of ``adaln_norm``.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simcast_hpc.config import CasFormerConfig
from simcast_kernels.adaln_norm import adaln_norm
from simcast_kernels.bias_activation import bias_activation, replaces

from .layers import Fp32Linear

_TIME_FEATURES = 256
_MAX_PERIOD = 10_000.0


class _Stream(NamedTuple):
    """Tokens ``[N, L, D]`` and the pending residual of the last branch, ``branch`` times ``gate`` ``[N, D]``."""

    tokens: Tensor
    branch: Tensor | None = None
    gate: Tensor | None = None


class CasFormer(nn.Module):
    """Predict noise or v of latents ``[B, T, C, h, w]``, fp32 out; h and w are multiples of ``config.patch``.

    Args:
        config: the ``casformer`` section of a run's configuration.
        frames: T, number of forecast frames.
        channels: C, channels of a latent.
        frames_in: number of observed frames; required if ``config.observations`` is set.

    Attributes:
        published_positions: side of the published position table in patches; set by ``models.published_weights``.
    """

    published_positions: int | None = None

    def __init__(self, config: CasFormerConfig, *, frames: int, channels: int, frames_in: int | None = None):
        super().__init__()
        if config.observations and frames_in is None:
            raise ValueError("casformer.observations=true requires frames_in, the number of observed frames")
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
            Block(config.width, config.heads, ratio, cross_attention=config.observations) for _ in range(config.depth)
        )
        self.observe = None
        if config.observations and frames_in is not None:
            self.observe = nn.Conv2d(frames_in * channels, config.width, patch, stride=patch)
        self.modulate = nn.Linear(config.width, 2 * config.width)
        self.head = Fp32Linear(config.width, frames * channels * patch**2)
        self._initialize()

    def forward(
        self, noisy: Tensor, timesteps: Tensor, condition: Tensor, observations: Tensor | None = None
    ) -> Tensor:
        """Return the prediction, fp32 ``[B, T, C, h, w]``.

        Args:
            noisy: latents x_t, ``[B, T, C, h, w]``.
            timesteps: t of each sample, int64 ``[B]``.
            condition: latents of the deterministic forecast, same shape; zeros mean unconditional.
            observations: latents of the observed frames, ``[B, T_in, C, h, w]``; only with ``config.observations``.

        Raises:
            ValueError: invalid frames, channels or grid; observations are missing, or the network does not use them.
        """
        self._check(noisy, condition, observations)
        dtype = self.aggregate.weight.dtype
        patch, frame_width = self.config.patch, self.config.frame_width
        batch, frames, _, height, width = noisy.shape
        rows, columns = height // patch, width // patch

        # 1. Frame-wise encoder
        pairs = torch.cat([noisy, condition], dim=2).to(dtype).flatten(0, 1)
        tokens = self.embed(pairs).flatten(2).transpose(1, 2) + position_table(rows, columns, frame_width, like=pairs)
        stream = _Stream(tokens.reshape(batch, frames * rows * columns, frame_width))
        stream = self._run_blocks(self.frame_blocks, stream, self.frame_time(timesteps, dtype), segments=frames)

        # 2. Sequence decoder on the aggregated frames
        tokens = _add_branch(stream).unflatten(1, (frames, -1)).transpose(1, 2).flatten(2)
        context = None
        if self.observe is not None and observations is not None:
            observed = self.observe(observations.to(dtype).flatten(1, 2)).flatten(2).transpose(1, 2)
            context = observed + position_table(rows, columns, self.config.width, like=observed)
        time = self.time(timesteps, dtype)
        stream = self._run_blocks(self.blocks, _Stream(self.aggregate(tokens)), time, context=context)

        # 3. Output layer and patches to grid
        shift, scale = self.modulate(F.silu(time)).chunk(2, dim=-1)
        modulated, _ = adaln_norm(stream.tokens, shift, scale, branch=stream.branch, gate=stream.gate)
        patches = self.head(modulated).view(batch, rows, columns, patch, patch, frames, self.channels)
        return patches.permute(0, 5, 6, 1, 3, 2, 4).reshape(batch, frames, self.channels, height, width)

    def _run_blocks(self, blocks: nn.ModuleList, stream: _Stream, time: Tensor, **options) -> _Stream:
        for block in blocks:
            if self.config.checkpoint and self.training:
                stream = _Stream(*checkpoint(block, *stream, time, use_reentrant=False, **options))
            else:
                stream = block(*stream, time, **options)
        return stream

    def _check(self, noisy: Tensor, condition: Tensor, observations: Tensor | None) -> None:
        patch = self.config.patch
        if noisy.ndim != 5 or noisy.shape[1:3] != (self.frames, self.channels) or noisy.shape != condition.shape:
            raise ValueError(
                f"latents {tuple(noisy.shape)} and condition {tuple(condition.shape)} must both be "
                f"[B, {self.frames}, {self.channels}, h, w]"
            )
        if noisy.shape[3] % patch or noisy.shape[4] % patch:
            raise ValueError(
                f"the grid of the latents {tuple(noisy.shape[3:])} is not a multiple of casformer.patch={patch}"
            )
        if (observations is None) != (self.observe is None):
            raise ValueError(
                "observations require casformer.observations=true"
                if self.observe is None
                else "casformer.observations=true requires the latents of the observed frames"
            )

    def _initialize(self) -> None:
        """Initialize as AdaLN-Zero (Peebles and Xie, section 3.2): each block is the identity and the prediction 0."""
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
    """Embed timesteps: sines and cosines (Vaswani et al. 2017, section 3.5) and two linear layers."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(_TIME_FEATURES, width), nn.Linear(width, width)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the embedding ``[B, D]`` of timesteps ``[B]``; angles are computed at least in fp32."""
        angle_dtype = torch.promote_types(dtype, torch.float32)
        exponents = torch.arange(_TIME_FEATURES // 2, dtype=angle_dtype, device=timesteps.device) / (
            _TIME_FEATURES // 2
        )
        angles = timesteps.to(angle_dtype)[:, None] * torch.exp(-math.log(_MAX_PERIOD) * exponents)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        return self.outer(F.silu(self.inner(waves)))


class Block(nn.Module):
    """Attention, optional cross-attention and feed-forward, each modulated and gated by the timestep."""

    def __init__(self, width: int, heads: int, ratio: float, *, cross_attention: bool = False):
        super().__init__()
        self.branches = 3 if cross_attention else 2
        hidden = int(width * ratio)
        self.attention = Attention(width, heads)
        self.cross = CrossAttention(width, heads) if cross_attention else None
        self.feed_forward = FeedForward(width, hidden)
        self.modulate = nn.Linear(width, 3 * self.branches * width)

    def forward(
        self,
        tokens: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        time: Tensor,
        *,
        segments: int = 1,
        context: Tensor | None = None,
    ) -> _Stream:
        """Return the stream after this block.

        Args:
            tokens: ``[N, L, D]``.
            branch: output of the previous branch, not yet added to ``tokens``; or None.
            gate: weight of ``branch``, ``[N, D]``.
            time: embedded timesteps, ``[N, D]``.
            segments: number of equal segments of the L tokens, such as frames; attention stays within a segment.
            context: tokens ``[N, L', D]`` for the cross-attention.
        """
        chunks = self.modulate(F.silu(time)).chunk(3 * self.branches, dim=-1)
        modulations = [chunks[i : i + 3] for i in range(0, len(chunks), 3)]

        # 1. Self-attention
        (shift, scale, next_gate), *rest = modulations
        modulated, tokens = adaln_norm(tokens, shift, scale, branch=branch, gate=gate)
        split = modulated.unflatten(1, (segments, -1)).flatten(0, 1)
        branch, gate = self.attention(split).reshape(modulated.shape), next_gate

        # 2. Cross-attention to the context
        if self.cross is not None and context is not None:
            (shift, scale, next_gate), *rest = rest
            modulated, tokens = adaln_norm(tokens, shift, scale, branch=branch, gate=gate)
            branch, gate = self.cross(modulated, context), next_gate

        # 3. Feed-forward
        ((shift, scale, next_gate),) = rest
        modulated, tokens = adaln_norm(tokens, shift, scale, branch=branch, gate=gate)
        return _Stream(tokens, self.feed_forward(modulated), next_gate)


class Attention(nn.Module):
    """Self-attention over the tokens of a sample: ``[N, L, D] -> [N, L, D]``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values."""
        query, key, value = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of tokens to those of a context: ``[N, L, D], [N, L', D] -> [N, L, D]``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.project, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the attended values of the context."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.project(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU (tanh approximation) between them: ``[N, L, D] -> [N, L, D]``."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the second layer."""
        if replaces(x, self.inner):
            hidden = bias_activation(F.linear(x, self.inner.weight), self.inner.bias, activation="gelu_tanh")
            return self.outer(hidden)
        return self.outer(F.gelu(self.inner(x), approximate="tanh"))


def _add_branch(stream: _Stream) -> Tensor:
    if stream.branch is None or stream.gate is None:
        return stream.tokens
    return stream.tokens + stream.gate[:, None] * stream.branch


def position_table(rows: int, columns: int, width: int, *, like: Tensor) -> Tensor:
    """Return sine-cosine position embeddings ``[rows * columns, D]``, half of the features for the column.

    Computed in float64 at each use and cast last: an engine would cast a buffer together with the weights.
    """
    quarter = width // 4
    exponents = torch.arange(quarter, dtype=torch.float64, device=like.device) / quarter
    frequencies = _MAX_PERIOD**-exponents

    def waves(positions: int) -> Tensor:
        angles = torch.arange(positions, dtype=torch.float64, device=like.device)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    column = waves(columns)[None].expand(rows, -1, -1)
    row = waves(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1).to(like.dtype)
