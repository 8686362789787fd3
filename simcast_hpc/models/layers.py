"""Output layers that compute in fp32 whatever dtype the model was cast to."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fp32_precision import fp32_precision


class Fp32Conv2d(nn.Conv2d):
    """A convolution computed in fp32 with weights of any dtype: ``[N, D, H, W] -> [N, C, H, W]``.

    Used for the last projection of a model: one bf16 step near 1 is up to half of an encoded value out of 255.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the output in fp32, or in float64 for a model cast to float64."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with in_fp32(input):
            return self._conv_forward(input.to(dtype), self.weight.to(dtype), bias)


class Fp32Linear(nn.Linear):
    """A linear layer computed in fp32 with weights of any dtype: ``[..., D] -> [..., C]``; see :class:`Fp32Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the output in fp32, or in float64 for a model cast to float64."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with in_fp32(input):
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)


def in_fp32(input: Tensor) -> AbstractContextManager[Any]:
    """Disable autocast and TF32, also in a run that trains in TF32; the gradients of the layer follow the run."""
    if input.is_meta:  # on which a run is checked before a GPU is used; autocast does not support it
        return nullcontext()
    if torch.compiler.is_compiling():  # settings of the process are not traced: the caller makes them
        return torch.autocast(input.device.type, enabled=False)
    return _eagerly_in_fp32(input.device.type)


@contextmanager
def _eagerly_in_fp32(device_type: str) -> Iterator[None]:
    with fp32_precision(), torch.autocast(device_type, enabled=False):
        yield
