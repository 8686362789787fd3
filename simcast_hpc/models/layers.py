"""Output layers that compute in fp32 whatever dtype the model was cast to."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fp32Conv2d(nn.Conv2d):
    """A convolution computed in fp32 with weights of any dtype: ``[N, D, H, W] -> [N, C, H, W]``.

    Used for the last projection of a model: one bf16 step near 1 is up to half of an encoded value out of 255.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the output in fp32, or in float64 for a model cast to float64."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with _autocast_disabled(input):
            return self._conv_forward(input.to(dtype), self.weight.to(dtype), bias)


class Fp32Linear(nn.Linear):
    """A linear layer computed in fp32 with weights of any dtype: ``[..., D] -> [..., C]``; see :class:`Fp32Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the output in fp32, or in float64 for a model cast to float64."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with _autocast_disabled(input):
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)


def _autocast_disabled(input: Tensor) -> AbstractContextManager:
    # Autocast does not support the meta device, on which a run is checked before a GPU is used.
    return nullcontext() if input.is_meta else torch.autocast(input.device.type, enabled=False)
