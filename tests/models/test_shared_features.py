"""Features read whole and in part: values and gradients to the bit those of a slice."""

import pytest
import torch

from simcast_hpc.models.shared_features import shared_with_first

BATCH, FRAMES = 2, 3


def sliced(features: torch.Tensor, batch: int, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    return features, features.unflatten(0, (batch, -1))[:, :keep].flatten(0, 1)


def gradient(function, keep: int, used: tuple[bool, bool], layout: torch.memory_format) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH * FRAMES, 4, 3, 5, generator=generator).contiguous(memory_format=layout)
    features.requires_grad_()
    outputs = function(features * 1.0, BATCH, keep)
    weights = [torch.randn(one.shape, generator=generator) for one in outputs]
    terms = [(one * weight).sum() for one, weight in zip(outputs, weights, strict=True)]
    torch.stack([term for term, wanted in zip(terms, used, strict=True) if wanted]).sum().backward()
    assert features.grad is not None
    return [*(one.detach() for one in outputs), features.grad]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("keep", [1, 2, FRAMES])
def test_values_and_gradients_are_those_of_a_slice(keep, used, layout):
    for got, want in zip(
        gradient(shared_with_first, keep, used, layout), gradient(sliced, keep, used, layout), strict=True
    ):
        assert torch.equal(got, want)


def test_a_second_backward_gives_the_same():
    features = torch.randn(BATCH * FRAMES, 2, 2, 2, requires_grad=True)
    whole, first = shared_with_first(features * 1.0, BATCH, 2)
    loss = whole.square().sum() + first.square().sum()
    (once,) = torch.autograd.grad(loss, features, retain_graph=True)
    (again,) = torch.autograd.grad(loss, features)
    assert torch.equal(once, again)
