"""Losses of the autoencoder and its discriminator."""

import math

import pytest
import torch

from simcast_hpc.config import ConfigError, DiscriminatorConfig, from_mapping
from simcast_hpc.losses import hinge_loss, reconstruction_loss
from simcast_hpc.models.discriminator import Discriminator


def test_reconstruction_loss_equals_formula():
    frames, reconstruction = torch.tensor([[[[1.0, 0.0, 0.5]]]]), torch.tensor([[[[0.5, 0.0, 9.0]]]])
    valid = torch.tensor([[[[True, True, False]]]])
    loss = reconstruction_loss(frames, reconstruction, valid, torch.tensor([math.log(2.0)]))
    assert loss.item() == pytest.approx(0.5 / 2 + 2 * math.log(2.0))
    batch = reconstruction_loss(
        frames.expand(4, -1, -1, -1), reconstruction.expand(4, -1, -1, -1), valid, torch.zeros(1)
    )
    assert batch.ndim == 0, "a mean over samples"


def test_optimal_scale_is_mean_absolute_error():
    """The derivative with respect to s is zero where exp(s) is the mean absolute error of the valid pixels."""
    frames, reconstruction = torch.zeros(1, 1, 1, 4), torch.tensor([[[[0.1, 0.2, 0.3, 7.0]]]])
    valid = torch.tensor([[[[True, True, True, False]]]])
    log_scale = torch.tensor([math.log(0.2)], requires_grad=True)
    (gradient,) = torch.autograd.grad(reconstruction_loss(frames, reconstruction, valid, log_scale), log_scale)
    assert gradient.item() == pytest.approx(0, abs=1e-6)


def test_hinge_loss_is_zero_beyond_margins():
    assert hinge_loss(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, -3.0])).item() == 0
    assert hinge_loss(torch.tensor([0.0]), torch.tensor([0.5])).item() == pytest.approx(0.5 * (1 + 1.5))


def test_discriminator_does_not_mix_frames():
    torch.manual_seed(0)
    model = Discriminator(DiscriminatorConfig(layers=2, width=8, groups=2))
    frames = torch.rand(3, 1, 24, 32)
    logits = model(frames)
    assert logits.shape[:2] == (3, 1)
    torch.testing.assert_close(model(frames[1:2]), logits[1:2])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_smallest_frame_gives_one_patch(layers):
    model = Discriminator(DiscriminatorConfig(layers=layers, width=8, groups=2))
    size = model.smallest_frame
    assert model(torch.rand(1, 1, size, size)).numel() == 1
    with pytest.raises(RuntimeError):
        model(torch.rand(1, 1, size - 1, size - 1))


def test_rejects_groups_that_do_not_divide_width():
    with pytest.raises(ConfigError, match=r"discriminator\.width=12 must be a multiple"):
        from_mapping(DiscriminatorConfig, {"width": 12})
