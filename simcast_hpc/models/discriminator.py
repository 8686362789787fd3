"""The patch discriminator of the adversarial loss of autoencoders.

Source: Isola et al., Image-to-image translation with conditional adversarial networks (2017), section 3.2.2. It uses
group norm instead of batch norm, so that the logits of a frame do not depend on the other frames or on the ranks.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import DiscriminatorConfig

_MAX_GROWTH = 8
_LEAKY_SLOPE = 0.2


class Discriminator(nn.Module):
    """Classify patches of frames as observed or reconstructed: ``[N, C, H, W]`` to logits ``[N, 1, h, w]``."""

    def __init__(self, config: DiscriminatorConfig, *, channels: int = 1):
        super().__init__()
        widths = [config.width * min(2**i, _MAX_GROWTH) for i in range(config.layers + 1)]
        self.stem = nn.Conv2d(channels, widths[0], 4, stride=2, padding=1)
        strides = [2] * (config.layers - 1) + [1]
        self.convs = nn.ModuleList(
            nn.Conv2d(width_in, width_out, 4, stride=stride, padding=1, bias=False)
            for width_in, width_out, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(config.groups, width) for width in widths[1:])
        self.head = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logits, large where a patch is classified as observed."""
        x = F.leaky_relu(self.stem(frames), _LEAKY_SLOPE)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), _LEAKY_SLOPE)
        return self.head(x)

    @property
    def smallest_frame(self) -> int:
        """Pixels along an axis below which the output has no patch."""
        return 3 * 2 ** len(self.convs)
