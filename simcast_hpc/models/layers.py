"""Last projections: what a model puts out is fp32, whatever it was cast to."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WideConv2d(nn.Conv2d):
    """A convolution in fp32 or wider, with weights of any dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[N, C, H, W]``, fp32 (float64 for a model cast to float64)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        with _without_autocast(input):
            return F.conv2d(
                input.to(wide), self.weight.to(wide), None if self.bias is None else self.bias.to(wide),
                self.stride, self.padding,
            )  # fmt: skip


class WideLinear(nn.Linear):
    """A linear layer in fp32 or wider, with weights of any dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[..., D]``, fp32 (float64 for a model cast to float64)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        with _without_autocast(input):
            return F.linear(input.to(wide), self.weight.to(wide), None if self.bias is None else self.bias.to(wide))


def _without_autocast(input: Tensor):
    # The meta device, on which a run is checked before any device is touched, knows no autocast.
    return nullcontext() if input.is_meta else torch.autocast(input.device.type, enabled=False)
