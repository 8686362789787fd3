"""Modules on the kernels: equal to PyTorch layers, autocast, dropout, and errors for unsupported options."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simcast_kernels.modules import (
    AdaLayerNorm,
    CuboidCrossAttention,
    CuboidSelfAttention,
    LayerNormLinear,
    WeightedMSELoss,
    patch_earthformer,
)


def test_losses_and_norms_equal_pytorch(reference_device):
    torch.manual_seed(0)
    prediction, target = torch.rand(2, 5), torch.tensor([[0, 219, 220, 255, 3]] * 2, dtype=torch.uint8)
    weight = torch.where(target > 219, 10.0, 1.0)
    expected = (weight * (prediction - target / 255).square()).mean()
    torch.testing.assert_close(WeightedMSELoss([219], [1, 10])(prediction, target), expected)

    layer, x = LayerNormLinear(8, [3, 4]), torch.randn(2, 6, 8)
    for result, linear in zip(layer(x), layer.linears, strict=True):
        torch.testing.assert_close(result, linear(layer.norm(x)))
    single = LayerNormLinear(8, 3, bias=False)
    torch.testing.assert_close(single(x), single.linears[0](single.norm(x)))

    adaptive, condition, branch = AdaLayerNorm(8, 5), torch.randn(2, 5), torch.randn(2, 6, 8)
    modulated, carried = adaptive(x, condition, branch)
    torch.testing.assert_close((modulated, carried), (F.layer_norm(x, (8,), eps=1e-6), x))  # zero initialization
    nn.init.normal_(adaptive.projection.weight)
    shift, scale, gate = (part[:, None] for part in adaptive.projection(F.silu(condition)).chunk(3, -1))
    modulated, carried = adaptive(x, condition, branch)
    torch.testing.assert_close(carried, x + gate * branch)
    torch.testing.assert_close(modulated, F.layer_norm(carried, (8,), eps=1e-6) * (1 + scale) + shift)
    with pytest.raises(ValueError, match="residual=True and branch is None"):
        adaptive(x, condition)


def plain_attention(q, k, v, bias=0.0):
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
    return scores.softmax(-1) @ v


def test_self_attention_of_one_cuboid_is_plain_attention(reference_device):
    torch.manual_seed(1)
    layer = CuboidSelfAttention(8, 2, cuboid_size=(3, 2, 2), use_global_vector=True, use_global_self_attn=True)
    x, vectors = torch.randn(2, 3, 2, 2, 8), torch.randn(2, 4, 8)
    out, update = layer(x, vectors)

    def heads(tensor):
        return tensor.unflatten(-1, (2, 4)).transpose(1, 2)

    q, k, v = map(heads, layer.qkv(layer.norm(x)).flatten(1, 3).chunk(3, -1))
    gq, gk, gv = map(heads, layer.global_qkv(layer.global_vec_norm(vectors)).chunk(3, -1))
    bias = layer.relative_position_bias_table[layer.relative_position_index].permute(2, 0, 1)
    keys, values = torch.cat([k, gk], 2), torch.cat([v, gv], 2)
    expected = plain_attention(q, keys, values, F.pad(bias, (0, 4))).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, layer.proj(expected).unflatten(1, (3, 2, 2)))
    expected = plain_attention(gq, keys, values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(update, layer.global_proj(expected))


@pytest.mark.kernel
@pytest.mark.parametrize("autocast", [False, True])
def test_kernels_and_reference_agree(autocast, kernel_device, monkeypatch):
    torch.manual_seed(2)
    layers = [
        CuboidSelfAttention(16, 2, (2, 3, 4), (1, 0, 2), use_global_vector=True, separate_global_qkv=True),
        CuboidCrossAttention(16, 2, cuboid_hw=(3, 6), shift_hw=(1, 2), max_temporal_relative=9),
    ]
    x, vectors = torch.randn(1, 3, 5, 6, 16, device=kernel_device), torch.randn(1, 4, 16, device=kernel_device)
    for layer, inputs in zip(layers, ((x, vectors), (x, x[:, :2], vectors)), strict=True):
        layer.to(kernel_device)
        results = {}
        for implementation in ("triton", "reference"):
            monkeypatch.setenv("SIMCAST_KERNELS", implementation)
            with torch.autocast(kernel_device, torch.bfloat16, enabled=autocast):
                out = layer(*inputs)
            results[implementation] = out if isinstance(out, tuple) else (out,)
        tolerance = 3e-2 if autocast else 1e-5
        for got, expected in zip(results["triton"], results["reference"], strict=True):
            torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def test_attention_dropout_depends_on_the_generator_only(reference_device):
    layer = CuboidSelfAttention(8, 2, cuboid_size=(3, 2, 2), attn_drop=0.5)
    x = torch.randn(2, 3, 2, 2, 8)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(layer(x))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(layer.eval()(x), layer(x))


class CuboidCrossAttentionLayer(CuboidCrossAttention):
    """A layer with the name and the attributes of the public one."""


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CuboidCrossAttention(8, 2, n_temporal=2), "n_temporal=2 is not supported"),
        (lambda: CuboidSelfAttention(8, 3), "num_heads=3 must divide dim=8"),
        (lambda: CuboidSelfAttention(8, 0), "num_heads=0 must divide dim=8"),
        (lambda: CuboidSelfAttention(8, 2, cuboid_size=(0, 7, 7)), "cuboid_size=.* must be at least 1"),
        (lambda: CuboidSelfAttention(8, 2, cuboid_size=(7, 7)), "three values are needed, for T, H, W"),
        (lambda: patch_earthformer(nn.Linear(8, 8)), "Linear contains none of CuboidSelfAttentionLayer, Cuboid"),
        (lambda: patch_earthformer(nn.Sequential(type("CuboidSelfAttentionLayer", (nn.Linear,), {})(8, 8))), "no dim"),
        (lambda: CuboidSelfAttention(8, 2, norm_layer="rms_norm"), "norm_layer='rms_norm' is not supported"),
        (lambda: CuboidSelfAttention(8, 2, padding_type="reflect"), "padding_type='reflect' is invalid"),
        (lambda: CuboidSelfAttention(8, 2, global_dim_ratio=2), "requires separate_global_qkv=True"),
        (lambda: CuboidSelfAttention(8, 2, ffn_linear_init_mode="7"), "initialization modes 0, 7, 0"),
    ],
)
def test_rejects_unsupported_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_rejects_unsupported_padding(reference_device):
    x = torch.zeros(1, 2, 5, 6, 8)
    layer = CuboidCrossAttention(8, 2, cuboid_hw=(2, 2), padding_type="zeros", use_global_vector=False)
    with pytest.raises(ValueError, match="padding_type='zeros' is not supported with H, W"):
        layer(x, x)
    layer = CuboidSelfAttention(8, 2, cuboid_size=(2, 2, 2), padding_type="zeros", qkv_bias=True)
    with pytest.raises(ValueError, match="qkv_bias=True is not supported with padding"):
        layer(x)


def test_patch_replaces_layers_once_or_not_at_all(reference_device):
    public = CuboidCrossAttentionLayer(8, 2, cuboid_hw=(2, 2), use_global_vector=False, max_temporal_relative=9)
    model = nn.ModuleDict({"first": public, "other": nn.Linear(8, 8), "again": public})
    x, parameters = torch.randn(1, 2, 4, 4, 8), dict(model.named_parameters())
    expected = public(x, x)
    unsupported, calls = copy.deepcopy(model), []
    public.register_forward_hook(lambda layer, inputs, output: calls.append(layer))
    public.norm.eval()
    assert patch_earthformer(model) == 1
    assert type(model["first"]) is CuboidCrossAttention and model["first"] is model["again"]
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert not calls and torch.equal(model["first"](x, x), expected)
    assert calls == [model["first"]] and not model["first"].norm.training
    assert patch_earthformer(model) == 0
    unsupported["third"] = copy.deepcopy(public)
    unsupported["third"].norm = nn.GroupNorm(2, 8)
    with pytest.raises(ValueError, match="norm_layer GroupNorm is not supported"):
        patch_earthformer(unsupported)
    assert type(unsupported["first"]) is CuboidCrossAttentionLayer
