"""Fused group norm and SiLU: equal to the two operations, with one saved tensor less."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simcast_hpc.models.group_norm_silu import group_norm_silu
from simcast_hpc.planning.flops import saved_bytes


def some_inputs(*, dtype=torch.float32, channels_last=False):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 8, 5, 7, generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    norm = nn.GroupNorm(2, 8).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(8, generator=generator))
        norm.bias.copy_(torch.randn(8, generator=generator))
    return x.requires_grad_(), norm, torch.randn(3, 8, 5, 7, generator=generator).to(dtype)


def unfused(x, norm):
    return F.silu(norm(x))


class Fused(nn.Module):
    def __init__(self, norm, function):
        super().__init__()
        self.norm, self.function = norm, function

    def forward(self, x):
        return self.function(x, self.norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_result_and_gradients_equal_unfused_bitwise(dtype, channels_last):
    x, norm, grad = some_inputs(dtype=dtype, channels_last=channels_last)
    leaves = [x, norm.weight, norm.bias]
    expected, result = unfused(x, norm), group_norm_silu(x, norm)
    assert torch.equal(result, expected) and result.stride() == expected.stride()
    gradients = torch.autograd.grad(result, leaves, grad)
    for got, want in zip(gradients, torch.autograd.grad(expected, leaves, grad), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(x, some_inputs(dtype=dtype, channels_last=channels_last)[0]), "the input is unchanged"


def test_saves_one_tensor_less():
    x, norm, _ = some_inputs()
    before, after = (saved_bytes(Fused(norm, function), x) for function in (unfused, group_norm_silu))
    assert before - after == x.untyped_storage().nbytes()


def test_under_autocast_equals_unfused():
    x, norm, _ = some_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(group_norm_silu(x.bfloat16(), norm), unfused(x.bfloat16(), norm))


def test_frozen_norm_and_frozen_input_get_no_gradient():
    x, norm, grad = some_inputs()
    norm.requires_grad_(False)
    group_norm_silu(x, norm).backward(grad)
    assert x.grad is not None and norm.weight.grad is None
    norm.requires_grad_(True)
    group_norm_silu(x.detach(), norm).backward(grad)
    assert norm.weight.grad is not None
