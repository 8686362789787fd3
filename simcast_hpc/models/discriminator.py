"""The patch discriminator of the adversarial loss of autoencoders.

Source: Isola et al., Image-to-image translation with conditional adversarial networks (2017), section 3.2.2. It uses
group norm instead of batch norm, so that the logits of a frame do not depend on the other frames or on the ranks.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from simcast_hpc.config import DiscriminatorConfig

from .group_norm_silu import channels_last_on_cuda, norm_activation

_MAX_GROWTH = 8
_LEAKY_SLOPE = 0.2
_FUSED = {"activation": "leaky_relu", "slope": _LEAKY_SLOPE}  # as arguments of the kernel


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _LEAKY_SLOPE)


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
        x = F.leaky_relu(self.stem(channels_last_on_cuda(frames)), _LEAKY_SLOPE)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm_activation(conv(x), norm, _leaky_relu, _FUSED)  # pyright: ignore[reportArgumentType]
        return self.head(x)

    @property
    def smallest_frame(self) -> int:
        """Pixels along an axis below which the output has no patch."""
        return 3 * 2 ** len(self.convs)
