"""The decoder: from a query on the coarsest grid to tokens of all next frames, asking the memory of every level."""

import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig

from .blocks import CrossAttentionBlock, SelfAttentionBlock
from .levels import level_grids, pattern_at
from .positions import Positions
from .upsample import UpSample


class InitialQuery(nn.Module):
    """What the decoder starts from: ``[B, T, h, w, D] -> [B, T', h, w, D]`` on the coarsest grid.

    ``zeros`` is the positions alone, ``nearest_interp`` the memory's frames repeated to T', ``last`` its last frame
    and ``mean`` its mean; then a projection.
    """

    def __init__(self, config: EarthformerConfig, *, frames_out: int):
        super().__init__()
        self.kind, self.frames_out = config.decoder_query, frames_out
        width, grid = config.width_at(config.levels - 1), level_grids(config)[-1]
        self.positions = Positions(config.positions, tokens=(frames_out, *grid), width=width)
        self.project = nn.Linear(width, width)

    def forward(self, memory: Tensor) -> Tensor:
        """Return the query."""
        batch, _, height, width, features = memory.shape
        shape = (batch, self.frames_out, height, width, features)
        if self.kind == "zeros":
            zeros = memory.new_zeros(1, *shape[1:])
            return self.project(self.positions(zeros)).expand(shape)
        if self.kind == "nearest_interp":
            frames = F.interpolate(memory.flatten(2).transpose(1, 2), size=self.frames_out).transpose(1, 2)
            return self.project(frames.reshape(shape))
        chosen = memory[:, -1:] if self.kind == "last" else memory.mean(dim=1, keepdim=True)
        return self.project(chosen).expand(shape)


class DecoderLevel(nn.Module):
    """Blocks of self-attention and cross-attention in turn, on one grid.

    ``self_first`` False leaves out the first self-attention: before anything was asked of the memory it would see
    positions alone.
    """

    def __init__(self, config: EarthformerConfig, *, level: int, frames_in: int, frames_out: int, self_first: bool):
        super().__init__()
        grid = level_grids(config)[level]
        depth = config.decoder_depth[level]
        self.self_first = self_first
        self.hands_on = config.global_vectors.updated_in_decoder
        self.shows_vectors = config.global_vectors.in_decoder
        self.self_blocks = nn.ModuleList(
            SelfAttentionBlock(
                config,
                level=level,
                pattern=pattern_at(config.decoder_pattern, level),
                pattern_tokens=(frames_in, *grid),
                tokens=(frames_out, *grid),
                feed_forward_between=config.decoder_feed_forward_between,
                global_vectors=self.shows_vectors,
            )
            for _ in range(depth if self_first else depth - 1)
        )
        self.cross_blocks = nn.ModuleList(
            CrossAttentionBlock(
                config,
                level=level,
                pattern=pattern_at(config.cross_pattern, level),
                memory=(frames_in, *grid),
                frames_out=frames_out,
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor, memory: Tensor, vectors: Tensor | None, *, seed: int) -> Tensor:
        """Return the tokens ``[B, T', H, W, D]`` after the level."""
        skipped = 0 if self.self_first else 1
        for place, cross in enumerate(self.cross_blocks):
            if place >= skipped:
                x, renewed = self.self_blocks[place - skipped](x, vectors if self.shows_vectors else None, seed=seed)
                if self.shows_vectors and self.hands_on:
                    vectors = renewed
            x = cross(x, memory, vectors, seed=seed)
        return x


class Decoder(nn.Module):
    """From the query on the coarsest grid to tokens ``[B, T', H, W, D]`` of the finest, all frames at once.

    Source: Gao et al. (arXiv 2207.05833), section 3.3.
    """

    def __init__(self, config: EarthformerConfig, *, frames_in: int, frames_out: int):
        super().__init__()
        grids, coarsest = level_grids(config), config.levels - 1
        self.levels = nn.ModuleList(
            DecoderLevel(
                config,
                level=level,
                frames_in=frames_in,
                frames_out=frames_out,
                self_first=level < coarsest or config.decoder_first_self_attention,
            )
            for level in range(config.levels)
        )
        self.ups = nn.ModuleList(
            UpSample(config.width_at(level + 1), config.width_at(level), grid=grids[level]) for level in range(coarsest)
        )
        self.positions = nn.ModuleList(
            Positions(config.positions, tokens=(frames_out, *grids[level]), width=config.width_at(level))
            for level in range(coarsest)
            if config.decoder_positions
        )

    def forward(self, query: Tensor, memories: list[Tensor], vectors: list[Tensor | None], *, seed: int) -> Tensor:
        """Return the finest tokens; ``memories`` and ``vectors`` are the encoder's, finest first."""
        x = query
        for level in reversed(range(len(self.levels))):
            x = self.levels[level](x, memories[level], vectors[level], seed=seed)
            if level:
                x = self.ups[level - 1](x)
                if self.positions:
                    x = self.positions[level - 1](x)
        return x
