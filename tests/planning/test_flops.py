"""What a model costs: counts held against sums by hand, torch's own counter, and the same passes on a real device."""

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
    account_of,
    autoencoder_account,
    denoiser_account,
    forward_flops,
    kept_bytes,
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
    """One attention of random tensors on the meta device: of a grid (4, 6, 8) to itself or to three frames."""

    def __init__(self, body, *, cross: bool, vectors: int, device: torch.device, cuboid=(2, 3, 4)):
        super().__init__()
        self.body, self.cuboid = body, (4, *cuboid[1:]) if cross else cuboid
        shapes = [(2, 4, 6, 8, 16), (2, 3, 6, 8, 32)] if cross else [(2, 4, 6, 8, 48)]
        self.main = nn.ParameterList(torch.zeros(shape, device=device) for shape in shapes)
        self.seen = nn.ParameterList(torch.zeros(2, vectors, 16, device=device) for _ in range(2 if vectors else 0))

    def forward(self, _):
        key, value = (*self.seen,) if len(self.seen) else (None, None)
        words = {"heads": 2, "cuboid": self.cuboid, "strategy": ("l", "l", "d"), "shift": (0, 0, 0)}
        return self.body(*self.main, **words, global_key=key, global_value=value)


@pytest.mark.parametrize("vectors", [0, 5])
@pytest.mark.parametrize("cross", [False, True])
def test_an_attention_counts_as_its_twin_in_plain_torch(cross, vectors):
    operator, twin = (
        (cuboid_cross_attention, cuboid_cross_attention_reference)
        if cross
        else (cuboid_attention, cuboid_attention_reference)
    )
    counted = Attention(operator, cross=cross, vectors=vectors, device=META)
    plain = Attention(twin, cross=cross, vectors=vectors, device=torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        plain(None)
    nothing = torch.zeros(1, device="meta")
    assert sum(forward_flops(counted, nothing).values()) == counter.get_total_flops()
    keys = (3 if cross else 2) * 3 * 4 + vectors
    assert counter.get_total_flops() == 2 * (2 * 2 * (4 * 6 * 8) * keys * 16)
    assert training_flops(counted, nothing) == counter.get_total_flops() * 7 // 2


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_costs_twice_as_much_backward(groups):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.Conv2d(8, 12, 3, padding=1, groups=groups))
    each = [2 * 2 * 5 * 6 * 8 * out * 9 // groups for out in (8, 12)]
    x = torch.zeros(2, 8, 5, 6)
    assert sum(forward_flops(model, x).values()) == sum(each)
    assert training_flops(model, x) == 2 * each[0] + 3 * each[1], "the input wants no gradient"


@pytest.mark.parametrize("config", [SIMVP, EarthformerConfig(**SMALL)], ids=["simvp", "earthformer"])
def test_parts_add_up_to_the_whole(config):
    account = account_of(config, frames_in=3, frames_out=2, grid=(16, 8), batch=2, dtype=torch.float32)
    model = build_model(config, frames_in=3, frames_out=2)
    assert sum(account.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert set(account.forward_flops) <= set(account.parameters)
    counted = sum(account.forward_flops.values())
    assert counted == sum(forward_flops(model, frames(torch.device("cpu"))).values())
    assert 2.5 * counted < account.training_flops < 3.5 * counted


def test_the_parts_of_an_earthformer():
    account = account_of(
        EarthformerConfig(**SMALL), frames_in=3, frames_out=2, grid=(16, 8), batch=1, dtype=torch.bfloat16
    )
    levels = {f"{side}.levels.{level}" for side in ("encoder", "decoder") for level in (0, 1)}
    assert levels | {"stem", "query", "decoder.ups", "encoder.merges", "head_stages", "head"} <= set(account.parameters)
    pixels = 2 * 16 * 8  # of the forecast
    assert account.forward_flops["head"] == 2 * pixels * 4
    assert account.parameters["head"] == 5


@pytest.mark.parametrize("over", [{}, {"checkpoint_levels": (0,)}, {"checkpoint_levels": (0, 1)}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept_on_the_meta_device_is_kept_on_a_real_one(over, dtype):
    quiet = {"projection_dropout": 0.0, "feed_forward_dropout": 0.0}
    sizes = [
        kept_bytes(small(device, **quiet, **over).to(dtype), frames(device, dtype))
        for device in (META, torch.device("cpu"))
    ]
    # A CPU's norms keep features last, which spares a copy of the last stage, and in bf16 their statistics are bf16; on
    # the meta device, as on CUDA, neither is so.
    assert sizes[1] <= sizes[0] <= 1.05 * sizes[1]


def test_each_level_that_is_computed_again_keeps_less_and_works_more():
    levels = [(), (1,), (0, 1)]
    kept = [kept_bytes(small(META, checkpoint_levels=some), frames(META)) for some in levels]
    work = [training_flops(small(META, checkpoint_levels=some), frames(META)) for some in levels]
    assert kept[0] > kept[1] > kept[2]
    assert work[0] < work[1] < work[2]
    account = account_of(
        EarthformerConfig(**SMALL, checkpoint_levels=(1,)),
        frames_in=3,
        frames_out=2,
        grid=(16, 8),
        batch=2,
        dtype=torch.float32,
    )
    bytes_ = (account.activation_bytes_kept_all, account.activation_bytes, account.activation_bytes_recomputed_all)
    assert bytes_ == tuple(kept)


def test_weights_are_not_among_what_is_kept():
    layer = nn.Linear(1000, 10, device="meta")
    assert kept_bytes(layer, torch.zeros(3, 1000, device="meta")) == 3 * 1000 * 4


CASFORMER = CasFormerConfig(frame_width=32, frame_depth=2, frame_heads=2, width=48, depth=2, heads=4)


def denoiser(device: torch.device, **over: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    config = CASFORMER.model_copy(update=over)
    with device:
        model = CasFormer(config, frames=3, channels=4, frames_in=2).train()
        latents = torch.zeros(2, 3, 4, 8, 16)
        seen = (torch.zeros(2, 2, 4, 8, 16),) if config.observations else ()
        return model, (latents, torch.zeros(2, dtype=torch.int64), latents.clone(), *seen)


@pytest.mark.parametrize("over", [{}, {"checkpoint": True}, {"observations": True}], ids=str)
def test_a_denoiser_counts_on_the_meta_device_as_on_a_real_one(over):
    account = denoiser_account(
        CASFORMER.model_copy(update=over),
        frames_in=2,
        frames_out=3,
        channels=4,
        grid=(8, 16),
        batch=2,
        dtype=torch.float32,
    )
    model, inputs = denoiser(torch.device("cpu"), **over)
    assert sum(account.parameters.values()) == sum(p.numel() for p in model.parameters())
    # Attention within frames, among all places, and to the observations; fused, it makes its scores again in backward.
    attention = 2 * (2 * 3 * 4 * 32**2 * 32 + 2 * 4 * 32**2 * 48 * (2 if over.get("observations") else 1))
    with sdpa_kernel(SDPBackend.MATH):
        assert sum(account.forward_flops.values()) == sum(forward_flops(model, *inputs).values())
        assert account.training_flops == training_flops(model, *inputs) + attention // 2
    # Fused attention keeps a number a token and head, in rows of 32 on a GPU.
    kept = kept_bytes(model, *inputs)
    assert kept <= account.activation_bytes <= 1.05 * kept
    plain, again = account.activation_bytes_kept_all, account.activation_bytes_recomputed_all
    assert again < plain / 2
    assert account.activation_bytes == (again if over.get("checkpoint") else plain)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_autoencoder_counts_on_the_meta_device_as_on_a_real_one(checkpoint):
    config = AutoencoderConfig(widths=(8, 16), groups=4, blocks=1, checkpoint=checkpoint)
    account = autoencoder_account(config, grid=(16, 8), batch=2, dtype=torch.float32)
    model = Autoencoder(config).train()
    inputs = torch.zeros(2, 1, 16, 8), torch.zeros(2, 4, 8, 4)
    assert sum(account.parameters.values()) == sum(p.numel() for p in model.parameters())
    attention = 2 * 2 * 4 * 32**2 * 16
    with sdpa_kernel(SDPBackend.MATH):
        assert account.forward_flops == forward_flops(model, *inputs)
        assert account.training_flops == training_flops(model, *inputs) + attention // 2
    kept = kept_bytes(model, *inputs)
    assert kept <= account.activation_bytes <= 1.05 * kept
    assert account.activation_bytes_recomputed_all < account.activation_bytes_kept_all


def test_attention_keeps_no_weights_of_pairs():
    """Four times the tokens of a frame: four times what is kept, where spelt out attention keeps sixteen of it."""
    small_, large = (
        denoiser_account(
            CASFORMER, frames_in=2, frames_out=1, channels=4, grid=(size, size), batch=1, dtype=torch.bfloat16
        )
        for size in (64, 128)
    )
    assert large.activation_bytes < 4.1 * small_.activation_bytes
    assert large.training_flops > 6 * small_.training_flops
