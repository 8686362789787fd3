"""The autoencoder: posterior, grids, checkpointing and precision."""

import pytest
import torch

from simcast_hpc.config import AutoencoderConfig, ConfigError, from_mapping
from simcast_hpc.models.autoencoder import Autoencoder, Posterior

SMALL = AutoencoderConfig(widths=(8, 12, 16), blocks=1, latent_channels=3, groups=4)


def make(config: AutoencoderConfig = SMALL, channels: int = 1) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(config, channels=channels)


def frames(channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 2])
def test_shapes_of_a_rectangular_frame(channels):
    reconstruction, posterior = make(channels=channels)(frames(channels))
    assert reconstruction.shape == (2, channels, 16, 24)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, 3, 4, 6)
    assert SMALL.reduction == 4


def test_posterior_samples_and_divergence():
    mean, log_variance = torch.tensor([[[[1.0, -2.0]]]]), torch.tensor([[[[0.0, -1.0]]]])
    posterior = Posterior(mean, log_variance)
    noise = torch.tensor([[[[0.5, 2.0]]]])
    torch.testing.assert_close(posterior.sample(noise), mean + torch.exp(log_variance / 2) * noise)
    normal = torch.distributions.Normal(mean, torch.exp(log_variance / 2))
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(
        posterior.divergence(), torch.distributions.kl_divergence(normal, standard).sum((1, 2, 3))
    )
    assert Posterior(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)).divergence().item() == 0


def test_decodes_sample_or_mean():
    model = make().eval()
    noise = torch.randn(2, 3, 4, 6)
    reconstruction, posterior = model(frames(), noise)
    torch.testing.assert_close(reconstruction, model.decode(posterior.sample(noise)))
    torch.testing.assert_close(model(frames())[0], model.decode(posterior.mean))


def test_every_parameter_gets_a_gradient():
    model = make()
    reconstruction, posterior = model(frames(), torch.randn(2, 3, 4, 6))
    (reconstruction.square().sum() + posterior.divergence().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_checkpointing_preserves_gradients():
    results = []
    for config in (SMALL, SMALL.model_copy(update={"checkpoint": True})):
        model = make(config).train()
        out = model(frames())[0]
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bf16_model_returns_fp32():
    model = make().bfloat16()
    reconstruction, posterior = model(frames())
    assert reconstruction.dtype == posterior.mean.dtype == posterior.log_variance.dtype == torch.float32


def test_log_variance_is_clamped():
    model = make()
    with torch.no_grad():
        assert model.to_moments.bias is not None
        model.to_moments.bias[3:] = 1e4
    assert torch.isfinite(model.encode(frames()).divergence()).all()


def test_rejects_invalid_grid_and_groups():
    with pytest.raises(ValueError, match=r"frames of \(16, 22\) pixels .* requires multiples of 4"):
        make().encode(frames()[..., :22])
    with pytest.raises(ConfigError, match=r"autoencoder\.groups=5"):
        from_mapping(AutoencoderConfig, {"groups": 5})
