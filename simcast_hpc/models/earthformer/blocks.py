"""A block: the attentions of a pattern one after another, each added to its input, with feed-forwards."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simcast_hpc.config import EarthformerConfig

from .attention import CuboidSelfAttention
from .cross_attention import CuboidCrossAttention
from .feed_forward import FeedForward
from .patterns import Triple, cross_attention_pattern, self_attention_pattern


class SelfAttentionBlock(nn.Module):
    """Cuboid self-attentions: ``[B, T, H, W, D] -> [B, T, H, W, D]``, and the global vectors ``[B, G, D]``.

    A feed-forward follows each attention, or, where none stand between, the last. ``pattern_tokens`` is the grid for
    which the pattern's cuboids are made, ``tokens`` the one that they meet.
    """

    def __init__(
        self,
        config: EarthformerConfig,
        *,
        level: int,
        pattern: str,
        pattern_tokens: Triple,
        tokens: Triple,
        feed_forward_between: bool,
        global_vectors: bool,
    ):
        super().__init__()
        width = config.width_at(level)
        self.recompute = level in config.checkpoint_levels
        self.attentions = nn.ModuleList(
            CuboidSelfAttention(config, width=width, cuboid=cuboid, tokens=tokens, global_vectors=global_vectors)
            for cuboid in self_attention_pattern(pattern, pattern_tokens)
        )
        count = len(self.attentions) if feed_forward_between else 1
        self.feed_forwards = nn.ModuleList(FeedForward(config, width=width) for _ in range(count))
        vectors_too = global_vectors and config.global_vectors.feed_forward
        self.global_feed_forwards = nn.ModuleList(
            FeedForward(config, width=width) for _ in range(count if vectors_too else 0)
        )

    def forward(self, x: Tensor, vectors: Tensor | None, *, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return tokens and global vectors after the block; computed again in backward if configured so."""
        if self.recompute and self.training:
            return checkpoint(self._attend, x, vectors, seed, use_reentrant=False)
        return self._attend(x, vectors, seed)

    def _attend(self, x: Tensor, vectors: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        first_with = len(self.attentions) - len(self.feed_forwards)
        for place, attention in enumerate(self.attentions):
            learnt, renewed = attention(x, vectors, seed=seed)
            x = x + learnt
            if renewed is not None:
                vectors = vectors + renewed
            if place >= first_with:
                x = self.feed_forwards[place - first_with](x)
                if renewed is not None and self.global_feed_forwards:
                    vectors = self.global_feed_forwards[place - first_with](vectors)
        return x, vectors


class CrossAttentionBlock(nn.Module):
    """Cuboid cross-attentions to one level's memory: ``[B, T', H, W, D] -> [B, T', H, W, D]``."""

    def __init__(self, config: EarthformerConfig, *, level: int, pattern: str, memory: Triple, frames_out: int):
        super().__init__()
        width = config.width_at(level)
        self.recompute = level in config.checkpoint_levels
        self.attentions = nn.ModuleList(
            CuboidCrossAttention(config, width=width, cuboid=cuboid, memory=memory, frames_out=frames_out)
            for cuboid in cross_attention_pattern(pattern, memory)
        )
        count = len(self.attentions) if config.decoder_feed_forward_between else 1
        self.feed_forwards = nn.ModuleList(FeedForward(config, width=width) for _ in range(count))

    def forward(self, x: Tensor, memory: Tensor, vectors: Tensor | None, *, seed: int) -> Tensor:
        """Return the tokens after the block; computed again in backward if configured so."""
        if self.recompute and self.training:
            return checkpoint(self._attend, x, memory, vectors, seed, use_reentrant=False)
        return self._attend(x, memory, vectors, seed)

    def _attend(self, x: Tensor, memory: Tensor, vectors: Tensor | None, seed: int) -> Tensor:
        first_with = len(self.attentions) - len(self.feed_forwards)
        for place, attention in enumerate(self.attentions):
            x = x + attention(x, memory, vectors, seed=seed)
            if place >= first_with:
                x = self.feed_forwards[place - first_with](x)
        return x
