"""Networks that correct a base forecast: exactly the base before training, its inputs, precision and warm start."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from simcast_hpc.config import EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.models import BaseForecast, build_model, missing_value, network_of, warm_start
from simcast_hpc.models.advection import extrapolate

STEM = StackConvStem(widths=(4, 8), scales=(2, 1), convolutions=(1, 1))
CONFIGS: dict[str, Any] = {
    "simvp": SimVPConfig(hidden_spatial=4, hidden_temporal=8, temporal_blocks=2, inception_kernels=(3, 5), groups=2),
    "earthformer": EarthformerConfig(grid=(16, 16), width=8, heads=1, stem=STEM),
}


def model_of(kind: str, base: str, *, frames_in: int = 3, frames_out: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = CONFIGS[kind].model_copy(update={"base": base})
    return build_model(config, frames_in=frames_in, frames_out=frames_out).eval()


def moving_frames(batch: int = 2, frames: int = 3, *, missing: float = 0.02) -> torch.Tensor:
    """Return smooth fields that move one pixel per frame, ``[B, T, 1, 16, 16]``, some pixels NaN."""
    generator = torch.Generator().manual_seed(7)
    field = nn.functional.avg_pool2d(torch.rand(batch, 1, 22, 22, generator=generator), 5, stride=1, padding=2)
    moved = torch.stack([field.roll(t, dims=-1)[..., 3:19, 3:19] for t in range(frames)], dim=1)
    return torch.where(torch.rand(moved.shape, generator=generator) < missing, math.nan, moved)


def base_of(frames: torch.Tensor, base: str, frames_out: int) -> torch.Tensor:
    """Return the forecast of the baseline of this name, ``[B, T', 1, H, W]``."""
    valid, known = ~torch.isnan(frames[:, :, 0]), torch.nan_to_num(frames[:, :, 0])
    if base == "persistence":
        return known[:, -1:].repeat(1, frames_out, 1, 1)[:, :, None]
    return extrapolate(known, frames_out, valid)[:, :, None]


class RecordingNetwork(nn.Module):
    """Stores its input and returns its head's output for zeros."""

    def __init__(self, frames_out: int):
        super().__init__()
        self.head, self.frames_out, self.seen = nn.Conv2d(1, 1, 1), frames_out, torch.empty(0)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        self.seen = frames
        zeros = frames.new_zeros(len(frames) * self.frames_out, 1, *frames.shape[3:])
        return self.head(zeros).unflatten(0, (len(frames), self.frames_out))


@pytest.mark.parametrize("base", ["persistence", "extrapolation"])
@pytest.mark.parametrize("frames_out", [2, 3, 5])
@pytest.mark.parametrize("kind", CONFIGS)
def test_untrained_model_forecasts_its_base_exactly(kind, frames_out, base):
    frames = moving_frames()
    forecast = model_of(kind, base, frames_out=frames_out)(frames)
    assert forecast.dtype == torch.float32 and forecast.shape == (2, frames_out, 1, 16, 16)
    assert torch.equal(forecast, base_of(frames, base, frames_out))


@pytest.mark.parametrize("frames_out", [2, 5])
def test_slots_contain_frames_and_the_base_of_their_lead_time(frames_out):
    frames, slots = moving_frames(), max(3, frames_out)
    network = RecordingNetwork(frames_out)
    BaseForecast(network, "extrapolation", frames_in=3, frames_out=frames_out)(frames)
    assert network.seen.shape == (2, slots, 2, 16, 16)
    for slot in range(slots):
        assert torch.equal(network.seen[:, slot, 0], torch.nan_to_num(frames[:, min(slot, 2), 0]))
        assert torch.equal(network.seen[:, slot, 1], base_of(frames, "extrapolation", slots)[:, slot, 0])


def test_output_is_the_base_plus_the_network():
    network = RecordingNetwork(4)
    model = BaseForecast(network, "persistence", frames_in=3, frames_out=4)
    nn.init.constant_(network.head.bias, 0.25)  # type: ignore[arg-type]
    frames = moving_frames()
    torch.testing.assert_close(model(frames), base_of(frames, "persistence", 4) + 0.25, rtol=0, atol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_base_is_computed_in_fp32_under_bf16_weights(kind):
    frames = moving_frames()
    model = model_of(kind, "extrapolation").bfloat16()
    forecast = model(frames)
    assert forecast.dtype == torch.float32
    assert torch.equal(forecast, base_of(frames, "extrapolation", 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(frames), forecast)


@pytest.mark.parametrize("kind", CONFIGS)
def test_first_step_moves_the_output_layer_and_later_ones_all_layers(kind):
    model, frames = model_of(kind, "extrapolation").train(), moving_frames()
    moved: list[set[str]] = []
    for _ in range(2):
        model.zero_grad()
        model(frames).square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        moved.append({name for name, gradient in gradients.items() if gradient.abs().max() > 0})
        with torch.no_grad():
            for name, gradient in gradients.items():
                model.get_parameter(name).sub_(gradient, alpha=0.1)
    assert moved[0] == {"network.head.weight", "network.head.bias"}
    assert moved[0] < moved[1] and len(moved[1]) > 10


@pytest.mark.parametrize("kind", CONFIGS)
def test_models_without_base_are_the_networks_themselves(kind):
    model = model_of(kind, "none")
    assert network_of(model) is model and not isinstance(model, BaseForecast)
    assert missing_value(CONFIGS[kind]) == 0.0
    with_base = model_of(kind, "persistence")
    assert list(with_base.state_dict()) == [f"network.{name}" for name in model.state_dict()]
    assert math.isnan(missing_value(CONFIGS[kind].model_copy(update={"base": "persistence"})))


@pytest.mark.parametrize("kind", CONFIGS)
def test_warm_start_of_a_longer_horizon_within_the_same_slots_copies_the_weights(kind):
    short, long = (model_of(kind, "extrapolation", frames_in=4, frames_out=n, seed=n) for n in (2, 4))
    nn.init.constant_(short.get_parameter("network.head.weight"), 0.5)
    result = warm_start(long, short.state_dict())
    assert all(name.endswith("bias.table") for name in result.random), "tables whose size depends on the horizon"
    assert (not result.random) == (kind == "simvp")
    assert torch.equal(long.get_parameter("network.head.weight"), short.get_parameter("network.head.weight"))


def test_warm_start_with_other_slots_starts_from_the_base():
    short, long = (model_of("simvp", "extrapolation", frames_in=3, frames_out=n, seed=n) for n in (2, 5))
    nn.init.constant_(short.get_parameter("network.head.weight"), 0.5)
    result = warm_start(long, short.state_dict())
    assert "network.encoder.blocks.0.conv.weight" in result.copied
    assert {"network.head.weight", "network.head.bias"} < set(result.random)
    frames = moving_frames()
    assert torch.equal(long(frames), base_of(frames, "extrapolation", 5))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: model_of("simvp", "flow"), ValueError, "model.base='flow' is unknown; choose persistence or extrap"),
        (lambda: model_of("simvp", "extrapolation", frames_in=1), ValueError, "frames_in of at least 2, got 1"),
        (
            lambda: build_model(
                CONFIGS["simvp"].model_copy(update={"base": "persistence"}), frames_in=3, frames_out=3, channels=2
            ),
            ValueError,
            "model.base='persistence' with model.noise_channels=0 requires frames of 1 channel, got 2",
        ),
        (lambda: model_of("simvp", "persistence")(torch.zeros(1, 4, 1, 16, 16)), ValueError, r"needs \[B, 3, 1, H, W"),
        (
            lambda: model_of("simvp", "persistence")(torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8)),
            TypeError,
            "dtype torch.uint8; divide",
        ),
    ],
)
def test_invalid_models_and_inputs_are_rejected(make, error, text):
    with pytest.raises(error, match=text):
        make()
