"""CasFormer: where it starts, what it accepts, and what memory and precision may not change."""

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


def randomised(model: CasFormer) -> CasFormer:
    """Move every weight off its initial value: adaLN-Zero begins as the identity, which hides mistakes."""
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


def test_a_fresh_network_predicts_nothing():
    assert torch.equal(make()(*inputs()), torch.zeros(2, FRAMES, CHANNELS, 8, 6))


def test_every_weight_gets_a_gradient():
    for model, more in ((randomised(make()), ()), (randomised(make(observations=True)), (observed(),))):
        model(*inputs(), *more).square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.norm() == 0] == []


def test_output_depends_on_time_and_condition_of_its_own_sample():
    model = randomised(make()).eval()
    noisy, timesteps, condition = inputs()
    base = model(noisy, timesteps, condition)
    for changed in (
        model(noisy, timesteps + torch.tensor([0, 5]), condition),
        model(noisy, timesteps, condition * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1)),
    ):
        torch.testing.assert_close(changed[0], base[0])
        assert (changed[1] - base[1]).abs().max() > 1e-3


def test_frames_see_one_another_and_their_order():
    model = randomised(make()).eval()
    noisy, timesteps, condition = inputs()
    moved = noisy.clone()
    moved[:, 0] += 1
    difference = (model(moved, timesteps, condition) - model(noisy, timesteps, condition)).abs()
    assert difference[:, 1:].max() > 1e-3
    swapped = model(noisy.flip(1), timesteps, condition.flip(1)).flip(1)
    assert (swapped - model(noisy, timesteps, condition)).abs().max() > 1e-3


def test_observations_reach_the_prediction():
    model = randomised(make(observations=True)).eval()
    first, second = model(*inputs(), observed()), model(*inputs(), observed() + 1)
    assert (first - second).abs().max() > 1e-3
    assert torch.equal(make(observations=True)(*inputs(), observed()), torch.zeros(2, FRAMES, CHANNELS, 8, 6))


@pytest.mark.parametrize("observations", [False, True])
def test_checkpointing_changes_no_gradient(observations):
    found = []
    for again in (False, True):
        model = randomised(make(observations=observations, checkpoint=again)).train()
        out = model(*inputs(), *([observed()] if observations else []))
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bf16_weights_give_fp32_near_the_fp32_result():
    model = randomised(make()).eval()
    exact = model(*inputs())
    rounded = model.bfloat16()(*inputs())
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_float64_stays_float64():
    noisy, timesteps, condition = inputs()
    assert randomised(make()).double()(noisy.double(), timesteps, condition.double()).dtype == torch.float64


def test_any_grid_of_whole_patches_goes():
    model = randomised(make()).eval()
    for grid in ((2, 2), (4, 10), (12, 2)):
        assert model(*inputs(grid)).shape == (2, FRAMES, CHANNELS, *grid)


def test_positions_tell_rows_from_columns():
    table = position_table(3, 4, 8, like=torch.zeros(())).view(3, 4, 8)
    assert torch.equal(table[0, :, :4], table[2, :, :4]), "the first half is the column's"
    assert torch.equal(table[:, 0, 4:], table[:, 3, 4:]), "the second half is the row's"
    assert len({tuple(vector) for vector in table.view(12, 8).tolist()}) == 12


def test_what_does_not_fit_is_rejected():
    model = make()
    noisy, timesteps, condition = inputs()
    with pytest.raises(ValueError, match=r"must both be \[B, 3, 4, h, w\]"):
        model(noisy[:, :2], timesteps, condition[:, :2])
    with pytest.raises(ValueError, match="patches of 2"):
        model(noisy[..., :5], timesteps, condition[..., :5])
    with pytest.raises(ValueError, match=r"without casformer\.observations"):
        model(noisy, timesteps, condition, observed())
    with pytest.raises(ValueError, match="needs the latents of the observed frames"):
        make(observations=True)(noisy, timesteps, condition)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 5}, r"casformer\.width=24 must be a multiple of casformer\.heads=5"),
        ({"frame_heads": 3}, r"casformer\.frame_heads=3"),
        ({"frame_width": 18}, "multiple of 4"),
        ({"dept": 3}, "depth"),
    ],
)
def test_wrong_sizes_are_rejected_by_name(change, says):
    with pytest.raises(ConfigError, match=says):
        from_mapping(CasFormerConfig, SMALL | change)
