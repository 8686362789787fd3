"""SimVP: horizons, precision, memory layout, and what it refuses."""

import pytest
import torch

from simcast_hpc.config import SimVPConfig
from simcast_hpc.models import build_model
from simcast_hpc.models.simvp import SimVP

SMALL = SimVPConfig(hidden_spatial=4, hidden_temporal=16, temporal_blocks=2, groups=4)


def small_model(
    *, frames_out: int = 4, config: SimVPConfig = SMALL, frames_in: int = 4, channels: int = 1, seed: int = 7
) -> SimVP:
    torch.manual_seed(seed)
    model = build_model(config, frames_in=frames_in, frames_out=frames_out, channels=channels)
    assert isinstance(model, SimVP)
    return model


def some_frames(batch: int = 2, frames: int = 4, channels: int = 1, size: tuple[int, int] = (12, 8)):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, frames, channels, *size, generator=generator)


def test_one_horizon_more_or_less_does_not_change_the_weights():
    short, long = small_model(frames_out=1).state_dict(), small_model(frames_out=11).state_dict()
    assert short.keys() == long.keys()
    assert all(torch.equal(short[name], long[name]) for name in short)


def test_equal_seeds_draw_equal_weights_and_other_seeds_do_not():
    first, again, other = small_model(), small_model(), small_model(seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("frames_out", [1, 3])
def test_a_shorter_horizon_is_the_beginning_of_the_full_one(frames_out):
    frames = some_frames()
    short, full = small_model(frames_out=frames_out)(frames), small_model()(frames)
    assert short.shape == (2, frames_out, 1, 12, 8)
    torch.testing.assert_close(short, full[:, :frames_out], rtol=0, atol=1e-6)


def test_a_shorter_horizon_decodes_only_its_own_frames():
    model, decoded = small_model(frames_out=3), []
    model.head.register_forward_hook(lambda module, inputs, output: decoded.append(inputs[0].shape[0]))
    model.decoder.register_forward_hook(lambda module, inputs, output: decoded.append(inputs[0].shape[0]))
    model(some_frames(batch=2))
    assert decoded == [6, 6]


@pytest.mark.parametrize("frames_out", [8, 11])
def test_a_longer_horizon_feeds_blocks_back(frames_out):
    frames, one_block = some_frames(), small_model()
    blocks = [one_block(frames)]
    while len(blocks) * 4 < frames_out:
        blocks.append(one_block(blocks[-1]))
    torch.testing.assert_close(
        small_model(frames_out=frames_out)(frames), torch.cat(blocks, dim=1)[:, :frames_out], rtol=0, atol=1e-6
    )


def test_a_longer_horizon_carries_gradients_through_the_first_block():
    model, frames = small_model(frames_out=8), some_frames().requires_grad_()
    (gradient,) = torch.autograd.grad(model(frames)[:, 4:].sum(), frames)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("frames_out", [3, 4, 6])
def test_every_parameter_gets_a_gradient(frames_out):
    model = small_model(frames_out=frames_out)
    model(some_frames()).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_every_frame_reaches_every_other_and_samples_do_not_mix():
    model, frames = small_model(), some_frames()
    changed = frames.clone()
    changed[0, 0] += 1.0
    moved = (model(changed) - model(frames)).abs().amax(dim=(2, 3, 4))
    assert (moved[0] > 1e-6).all()
    assert (moved[1] == 0).all()


def test_deeper_spatial_encoders_halve_the_grid_more_often():
    config = SMALL.model_copy(update={"spatial_blocks": 4})
    model = small_model(config=config, channels=2)
    latents = []
    model.encoder.register_forward_hook(lambda module, inputs, output: latents.append(tuple(output[0].shape)))
    assert model(some_frames(channels=2)).shape == (2, 4, 2, 12, 8)
    assert latents == [(8, 4, 3, 2)]


@pytest.mark.parametrize("temporal_blocks", [1, 3])
def test_translator_depths(temporal_blocks):
    model = small_model(config=SMALL.model_copy(update={"temporal_blocks": temporal_blocks}))
    assert len(model.translator.encoder) == len(model.translator.decoder) == temporal_blocks
    assert model(some_frames()).shape == (2, 4, 1, 12, 8)


def test_a_bf16_cast_leaves_the_head_and_the_output_in_fp32():
    model, frames, seen = small_model().bfloat16(), some_frames(), {}
    model.head.register_forward_hook(lambda module, inputs, output: seen.update(given=inputs[0], made=output))
    out = model(frames)
    assert out.dtype == seen["made"].dtype == torch.float32
    assert seen["given"].dtype == torch.bfloat16
    assert model.head.bias is not None
    weight, bias = model.head.weight.float(), model.head.bias.float()
    want = torch.einsum("ndhw,cd->nchw", seen["given"].float(), weight[:, :, 0, 0]) + bias[:, None, None]
    torch.testing.assert_close(seen["made"], want, rtol=0, atol=1e-6)
    assert not torch.equal(out, out.bfloat16().float()), "the output holds values that bf16 cannot"
    torch.testing.assert_close(out, small_model()(frames), rtol=0, atol=0.05)


def test_a_bf16_cast_gives_gradients_in_bf16():
    model = small_model(frames_out=6).bfloat16()
    model(some_frames()).square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_head_ignores_autocast():
    model, frames = small_model(), some_frames()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(frames)
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())


