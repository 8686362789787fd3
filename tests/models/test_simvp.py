"""SimVP: horizons, precision, memory layout, rejected inputs."""

import pytest
import torch

from simcast_hpc.config import SimVPConfig
from simcast_hpc.models import build_model, simvp
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


def test_weights_do_not_depend_on_horizon():
    short, long = small_model(frames_out=1).state_dict(), small_model(frames_out=11).state_dict()
    assert short.keys() == long.keys()
    assert all(torch.equal(short[name], long[name]) for name in short)


def test_initialization_follows_seed():
    first, second, other = small_model(), small_model(), small_model(seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("frames_out", [1, 3])
def test_shorter_horizon_equals_start_of_full_one(frames_out):
    frames = some_frames()
    short, full = small_model(frames_out=frames_out)(frames), small_model()(frames)
    assert short.shape == (2, frames_out, 1, 12, 8)
    torch.testing.assert_close(short, full[:, :frames_out], rtol=0, atol=1e-6)


def test_shorter_horizon_decodes_only_its_frames():
    model, decoded = small_model(frames_out=3), []
    model.head.register_forward_hook(lambda module, inputs, output: decoded.append(inputs[0].shape[0]))
    model.decoder.register_forward_hook(lambda module, inputs, output: decoded.append(inputs[0].shape[0]))
    model(some_frames(batch=2))
    assert decoded == [6, 6]


@pytest.mark.parametrize("frames_out", [8, 11])
def test_longer_horizon_rolls_out(frames_out):
    frames, one_block = some_frames(), small_model()
    blocks = [one_block(frames)]
    while len(blocks) * 4 < frames_out:
        blocks.append(one_block(blocks[-1]))
    torch.testing.assert_close(
        small_model(frames_out=frames_out)(frames), torch.cat(blocks, dim=1)[:, :frames_out], rtol=0, atol=1e-6
    )


def test_longer_horizon_backpropagates_through_first_block():
    model, frames = small_model(frames_out=8), some_frames().requires_grad_()
    (gradient,) = torch.autograd.grad(model(frames)[:, 4:].sum(), frames)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("frames_out", [3, 4, 6])
def test_every_parameter_gets_a_gradient(frames_out):
    model = small_model(frames_out=frames_out)
    model(some_frames()).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert missing == []


def test_frames_mix_and_samples_do_not():
    model, frames = small_model(), some_frames()
    changed = frames.clone()
    changed[0, 0] += 1.0
    difference = (model(changed) - model(frames)).abs().amax(dim=(2, 3, 4))
    assert (difference[0] > 1e-6).all()
    assert (difference[1] == 0).all()


def test_each_second_spatial_block_halves_grid():
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


def test_bf16_model_computes_head_in_fp32():
    model, frames, head = small_model().bfloat16(), some_frames(), {}
    model.head.register_forward_hook(lambda module, inputs, output: head.update(input=inputs[0], output=output))
    out = model(frames)
    assert out.dtype == head["output"].dtype == torch.float32
    assert head["input"].dtype == torch.bfloat16
    assert model.head.bias is not None
    weight, bias = model.head.weight.float(), model.head.bias.float()
    expected = torch.einsum("ndhw,cd->nchw", head["input"].float(), weight[:, :, 0, 0]) + bias[:, None, None]
    torch.testing.assert_close(head["output"], expected, rtol=0, atol=1e-6)
    assert not torch.equal(out, out.bfloat16().float()), "output has more precision than bf16"
    torch.testing.assert_close(out, small_model()(frames), rtol=0, atol=0.05)


def test_bf16_model_has_bf16_gradients():
    model = small_model(frames_out=6).bfloat16()
    model(some_frames()).square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_head_ignores_autocast():
    model, frames = small_model(), some_frames()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(frames)
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())


