"""Group norm and SiLU as one: what the two give, with one tensor kept less."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from simcast_hpc.models.group_norm_silu import normed_silu


def made(*, dtype=torch.float32, channels_last=False):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 8, 5, 7, generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    norm = nn.GroupNorm(2, 8).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(8, generator=generator))
        norm.bias.copy_(torch.randn(8, generator=generator))
    return x.requires_grad_(), norm, torch.randn(3, 8, 5, 7, generator=generator).to(dtype)


def two(x, norm):
    return F.silu(norm(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_result_and_gradients_are_those_of_the_two_to_the_bit(dtype, channels_last):
    x, norm, grad = made(dtype=dtype, channels_last=channels_last)
    wanted = [x, norm.weight, norm.bias]
    want, got = two(x, norm), normed_silu(x, norm)
    assert torch.equal(got, want) and got.stride() == want.stride()
    for one, other in zip(torch.autograd.grad(got, wanted, grad), torch.autograd.grad(want, wanted, grad), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(x, made(dtype=dtype, channels_last=channels_last)[0]), "the input is left as it was"


def test_gradients_are_those_of_finite_differences():
    x, norm, _ = made(dtype=torch.float64)
    assert torch.autograd.gradcheck(normed_silu_of, (x, norm.weight, norm.bias))


def normed_silu_of(x, weight, bias):
    norm = nn.GroupNorm(2, 8).double()
    del norm.weight, norm.bias
    norm.weight, norm.bias = weight, bias
    return normed_silu(x, norm)


def kept_bytes(call, norm) -> int:
    kept, weights = {}, {parameter.data_ptr() for parameter in norm.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_one_tensor_less_is_kept():
    x, norm, _ = made()
    before, after = kept_bytes(lambda: two(x, norm), norm), kept_bytes(lambda: normed_silu(x, norm), norm)
    assert before - after == x.untyped_storage().nbytes()


def test_autocast_chooses_a_dtype_for_each_as_before():
    x, norm, _ = made()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(normed_silu(x.bfloat16(), norm), two(x.bfloat16(), norm))


def test_a_frozen_norm_and_a_frozen_input_get_no_gradient():
    x, norm, grad = made()
    norm.requires_grad_(False)
    normed_silu(x, norm).backward(grad)
    assert x.grad is not None and norm.weight.grad is None
    norm.requires_grad_(True)
    normed_silu(x.detach(), norm).backward(grad)
    assert norm.weight.grad is not None