def test_a_float64_cast_stays_in_float64():
    frames = some_frames()
    exact = small_model().double()(frames.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(small_model()(frames).double(), exact, rtol=0, atol=1e-5)


def test_channels_last_changes_the_memory_and_not_the_answer():
    frames, answers, layouts = some_frames(), [], []
    for channels_last in (True, False):
        model = small_model(config=SMALL.model_copy(update={"channels_last": channels_last}))
        for conv in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
            if conv.in_channels > 1:
                conv.register_forward_pre_hook(
                    lambda module, inputs: layouts.append(
                        inputs[0].is_contiguous(memory_format=torch.channels_last) and not inputs[0].is_contiguous()
                    )
                )
        leaf = frames.clone().requires_grad_()
        out = model(leaf)
        answers.append((out, *torch.autograd.grad(out.square().mean(), [leaf, *model.parameters()])))
        assert set(layouts) == {channels_last}
        layouts.clear()
    for on, off in zip(*answers, strict=True):
        torch.testing.assert_close(on, off, rtol=1e-4, atol=1e-6)


def test_the_layout_does_not_rest_on_the_strides_of_the_weights():
    model, frames = small_model(), some_frames()
    before = model(frames)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    for p, piece in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True):
        p.data = piece.view_as(p)
    torch.testing.assert_close(model(frames), before, rtol=0, atol=1e-6)


def test_non_contiguous_frames_are_welcome():
    frames = some_frames().transpose(0, 1).contiguous().transpose(0, 1)
    assert not frames.is_contiguous()
    torch.testing.assert_close(small_model()(frames), small_model()(some_frames()), rtol=0, atol=1e-6)


def test_it_is_one_graph_for_the_compiler():
    model, frames = small_model(frames_out=6), some_frames()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(frames), model(frames), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "error", "says"),
    [
        (torch.zeros(2, 4, 12, 8), ValueError, r"\[B, 4, 1, H, W\], got 4 axes"),
        (torch.zeros(2, 5, 1, 12, 8), ValueError, "frames_in=4, got 5"),
        (torch.zeros(2, 4, 3, 12, 8), ValueError, "channels=1, got 3"),
        (torch.zeros(2, 4, 1, 13, 8), ValueError, "multiples of 2"),
        (torch.zeros(2, 4, 1, 12, 7), ValueError, "multiples of 2"),
        (torch.zeros(0, 4, 1, 12, 8), ValueError, "B at least 1"),
        (torch.zeros(2, 4, 1, 12, 8, dtype=torch.uint8), TypeError, "uint8; divide codes by 255"),
    ],
)
def test_frames_that_do_not_fit_are_rejected(frames, error, says):
    with pytest.raises(error, match=says):
        small_model()(frames)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spatial_blocks": 3}, "spatial_blocks=3 must be even"),
        ({"spatial_kernel": 4}, "spatial_kernel holds 4"),
        ({"inception_kernels": (3, 6)}, "inception_kernels holds 6"),
        ({"inception_kernels": ()}, "inception_kernels is empty"),
        ({"hidden_spatial": 5}, "hidden_spatial=5 must be a multiple of 2"),
        ({"hidden_temporal": 20}, "hidden_temporal=20 must be a multiple of 2 x model.groups = 8"),
        ({"hidden_spatial": 6, "groups": 8}, "= 5 x 6 must be a multiple of model.groups=8"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(change, says):
    with pytest.raises(ValueError, match=says):
        small_model(config=SMALL.model_copy(update=change), frames_in=5)


def test_a_horizon_of_no_frames_is_rejected():
    with pytest.raises(ValueError, match="frames_out=0 must be at least 1"):
        SimVP(SMALL, frames_in=4, frames_out=0)


def test_an_unknown_kind_is_rejected():
    with pytest.raises(ValueError, match=r"model\.kind='simvq' is unknown; known kinds are earthformer, simvp"):
        build_model(SMALL.model_copy(update={"kind": "simvq"}), frames_in=4, frames_out=4)