def test_float64_model_returns_float64():
    frames = some_frames()
    exact = small_model().double()(frames.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(small_model()(frames).double(), exact, rtol=0, atol=1e-5)


def test_channels_last_changes_only_memory_layout():
    frames, results, layouts = some_frames(), [], []
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
        results.append((out, *torch.autograd.grad(out.square().mean(), [leaf, *model.parameters()])))
        assert set(layouts) == {channels_last}
        layouts.clear()
    for on, off in zip(*results, strict=True):
        torch.testing.assert_close(on, off, rtol=1e-4, atol=1e-6)


def test_layout_does_not_depend_on_weight_strides():
    model, frames = small_model(), some_frames()
    expected = model(frames)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    for p, piece in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True):
        p.data = piece.view_as(p)
    torch.testing.assert_close(model(frames), expected, rtol=0, atol=1e-6)


def test_accepts_non_contiguous_frames():
    frames = some_frames().transpose(0, 1).contiguous().transpose(0, 1)
    assert not frames.is_contiguous()
    torch.testing.assert_close(small_model()(frames), small_model()(some_frames()), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (torch.zeros(2, 4, 12, 8), ValueError, r"have 4 axes; SimVP requires \[B, 4, 1, H, W\]"),
        (torch.zeros(2, 5, 1, 12, 8), ValueError, "have 5 frames; SimVP requires frames_in=4"),
        (torch.zeros(2, 4, 3, 12, 8), ValueError, "have 3 channels; SimVP requires channels_in=1"),
        (torch.zeros(2, 4, 1, 13, 8), ValueError, "multiples of 2"),
        (torch.zeros(2, 4, 1, 12, 7), ValueError, "multiples of 2"),
        (torch.zeros(0, 4, 1, 12, 8), ValueError, "B at least 1"),
        (torch.zeros(2, 4, 1, 12, 8, dtype=torch.uint8), TypeError, "uint8; .* divide uint8 values by 255"),
    ],
)
def test_rejects_invalid_frames(frames, error, message):
    with pytest.raises(error, match=message):
        small_model()(frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_blocks": 3}, "spatial_blocks=3 must be even"),
        ({"spatial_kernel": 4}, "spatial_kernel contains 4"),
        ({"inception_kernels": (3, 6)}, "inception_kernels contains 6"),
        ({"inception_kernels": ()}, "inception_kernels is empty"),
        ({"hidden_spatial": 5}, "hidden_spatial=5 must be a multiple of 2"),
        ({"hidden_temporal": 20}, "hidden_temporal=20 must be a multiple of 2 x model.groups = 8"),
        ({"hidden_spatial": 6, "groups": 8}, "= 5 x 6 must be a multiple of model.groups=8"),
    ],
)
def test_rejects_invalid_sizes(change, message):
    with pytest.raises(ValueError, match=message):
        small_model(config=SMALL.model_copy(update=change), frames_in=5)


def test_rejects_empty_horizon_and_unknown_kind():
    with pytest.raises(ValueError, match="frames_out=0 must be at least 1"):
        SimVP(SMALL, frames_in=4, frames_out=0)
    with pytest.raises(ValueError, match=r"model\.kind='simvq' is unknown; choose earthformer or simvp"):
        build_model(SMALL.model_copy(update={"kind": "simvq"}), frames_in=4, frames_out=4)


class OnCuda(torch.Tensor):
    """A tensor of the CPU that takes the path of CUDA tensors."""

    device = torch.device("cuda")  # pyright: ignore[reportAssignmentType]


def test_channels_last_on_cuda():
    """Pixel shuffle and single channels: the same values, in memory that convolutions take to be channels-last."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 4, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    shuffled = simvp._pixel_shuffle(x.as_subclass(OnCuda), True)
    assert torch.equal(shuffled.as_subclass(torch.Tensor), torch.nn.functional.pixel_shuffle(x, 2))
    assert shuffled.is_contiguous(memory_format=torch.channels_last)
    frames = torch.randn(2, 1, 4, 5, generator=generator)
    ordered = simvp._with_layout(frames.as_subclass(OnCuda), True)
    assert torch.equal(ordered.as_subclass(torch.Tensor), frames)
    assert ordered.stride() == (20, 1, 5, 1) and ordered.data_ptr() == frames.data_ptr()
