"""What follows an attention: a normalised two-layer network on each token."""

from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig

from .activations import ACTIVATIONS

EXPANSION = 4


class FeedForward(nn.Module):
    """Layer norm, widen fourfold, activate, narrow, add to the input: ``[..., D] -> [..., D]``.

    Gated, the activated half multiplies a second projection (Shazeer, arXiv 2002.05202).
    """

    def __init__(self, config: EarthformerConfig, *, width: int):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, EXPANSION * width)
        self.gate = nn.Linear(width, EXPANSION * width) if config.gated else None
        self.narrow = nn.Linear(EXPANSION * width, width)
        self.dropout = nn.Dropout(config.feed_forward_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with what the network makes of it added."""
        normed = self.norm(x)
        if self.gate is None:
            hidden = self.activation(self.widen(normed))
        else:
            hidden = self.activation(self.gate(normed)) * self.widen(normed)
        return x + self.dropout(self.narrow(self.dropout(hidden)))
