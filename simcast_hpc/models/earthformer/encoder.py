"""The encoder: blocks on ever coarser grids, and what each level remembers."""

from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig

from .blocks import SelfAttentionBlock
from .levels import level_grids, pattern_at
from .merge import PatchMerge


class Encoder(nn.Module):
    """Tokens of the finest level to a memory of every level, finest first.

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
        """Return each level's tokens ``[B, T, H, W, D]`` and global vectors ``[B, G, D]``, finest first."""
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
