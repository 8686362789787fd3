"""Model cost compared with sums by hand, with torch's FLOP counter, and with the same passes on a real device."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from simcast_hpc.config import AutoencoderConfig, CasFormerConfig, EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.models import build_model
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.planning.flops import (
    autoencoder_cost,
    denoiser_cost,
    forecaster_cost,
    forward_flops,
    saved_bytes,
    training_flops,
)
from simcast_kernels.cuboid_attention import cuboid_attention, cuboid_cross_attention
from simcast_kernels.cuboid_attention.reference import cuboid_attention_reference, cuboid_cross_attention_reference

SMALL: dict[str, Any] = {
    "grid": (16, 8),
    "width": 16,
    "heads": 1,
    "stem": StackConvStem(widths=(4, 16), scales=(2, 2), convolutions=(1, 1)),
}
SIMVP = SimVPConfig(hidden_spatial=4, hidden_temporal=8, temporal_blocks=2, groups=2)
META = torch.device("meta")


def small(device: torch.device, **over: Any) -> nn.Module:
    with device:
        return build_model(EarthformerConfig(**SMALL | over), frames_in=3, frames_out=2).train()


def frames(device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(2, 3, 1, 16, 8, device=device, dtype=dtype)


class Attention(nn.Module):
    """One attention of a grid (4, 6, 8) to itself or to a memory of three frames."""

    def __init__(self, body, *, cross: bool, vectors: int, device: torch.device, cuboid=(2, 3, 4)):
        super().__init__()
        self.body, self.cuboid = body, (4, *cuboid[1:]) if cross else cuboid
        shapes = [(2, 4, 6, 8, 16), (2, 3, 6, 8, 32)] if cross else [(2, 4, 6, 8, 48)]
        self.main = nn.ParameterList(torch.zeros(shape, device=device) for shape in shapes)
        self.vectors = nn.ParameterList(torch.zeros(2, vectors, 16, device=device) for _ in range(2 if vectors else 0))

    def forward(self, _):
        key, value = (*self.vectors,) if len(self.vectors) else (None, None)
        options = {"heads": 2, "cuboid": self.cuboid, "strategy": ("l", "l", "d"), "shift": (0, 0, 0)}
        return self.body(*self.main, **options, global_key=key, global_value=value)


@pytest.mark.parametrize("vectors", [0, 5])
@pytest.mark.parametrize("cross", [False, True])
def test_attention_counts_like_reference(cross, vectors):
    operator, reference = (
        (cuboid_cross_attention, cuboid_cross_attention_reference)
        if cross
        else (cuboid_attention, cuboid_attention_reference)
    )
    counted = Attention(operator, cross=cross, vectors=vectors, device=META)
    plain = Attention(reference, cross=cross, vectors=vectors, device=torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        plain(None)
    unused = torch.zeros(1, device="meta")
    assert sum(forward_flops(counted, unused).values()) == counter.get_total_flops()
    keys = (3 if cross else 2) * 3 * 4 + vectors
    assert counter.get_total_flops() == 2 * (2 * 2 * (4 * 6 * 8) * keys * 16)
    assert training_flops(counted, unused) == counter.get_total_flops() * 7 // 2


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_backward_costs_twice_the_forward(groups):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.Conv2d(8, 12, 3, padding=1, groups=groups))
    each = [2 * 2 * 5 * 6 * 8 * out * 9 // groups for out in (8, 12)]
    x = torch.zeros(2, 8, 5, 6)
    assert sum(forward_flops(model, x).values()) == sum(each)
    assert training_flops(model, x) == 2 * each[0] + 3 * each[1], "the input needs no gradient"


@pytest.mark.parametrize("config", [SIMVP, EarthformerConfig(**SMALL)], ids=["simvp", "earthformer"])
def test_parts_sum_to_total(config):
    cost = forecaster_cost(config, frames_in=3, frames_out=2, grid=(16, 8), batch=2, dtype=torch.float32)
    model = build_model(config, frames_in=3, frames_out=2)
    assert sum(cost.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert set(cost.forward_flops) <= set(cost.parameters)
    total = sum(cost.forward_flops.values())
    assert total == sum(forward_flops(model, frames(torch.device("cpu"))).values())
    assert 2.5 * total < cost.training_flops < 3.5 * total


def test_parts_of_a_model_with_a_base_forecast():
    options = {"frames_in": 3, "frames_out": 2, "grid": (16, 8), "batch": 2, "dtype": torch.bfloat16}
    without = forecaster_cost(SIMVP, **options)
    cost = forecaster_cost(SIMVP.model_copy(update={"base": "extrapolation"}), **options)
    # The first convolution has one more input channel; the other parts of the network are unchanged.
    assert cost.parameters["encoder.blocks"] - without.parameters["encoder.blocks"] == 4 * 9
    first = 2 * (2 * 3 * 16 * 8) * 4 * 9
    assert cost.forward_flops["encoder.blocks"] - without.forward_flops["encoder.blocks"] == first
    same = ("translator", "decoder.blocks", "head")
    assert all(cost.forward_flops[part] == without.forward_flops[part] for part in same)
    assert "base" not in cost.forward_flops, "the optical flow has neither matmuls nor convolutions"
    # The backward pass adds the gradient of the weights of the new channel.
    assert cost.training_flops - without.training_flops == 2 * first
    planes = cost.activation_bytes - without.activation_bytes
    assert planes == 2 * 3 * 16 * 8 * 2, "one more bf16 channel of the input is saved"


def test_parts_of_earthformer():
    cost = forecaster_cost(
        EarthformerConfig(**SMALL), frames_in=3, frames_out=2, grid=(16, 8), batch=1, dtype=torch.bfloat16
    )
    levels = {f"{side}.levels.{level}" for side in ("encoder", "decoder") for level in (0, 1)}
    assert levels | {"stem", "query", "decoder.ups", "encoder.merges", "head_stages", "head"} <= set(cost.parameters)
    pixels = 2 * 16 * 8  # of the forecast
    assert cost.forward_flops["head"] == 2 * pixels * 4
    assert cost.parameters["head"] == 5


@pytest.mark.parametrize("over", [{}, {"checkpoint_levels": (0,)}, {"checkpoint_levels": (0, 1)}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_bytes_on_meta_device_equal_real_ones(over, dtype, monkeypatch):
    monkeypatch.setenv("SIMCAST_KERNELS", "reference")  # as on a CPU
    no_dropout = {"attention_dropout": 0.0, "projection_dropout": 0.0, "feed_forward_dropout": 0.0}
    sizes = [
        saved_bytes(small(device, **no_dropout, **over).to(dtype), frames(device, dtype))
        for device in (META, torch.device("cpu"))
    ]
    # On a CPU norms preserve channels-last memory, which saves a copy in the last stage, and save bf16 statistics for
    # bf16 inputs; on the meta device and on CUDA neither is the case.
    assert sizes[1] <= sizes[0] <= 1.05 * sizes[1]


def test_each_checkpointed_level_saves_memory_and_adds_flops():
    levels = [(), (1,), (0, 1)]
    saved = [saved_bytes(small(META, checkpoint_levels=some), frames(META)) for some in levels]
    flops = [training_flops(small(META, checkpoint_levels=some), frames(META)) for some in levels]
    assert saved[0] > saved[1] > saved[2]
    assert flops[0] < flops[1] < flops[2]
    cost = forecaster_cost(
        EarthformerConfig(**SMALL, checkpoint_levels=(1,)),
        frames_in=3,
        frames_out=2,
        grid=(16, 8),
        batch=2,
        dtype=torch.float32,
    )
    assert saved == [
        cost.activation_bytes_without_checkpointing,
        cost.activation_bytes,
        cost.activation_bytes_with_checkpointing,
    ]


def test_saved_bytes_exclude_weights():
    layer = nn.Linear(1000, 10, device="meta")
    assert saved_bytes(layer, torch.zeros(3, 1000, device="meta")) == 3 * 1000 * 4


CASFORMER = CasFormerConfig(frame_width=32, frame_depth=2, frame_heads=2, width=48, depth=2, heads=4)


def denoiser(device: torch.device, **over: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    config = CASFORMER.model_copy(update=over)
    with device:
        model = CasFormer(config, frames=3, channels=4, frames_in=2).train()
        latents = torch.zeros(2, 3, 4, 8, 16)
        observations = (torch.zeros(2, 2, 4, 8, 16),) if config.observations else ()
        return model, (latents, torch.zeros(2, dtype=torch.int64), latents.clone(), *observations)


@pytest.mark.parametrize("over", [{}, {"checkpoint": True}, {"observations": True}], ids=str)
def test_denoiser_cost_equals_real_passes(over):
    cost = denoiser_cost(
        CASFORMER.model_copy(update=over),
        frames_in=2,
        frames_out=3,
        channels=4,
        grid=(8, 16),
        batch=2,
        dtype=torch.float32,
    )
    model, inputs = denoiser(torch.device("cpu"), **over)
    assert sum(cost.parameters.values()) == sum(p.numel() for p in model.parameters())
    # Attention within frames, over all positions, to the observations; the fused kernel recomputes scores in backward.
    attention = 2 * (2 * 3 * 4 * 32**2 * 32 + 2 * 4 * 32**2 * 48 * (2 if over.get("observations") else 1))
    with sdpa_kernel(SDPBackend.MATH):
        assert sum(cost.forward_flops.values()) == sum(forward_flops(model, *inputs).values())
        assert cost.training_flops == training_flops(model, *inputs) + attention // 2
    # Fused attention saves one number per token and head, in rows of 32 on a GPU.
    saved = saved_bytes(model, *inputs)
    assert saved <= cost.activation_bytes <= 1.05 * saved
    without, checkpointed = cost.activation_bytes_without_checkpointing, cost.activation_bytes_with_checkpointing
    assert checkpointed < without / 2
    assert cost.activation_bytes == (checkpointed if over.get("checkpoint") else without)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_autoencoder_cost_equals_real_passes(checkpoint, monkeypatch):
    monkeypatch.setenv("SIMCAST_KERNELS", "reference")  # as on a CPU
    config = AutoencoderConfig(widths=(8, 16), groups=4, blocks=1, checkpoint=checkpoint)
    cost = autoencoder_cost(config, grid=(16, 8), batch=2, dtype=torch.float32)
    model = Autoencoder(config).train()
    inputs = torch.zeros(2, 1, 16, 8), torch.zeros(2, 4, 8, 4)
    assert sum(cost.parameters.values()) == sum(p.numel() for p in model.parameters())
    attention = 2 * 2 * 4 * 32**2 * 16
    with sdpa_kernel(SDPBackend.MATH):
        assert cost.forward_flops == forward_flops(model, *inputs)
        assert cost.training_flops == training_flops(model, *inputs) + attention // 2
    saved = saved_bytes(model, *inputs)
    assert saved <= cost.activation_bytes <= 1.05 * saved
    assert cost.activation_bytes_with_checkpointing < cost.activation_bytes_without_checkpointing


def test_attention_saves_no_attention_weights():
    """Four times the tokens save four times the bytes; unfused attention would save sixteen times the weights."""
    small_, large = (
        denoiser_cost(
            CASFORMER, frames_in=2, frames_out=1, channels=4, grid=(size, size), batch=1, dtype=torch.bfloat16
        )
        for size in (64, 128)
    )
    assert large.activation_bytes < 4.1 * small_.activation_bytes
    assert large.training_flops > 6 * small_.training_flops
