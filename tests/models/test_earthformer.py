"""Earthformer: options, precision, dropout, activation checkpointing, rejected inputs."""

from typing import Any

import pytest
import torch

from simcast_hpc.config import ConvStem, EarthformerConfig, GlobalVectorConfig, NoStem, StackConvStem
from simcast_hpc.models import build_model
from simcast_hpc.models.earthformer import Earthformer, attention

NO_DROPOUT: dict[str, Any] = {"attention_dropout": 0.0, "projection_dropout": 0.0, "feed_forward_dropout": 0.0}
SMALL = EarthformerConfig(
    grid=(16, 8),
    width=16,
    heads=1,
    stem=StackConvStem(widths=(4, 16), scales=(2, 2), convolutions=(1, 1)),
    global_vectors=GlobalVectorConfig(count=2),
    **NO_DROPOUT,
)


def small_model(
    change: dict | None = None, *, frames_in: int = 3, frames_out: int = 2, channels: int = 1, seed: int = 7
):
    torch.manual_seed(seed)
    config = EarthformerConfig(
        **{**{name: getattr(SMALL, name) for name in EarthformerConfig.model_fields}, **(change or {})}
    )
    model = build_model(config, frames_in=frames_in, frames_out=frames_out, channels=channels)
    assert isinstance(model, Earthformer)
    return model


def some_frames(batch: int = 2, frames: int = 3, channels: int = 1, size: tuple[int, int] = (16, 8)):
    return torch.rand(batch, frames, channels, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "change",
    [
        {"stem": NoStem(), "grid": (6, 4), "heads": 2},
        {"stem": ConvStem(scale=3, activation="silu"), "grid": (10, 8)},
        {"encoder_pattern": ("video_swin_2x2", "divided_st"), "decoder_pattern": "spatial_lg_2", "padding": "ignore"},
        {"encoder_pattern": "axial_space_dilate_2", "padding": "nearest", "grid": (20, 12)},
        {"encoder_depth": (2, 1), "decoder_depth": (1, 2), "decoder_first_self_attention": True},
        {"encoder_depth": (1, 1, 1), "decoder_depth": (1, 1, 1), "decoder_positions": True, "positions": "t+hw"},
        {"encoder_feed_forward_between": False, "decoder_feed_forward_between": False, "gated": True},
        {"cross_pattern": "cross_2x2_heter", "cross_last_frames": 2, "activation": "relu"},
        {"relative_bias": False, "global_vectors": GlobalVectorConfig(count=0)},
        {
            "global_vectors": GlobalVectorConfig(
                count=3, separate_projections=False, in_decoder=True, in_cross_attention=True, feed_forward=True
            ),
            "decoder_depth": (2, 2),
        },
        {
            "global_vectors": GlobalVectorConfig(
                count=2, self_attention=False, in_decoder=True, updated_in_decoder=False
            )
        },
    ],
    ids=lambda change: "-".join(change),
)
@pytest.mark.parametrize("frames_out", [2, 5])
def test_every_option_runs_without_mixing_samples(change, frames_out):
    model = small_model(change, frames_out=frames_out).eval()
    grid = change.get("grid", (16, 8))
    frames = some_frames(size=grid).requires_grad_()
    out = model(frames)
    assert out.shape == (2, frames_out, 1, *grid)
    assert out.dtype == torch.float32
    (gradient,) = torch.autograd.grad(out[0, -1].square().sum(), frames)
    assert (gradient[0].abs().amax(dim=(1, 2, 3)) > 0).all(), "the last frame depends on every input frame"
    assert gradient[1].abs().max() == 0


@pytest.mark.parametrize("query", ["zeros", "nearest_interp", "last", "mean"])
def test_initial_query(query):
    model = small_model({"decoder_query": query}, frames_out=4)
    inputs_seen = []
    model.query.project.register_forward_hook(lambda module, inputs, output: inputs_seen.append(inputs[0]))
    memory = torch.rand(2, 3, 2, 1, 32, generator=torch.Generator().manual_seed(1))
    assert model.query(memory).shape == (2, 4, 2, 1, 32)
    expected = {
        "nearest_interp": memory[:, [0, 0, 1, 2]],
        "last": memory[:, -1:],
        "mean": memory.mean(1, keepdim=True),
        "zeros": model.query.positions(torch.zeros(1, 4, 2, 1, 32)),
    }[query]
    torch.testing.assert_close(inputs_seen[0], expected, rtol=0, atol=0)


def test_every_parameter_but_last_global_update_gets_a_gradient():
    model = small_model()
    model(some_frames()).square().mean().backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    last = "encoder.levels.1.0.attentions.2.global_"
    projections = {f"{last}projections.{name}.weight" for name in ("query", "key", "value", "self_qkv")}
    assert missing == projections | {f"{last}attention.project.weight", f"{last}attention.project.bias"}


