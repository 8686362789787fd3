"""CasFormer: initialization, inputs, checkpointing and precision."""

import pytest
import torch

from simcast_hpc.config import CasFormerConfig, ConfigError, from_mapping
from simcast_hpc.models.casformer import CasFormer, position_table

SMALL = {"frame_width": 16, "frame_depth": 2, "frame_heads": 2, "width": 24, "depth": 2, "heads": 3}
FRAMES, CHANNELS = 3, 4


def make(**change) -> CasFormer:
    torch.manual_seed(0)
    config = CasFormerConfig.model_validate(SMALL | change)
    return CasFormer(config, frames=FRAMES, channels=CHANNELS, frames_in=5 if config.observations else None)


def randomized(model: CasFormer) -> CasFormer:
    """Perturb all weights: adaLN-Zero is initialized as the identity, which hides errors."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(grid=(8, 6), batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    noisy, condition = (torch.randn(batch, FRAMES, CHANNELS, *grid, generator=generator) for _ in range(2))
    return noisy, torch.tensor([3, 700])[:batch], condition


def observed(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, CHANNELS, 8, 6, generator=torch.Generator().manual_seed(3))


def test_initial_prediction_is_zero():
    assert torch.equal(make()(*inputs()), torch.zeros(2, FRAMES, CHANNELS, 8, 6))


def test_every_parameter_gets_a_gradient():
    for model, more in ((randomized(make()), ()), (randomized(make(observations=True)), (observed(),))):
        model(*inputs(), *more).square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.norm() == 0] == []


def test_output_depends_on_timestep_and_condition_of_its_sample():
    model = randomized(make()).eval()
    noisy, timesteps, condition = inputs()
    base = model(noisy, timesteps, condition)
    for changed in (
        model(noisy, timesteps + torch.tensor([0, 5]), condition),
        model(noisy, timesteps, condition * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1)),
    ):
        torch.testing.assert_close(changed[0], base[0])
        assert (changed[1] - base[1]).abs().max() > 1e-3


def test_output_depends_on_other_frames_and_their_order():
    model = randomized(make()).eval()
    noisy, timesteps, condition = inputs()
    changed = noisy.clone()
    changed[:, 0] += 1
    difference = (model(changed, timesteps, condition) - model(noisy, timesteps, condition)).abs()
    assert difference[:, 1:].max() > 1e-3
    swapped = model(noisy.flip(1), timesteps, condition.flip(1)).flip(1)
    assert (swapped - model(noisy, timesteps, condition)).abs().max() > 1e-3


def test_output_depends_on_observations():
    model = randomized(make(observations=True)).eval()
    first, second = model(*inputs(), observed()), model(*inputs(), observed() + 1)
    assert (first - second).abs().max() > 1e-3
    assert torch.equal(make(observations=True)(*inputs(), observed()), torch.zeros(2, FRAMES, CHANNELS, 8, 6))


@pytest.mark.parametrize("observations", [False, True])
def test_checkpointing_preserves_gradients(observations):
    results = []
    for recompute in (False, True):
        model = randomized(make(observations=observations, checkpoint=recompute)).train()
        out = model(*inputs(), *([observed()] if observations else []))
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bf16_model_returns_fp32():
    model = randomized(make()).eval()
    exact = model(*inputs())
    rounded = model.bfloat16()(*inputs())
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_float64_model_returns_float64():
    noisy, timesteps, condition = inputs()
    assert randomized(make()).double()(noisy.double(), timesteps, condition.double()).dtype == torch.float64


def test_accepts_any_grid_of_complete_patches():
    model = randomized(make()).eval()
    for grid in ((2, 2), (4, 10), (12, 2)):
        assert model(*inputs(grid)).shape == (2, FRAMES, CHANNELS, *grid)


def test_positions_encode_rows_and_columns():
    table = position_table(3, 4, 8, like=torch.zeros(())).view(3, 4, 8)
    assert torch.equal(table[0, :, :4], table[2, :, :4]), "first half: column"
    assert torch.equal(table[:, 0, 4:], table[:, 3, 4:]), "second half: row"
    assert len({tuple(vector) for vector in table.view(12, 8).tolist()}) == 12


def test_rejects_invalid_inputs():
    model = make()
    noisy, timesteps, condition = inputs()
    with pytest.raises(ValueError, match=r"must both be \[B, 3, 4, h, w\]"):
        model(noisy[:, :2], timesteps, condition[:, :2])
    with pytest.raises(ValueError, match=r"not a multiple of casformer\.patch=2"):
        model(noisy[..., :5], timesteps, condition[..., :5])
    with pytest.raises(ValueError, match=r"observations require casformer\.observations=true"):
        model(noisy, timesteps, condition, observed())
    with pytest.raises(ValueError, match="requires the latents of the observed frames"):
        make(observations=True)(noisy, timesteps, condition)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, r"casformer\.width=24 must be a multiple of casformer\.heads=5"),
        ({"frame_heads": 3}, r"casformer\.frame_heads=3"),
        ({"frame_width": 18}, "multiple of 4"),
        ({"dept": 3}, "depth"),
    ],
)
def test_rejects_invalid_config(change, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(CasFormerConfig, SMALL | change)
