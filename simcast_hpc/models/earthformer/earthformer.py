"""The Earthformer model: stem, positions, encoder, decoder, head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig
from simcast_hpc.models.layers import Fp32Linear
from simcast_kernels.bias_activation import replaces

from .attention import CuboidCrossAttention, CuboidSelfAttention
from .blocks import CrossAttentionBlock, FeedForward, Positions, SelfAttentionBlock
from .patterns import check_patterns, level_grids, pattern_at
from .stems import LEAKY_SLOPE, PatchMerge, Upsample, build_head_stages, build_stem, head_width, stem_grids


class Encoder(nn.Module):
    """Encode tokens of the finest level to a memory of each level, finest first.

    Source: Gao et al. (arXiv 2207.05833), section 3.3.
    """

    def __init__(self, config: EarthformerConfig, *, frames_in: int):
        super().__init__()
        grids = level_grids(config)
        with_vectors = config.global_vectors.count > 0
        coarser = range(1, config.levels)
        self.merges = nn.ModuleList(
            PatchMerge(
                config.width_at(level - 1), config.width_at(level), scale=config.downsampling, padding=config.padding
            )
            for level in coarser
        )
        self.vector_merges = nn.ModuleList(
            nn.Linear(config.width_at(level - 1), config.width_at(level)) for level in coarser if with_vectors
        )
        self.levels = nn.ModuleList(
            nn.ModuleList(
                SelfAttentionBlock(
                    config,
                    level=level,
                    pattern=pattern_at(config.encoder_pattern, level),
                    pattern_tokens=(frames_in, *grids[level]),
                    tokens=(frames_in, *grids[level]),
                    feed_forward_between=config.encoder_feed_forward_between,
                    global_vectors=with_vectors,
                )
                for _ in range(depth)
            )
            for level, depth in enumerate(config.encoder_depth)
        )

    def forward(self, x: Tensor, vectors: Tensor | None, *, seed: int) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return tokens ``[B, T, H, W, D]`` and global vectors ``[B, G, D]`` of each level, finest first."""
        memories: list[Tensor] = []
        vector_memories: list[Tensor | None] = []
        for level, blocks in enumerate(self.levels):
            assert isinstance(blocks, nn.ModuleList)
            if level:
                x = self.merges[level - 1](x)
                vectors = None if vectors is None else self.vector_merges[level - 1](vectors)
            for block in blocks:
                x, vectors = block(x, vectors, seed=seed)
            memories.append(x)
            vector_memories.append(vectors)
        return memories, vector_memories


class InitialQuery(nn.Module):
    """Input of the decoder on the coarsest grid: ``[B, T, h, w, D] -> [B, T', h, w, D]``.

    ``zeros`` uses only the positions, ``nearest_interp`` the frames of the memory resampled to T', ``last`` its last
    frame and ``mean`` its mean over time; a projection follows.
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
        frame = memory[:, -1:] if self.kind == "last" else memory.mean(dim=1, keepdim=True)
        return self.project(frame).expand(shape)


class DecoderLevel(nn.Module):
    """Alternating blocks of self-attention and cross-attention on one grid.

    Without ``self_first`` the level starts with cross-attention: a first self-attention would see only positions.
    """

    def __init__(self, config: EarthformerConfig, *, level: int, frames_in: int, frames_out: int, self_first: bool):
        super().__init__()
        grid = level_grids(config)[level]
        depth = config.decoder_depth[level]
        self.self_first = self_first
        self.passes_globals = config.global_vectors.updated_in_decoder
        self.self_attends_globals = config.global_vectors.in_decoder
        self.self_blocks = nn.ModuleList(
            SelfAttentionBlock(
                config,
                level=level,
                pattern=pattern_at(config.decoder_pattern, level),
                pattern_tokens=(frames_in, *grid),
                tokens=(frames_out, *grid),
                feed_forward_between=config.decoder_feed_forward_between,
                global_vectors=self.self_attends_globals,
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
        for i, cross in enumerate(self.cross_blocks):
            if i >= skipped:
                block_vectors = vectors if self.self_attends_globals else None
                x, block_vectors = self.self_blocks[i - skipped](x, block_vectors, seed=seed)
                if self.self_attends_globals and self.passes_globals:
                    vectors = block_vectors
            x = cross(x, memory, vectors, seed=seed)
        return x


class Decoder(nn.Module):
    """Decode the query on the coarsest grid to tokens ``[B, T', H, W, D]`` of the finest, all frames in one pass.

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
            Upsample(config.width_at(level + 1), config.width_at(level), grid=grids[level]) for level in range(coarsest)
        )
        self.positions = nn.ModuleList(
            Positions(config.positions, tokens=(frames_out, *grids[level]), width=config.width_at(level))
            for level in range(coarsest)
            if config.decoder_positions
        )

    def forward(self, query: Tensor, memories: list[Tensor], vectors: list[Tensor | None], *, seed: int) -> Tensor:
        """Return tokens of the finest level; ``memories`` and ``vectors`` are those of the encoder, finest first."""
        x = query
        for level in reversed(range(len(self.levels))):
            x = self.levels[level](x, memories[level], vectors[level], seed=seed)
            if level:
                x = self.ups[level - 1](x)
                if self.positions:
                    x = self.positions[level - 1](x)
        return x


