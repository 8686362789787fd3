"""Run a network on the meta device with the operators that it runs on CUDA, so that the same tensors are counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from simcast_kernels.dispatch import meta_as_cuda


@contextmanager
def cuda_operators() -> Iterator[None]:
    """Let tensors on the meta device use the kernels, layouts and fused operators of CUDA.

    These are the kernels of this project, unless ``SIMCAST_KERNELS=reference``, channels-last convolutions, torch's
    group norm, which copies channels-last features, its fused attention, which does not store attention weights, and
    its fused dropout, which stores one byte per element. On the meta device
    torch would run the unfused operators of CPUs and return channels-first memory. Functions are patched because a
    torch dispatch mode would not apply to activations recomputed in backward.
    """
    plain_attention, plain_dropout = F.scaled_dot_product_attention, F.dropout
    plain_convolution, plain_norm = F.conv2d, F.group_norm

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not query.is_meta:
            return plain_attention(query, key, value)
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not input.is_meta or not training or inplace or not 0 < p < 1:
            return plain_dropout(input, p, training, inplace)
        return torch.native_dropout(input, p, True)[0]

    def convolution(input: Tensor, weight: Tensor, *more: Any, **options: Any) -> Tensor:
        output = plain_convolution(input, weight, *more, **options)
        formats = (suggest_memory_format(input), suggest_memory_format(weight))
        return _ChannelsLast.apply(output) if input.is_meta and torch.channels_last in formats else output  # pyright: ignore[reportReturnType]

    def group_norm(input: Tensor, *more: Any, **options: Any) -> Tensor:
        return plain_norm(input.contiguous() if input.is_meta else input, *more, **options)

    with (
        patch.object(F, "conv2d", convolution),
        patch.object(F, "group_norm", group_norm),
        patch.object(F, "scaled_dot_product_attention", attention),
        patch.object(F, "dropout", dropout),
        meta_as_cuda(),
    ):
        yield


class _ChannelsLast(torch.autograd.Function):
    """The same storage in channels-last order, which costs nothing: on CUDA the operator writes it so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        strides = torch.empty(x.shape, device="meta", memory_format=torch.channels_last).stride()
        return x.new_empty(0).set_(x.untyped_storage(), 0, x.shape, strides)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]