def test_initialization_follows_seed():
    first, second, other = small_model(), small_model(), small_model(seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_bf16_model_computes_head_in_fp32():
    model, frames, head = small_model().bfloat16(), some_frames(), {}
    model.head.register_forward_hook(lambda module, inputs, output: head.update(input=inputs[0], output=output))
    out = model(frames)
    assert head["input"].dtype == torch.bfloat16
    assert out.dtype == head["output"].dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float()), "output has more precision than bf16"
    torch.testing.assert_close(out, small_model()(frames), rtol=0, atol=0.1)
    out.square().mean().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}


def test_head_ignores_autocast():
    model = small_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(some_frames())
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())


def losses_and_gradients(model: Earthformer, seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    loss = model(some_frames()).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_checkpoint_levels_preserve_loss_and_gradients():
    dropout = {"attention_dropout": 0.2, "projection_dropout": 0.2, "feed_forward_dropout": 0.2}
    expected = losses_and_gradients(small_model(dropout), seed=11)
    for levels in ((0,), (1,), (0, 1)):
        result = losses_and_gradients(small_model({**dropout, "checkpoint_levels": levels}), seed=11)
        assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


def test_attention_dropout_follows_torch_seed_and_stops_in_eval():
    model = small_model({"attention_dropout": 0.5})
    with torch.no_grad():
        first, second, other = (model_output(model, seed) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        model.eval()
        assert torch.equal(model_output(model, 1), model_output(model, 2))


def model_output(model: Earthformer, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return model(some_frames())


def test_attentions_of_one_pass_have_different_seeds(monkeypatch):
    seeds = []
    for name in ("cuboid_attention", "cuboid_cross_attention"):
        op = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *a, _op=op, **k: (seeds.append(k["seed"]), _op(*a, **k))[1])
    small_model({"attention_dropout": 0.5})(some_frames())
    attentions = 3 * 3 + 2
    assert sorted(seed - min(seeds) for seed in seeds) == list(range(attentions))


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (
            torch.zeros(2, 3, 16, 8),
            ValueError,
            r"shape \(2, 3, 16, 8\); .* \[B, 3, 1, 16, 8\] \(frames_in, channels_in and model\.grid\)",
        ),
        (torch.zeros(2, 4, 1, 16, 8), ValueError, r"shape \(2, 4, 1, 16, 8\)"),
        (torch.zeros(2, 3, 1, 16, 16), ValueError, r"shape \(2, 3, 1, 16, 16\)"),
        (torch.zeros(0, 3, 1, 16, 8), ValueError, r"shape \(0, 3, 1, 16, 8\)"),
        (torch.zeros(2, 3, 1, 16, 8, dtype=torch.uint8), TypeError, "uint8; .* divide uint8 values by 255"),
    ],
)
def test_rejects_invalid_frames(frames, error, message):
    with pytest.raises(error, match=message):
        small_model()(frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 18, "heads": 4, "stem": NoStem()}, r"model\.width=18 must be a multiple of model\.heads=4"),
        ({"width": 32}, r"model\.stem\.widths ends in 16; it must end in model\.width=32"),
        ({"decoder_depth": (1,)}, r"model\.encoder_depth=\[1, 1\] and model\.decoder_depth=\[1\]"),
        ({"cross_pattern": ("cross_1x1",)}, r"model\.cross_pattern has 1 names for 2 levels"),
        ({"checkpoint_levels": (2,)}, r"model\.checkpoint_levels contains 2; levels are 0 \(finest\) to 1"),
        (
            {"encoder_pattern": "axiel"},
            r"model\.encoder_pattern: unknown attention pattern 'axiel'; did you mean 'axial'\?; choose full",
        ),
        ({"decoder_pattern": ("axial", "axail")}, r"model\.decoder_pattern: unknown .* did you mean 'axial'"),
        (
            {"cross_pattern": "cross_1x2"},
            r"model\.cross_pattern: unknown attention pattern 'cross_1x2'.*choose cross_KxK",
        ),
        ({"stem": ConvStem(), "width": 8}, r"model\.width contains 8, which must be a multiple of 16"),
        (
            {"stem": StackConvStem(widths=(6, 16), scales=(2, 2), convolutions=(1, 1)), "width": 16, "heads": 3},
            "heads=3",
        ),
        ({"global_vectors": GlobalVectorConfig(count=0, in_decoder=True)}, r"model\.global_vectors\.count=0"),
        (
            {"global_vectors": GlobalVectorConfig(in_cross_attention=True)},
            r"requires model\.global_vectors\.separate_projections=false",
        ),
    ],
)
def test_rejects_invalid_sizes_and_names(change, message):
    with pytest.raises(ValueError, match=message):
        small_model(change)


def test_rejects_unsupported_dtype_and_empty_horizon():
    with pytest.raises(TypeError, match=r"x is torch\.float16; it must be float32, bfloat16 or float64"):
        small_model().half()(some_frames())
    with pytest.raises(ValueError, match="frames_out=0 must be at least 1"):
        small_model(frames_out=0)
