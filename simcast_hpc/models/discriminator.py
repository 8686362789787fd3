"""The patch discriminator that autoencoders are trained against.

Source: Isola et al., Image-to-image translation with conditional adversarial networks (2017), section 3.2.2. Its batch
norm is a group norm here, so that what it says of a frame does not depend on the frames beside it, or on the ranks.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import DiscriminatorConfig

_MOST_GROWTH = 8
_SLOPE = 0.2


class Discriminator(nn.Module):
    """Say of each patch of frames ``[N, C, H, W]`` how real it looks: logits ``[N, 1, h, w]``."""

    def __init__(self, config: DiscriminatorConfig, *, channels: int = 1):
        super().__init__()
        widths = [config.width * min(2**i, _MOST_GROWTH) for i in range(config.layers + 1)]
        self.stem = nn.Conv2d(channels, widths[0], 4, stride=2, padding=1)
        strides = [2] * (config.layers - 1) + [1]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False)
            for before, width, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(config.groups, width) for width in widths[1:])
        self.head = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logits; large where a patch looks like an observation."""
        x = F.leaky_relu(self.stem(frames), _SLOPE)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), _SLOPE)
        return self.head(x)

    @property
    def smallest_frame(self) -> int:
        """Pixels along an axis below which no patch is left."""
        return 3 * 2 ** len(self.convs)
