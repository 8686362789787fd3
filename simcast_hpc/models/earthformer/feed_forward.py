"""What follows an attention: a normalised two-layer network on each token."""

from torch import Tensor, nn

from simcast_hpc.config import EarthformerConfig

from .activations import ACTIVATIONS
from .normed import normed_linear

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
        if self.gate is None:
            (wide,) = normed_linear(x, self.norm, [self.widen])
            hidden = self.activation(wide)
        else:
            gate, wide = normed_linear(x, self.norm, [self.gate, self.widen])
            hidden = self.activation(gate) * wide
        return x + self.dropout(self.narrow(self.dropout(hidden)))