# Attentions of one forward pass share a random seed and add their offset, so seeds are multiples of this number.
SEEDS_PER_PASS = 2**16
FEED_FORWARD_SEEDS = 2**15  # offset of the first feed-forward


class Earthformer(nn.Module):
    """Earthformer, non-autoregressive: ``[B, T, C, H, W] -> [B, T', C', H, W]``, fp32 out.

    One pass predicts all T' frames. Predictions are unbounded: no activation follows the head. In training with
    ``attention_dropout`` each pass draws one seed from torch's CPU generator, outside of checkpointed blocks, and each
    attention adds its offset. The dropout of feed-forwards does the same where ``bias_activation`` runs as a kernel.
    Other dropout uses the generator of its device.

    Args:
        config: the ``model`` section of a run's configuration; ``grid`` is H and W.
        frames_in: T.
        frames_out: T'.
        channels_in: C.
        channels_out: C'.

    Raises:
        ValueError: a pattern is unknown, or the sizes are inconsistent.

    Source: Gao et al. (NeurIPS 2022, arXiv 2207.05833). As in the official training code, linear and convolution
    weights are initialized from normal distributions of variance 1 / fan-in, with He's factor for the activation of the
    stem; biases are 0; tables come from a truncated normal distribution of standard deviation 0.02.
    """

    compiled_method = "forecast"  # what torch.compile sees: the seed is drawn before

    def __init__(
        self, config: EarthformerConfig, *, frames_in: int, frames_out: int, channels_in: int = 1, channels_out: int = 1
    ):
        super().__init__()
        for name, value in (
            ("frames_in", frames_in),
            ("frames_out", frames_out),
            ("channels_in", channels_in),
            ("channels_out", channels_out),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.frames_in, self.frames_out, self.channels_in = frames_in, frames_out, channels_in
        self.grid = stem_grids(config)[0]
        check_patterns(config, frames_in=frames_in)
        vectors, finest = config.global_vectors, level_grids(config)[0]
        self.stem = build_stem(config, channels=channels_in)
        self.positions = Positions(config.positions, tokens=(frames_in, *finest), width=config.width)
        self.global_vectors = nn.Parameter(torch.empty(vectors.count, config.width)) if vectors.count else None
        self.encoder = Encoder(config, frames_in=frames_in)
        self.query = InitialQuery(config, frames_out=frames_out)
        self.decoder = Decoder(config, frames_in=frames_in, frames_out=frames_out)
        self.head_stages = build_head_stages(config)
        self.head = Fp32Linear(head_width(config), channels_out)
        self.attention_dropout, self.feed_forward_dropout = config.attention_dropout, config.feed_forward_dropout
        self._assign_seed_offsets()
        if not (vectors.in_decoder or vectors.in_cross_attention):
            self._disable_last_global_update()
        self._initialize_weights()

    def forward(self, frames: Tensor) -> Tensor:
        """Forecast the next frames.

        Args:
            frames: ``[B, T, C, H, W]``, floating point, in [0, 1], on the configured grid. Cast to the dtype of the
                weights.

        Returns:
            ``[B, T', C', H, W]``, fp32, in the units of the input.

        Raises:
            TypeError: ``frames`` is not floating point.
            ValueError: ``frames`` has a shape other than the configured one.
        """
        self._check_frames(frames)
        return self.forecast(frames, _random_seed() if self.training and self._uses_seeds(frames) else 0)

    def forecast(self, frames: Tensor, seed: int) -> Tensor:
        """Forecast the next frames from valid input, with the seed of the attention dropout; see :meth:`forward`."""
        batch = frames.shape[0]  # len() would fix the size in an exported program
        pixels = frames.to(self.head.weight.dtype).flatten(0, 1).permute(0, 2, 3, 1)
        x = self.positions(self.stem(pixels).unflatten(0, (batch, self.frames_in)))
        vectors = None if self.global_vectors is None else self.global_vectors.expand(batch, -1, -1)
        memories, vector_memories = self.encoder(x, vectors, seed=seed)
        tokens = self.decoder(self.query(memories[-1]), memories, vector_memories, seed=seed)
        forecast = self.head(self.head_stages(tokens.flatten(0, 1)))
        return forecast.permute(0, 3, 1, 2).unflatten(0, (batch, self.frames_out))

    def time_tables(self) -> list[str]:
        """Return the names of the parameters with one row per input frame ``[T, D]`` or forecast frame ``[T', D]``."""
        return [
            "positions.time",
            "query.positions.time",
            *(f"decoder.positions.{i}.time" for i in range(len(self.decoder.positions))),
        ]

    def _uses_seeds(self, frames: Tensor) -> bool:
        """Return whether a dropout depends on the seed; an unneeded seed would change other random numbers."""
        if self.attention_dropout > 0:
            return True
        return self.feed_forward_dropout > 0 and replaces(frames.new_empty(1, dtype=self.head.weight.dtype))

    def _check_frames(self, frames: Tensor) -> None:
        expected = (self.frames_in, self.channels_in, *self.grid)
        if frames.ndim != 5 or tuple(frames.shape[1:]) != expected or frames.shape[0] == 0:
            raise ValueError(
                f"frames have shape {tuple(frames.shape)}; this Earthformer requires [B, "
                f"{', '.join(map(str, expected))}] (frames_in, channels_in and model.grid)"
            )
        if not frames.is_floating_point():
            raise TypeError(
                f"frames have dtype {frames.dtype}; Earthformer requires floating point in [0, 1]: divide uint8 values "
                "by 255"
            )

    def _assign_seed_offsets(self) -> None:
        kinds = (CuboidSelfAttention, CuboidCrossAttention)
        for offset, attention in enumerate(module for module in self.modules() if isinstance(module, kinds)):
            attention.seed_offset = offset
        feed_forwards = (module for module in self.modules() if isinstance(module, FeedForward))
        for number, feed_forward in enumerate(feed_forwards):  # of two kernels
            feed_forward.seed_offset = FEED_FORWARD_SEEDS + 2 * number

    def _disable_last_global_update(self) -> None:
        """Skip the update of the global vectors in the last attention of the encoder: no later layer reads it."""
        *_, last = (module for module in self.encoder.modules() if isinstance(module, CuboidSelfAttention))
        last.updates_globals = False

    def _initialize_weights(self) -> None:
        if self.global_vectors is not None:
            nn.init.trunc_normal_(self.global_vectors, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _random_seed() -> int:
    return int(torch.randint(2**46, (), device="cpu")) * SEEDS_PER_PASS
