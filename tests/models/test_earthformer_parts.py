"""Parts of Earthformer compared with their plain definitions: patterns, biases, global vectors, shifts."""

import pytest
import torch

from simcast_hpc.models.earthformer.attention import RelativeBias
from simcast_hpc.models.earthformer.global_vectors import GlobalAttention, GlobalUpdate, key_multiplicity
from simcast_hpc.models.earthformer.patterns import DILATED, Cuboid, cross_attention_pattern, self_attention_pattern
from simcast_hpc.models.earthformer.stems import PatchMerge, Upsample
from simcast_kernels.cuboid_attention.reference import cuboid_cross_attention_reference


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "cuboids"),
    [
        ("full", [Cuboid((5, 8, 6))]),
        ("axial", [Cuboid((5, 1, 1)), Cuboid((1, 8, 1)), Cuboid((1, 1, 6))]),
        ("divided_st", [Cuboid((5, 1, 1)), Cuboid((1, 8, 6))]),
        ("video_swin_2x4", [Cuboid((2, 4, 4)), Cuboid((2, 4, 4), shift=(1, 2, 2))]),
        ("video_swin_8x16", [Cuboid((5, 6, 6)), Cuboid((5, 6, 6), shift=(2, 3, 3))]),
        ("spatial_lg_4", [Cuboid((5, 1, 1)), Cuboid((1, 4, 4)), Cuboid((1, 4, 4), DILATED)]),
        ("spatial_lg_8", [Cuboid((5, 1, 1)), Cuboid((1, 8, 6))]),
        (
            "axial_space_dilate_2",
            [
                Cuboid((5, 1, 1)),
                Cuboid((1, 4, 1), DILATED),
                Cuboid((1, 4, 1)),
                Cuboid((1, 1, 3), DILATED),
                Cuboid((1, 1, 3)),
            ],
        ),
    ],
)
def test_self_attention_patterns(name, cuboids):
    assert list(self_attention_pattern(name, (5, 8, 6))) == cuboids


def test_cross_attention_patterns():
    tokens, local = (5, 8, 6), Cuboid((5, 4, 4))
    assert cross_attention_pattern("cross_1x1", tokens) == (Cuboid((5, 1, 1)),)
    assert cross_attention_pattern("cross_4x4_lg", tokens) == (local, Cuboid((5, 4, 4), DILATED))
    heterogeneous = (local, Cuboid((5, 4, 4), DILATED), Cuboid((5, 4, 4), shift=(0, 2, 2)))
    assert cross_attention_pattern("cross_4x4_heter", tokens) == heterogeneous
    assert cross_attention_pattern("cross_8x8", tokens) == (Cuboid((5, 6, 6)),)


def test_names_without_numbers_are_the_defaults_of_the_official_implementation():
    for name, numbered in (("video_swin", "video_swin_2x4"), ("spatial_lg_v1", "spatial_lg_4")):
        for tokens in ((5, 8, 6), (1, 3, 9)):
            assert self_attention_pattern(name, tokens) == self_attention_pattern(numbered, tokens)


@pytest.mark.parametrize("name", ["swin", "video_swin_0x4", "spatial_lg", "axial_space_dilate_x", "cross_1x1"])
def test_rejects_unknown_pattern(name):
    with pytest.raises(ValueError, match=f"unknown attention pattern '{name}'.*; choose full, axial, divided_st"):
        self_attention_pattern(name, (5, 8, 6))


@pytest.mark.parametrize(
    ("name", "find", "similar"),
    [
        ("axail", self_attention_pattern, "axial"),
        ("video_swim_2x8", self_attention_pattern, "video_swin_PxM"),
        ("spatial_lg", self_attention_pattern, "spatial_lg_M"),
        ("cros_1x1", cross_attention_pattern, "cross_KxK"),
        ("cross_2x2_hetero", cross_attention_pattern, "cross_KxK_heter"),
    ],
)
def test_suggests_most_similar_pattern(name, find, similar):
    with pytest.raises(ValueError, match=f"'{name}'; did you mean '{similar}'\\?; choose"):
        find(name, (5, 8, 6))


def test_suggests_nothing_for_dissimilar_name():
    with pytest.raises(ValueError, match="'zzzz'; choose"):
        self_attention_pattern("zzzz", (5, 8, 6))


@pytest.mark.parametrize(
    ("extents", "queries", "keys"),
    [((3, 2, 4), (3, 2, 4), (3, 2, 4)), ((5, 2, 2), (3, 2, 2), (3, 2, 2)), ((7, 3, 2), (3, 3, 2), (4, 3, 2))],
)
def test_relative_bias_equals_indexed_table(extents, queries, keys):
    torch.manual_seed(1)
    bias = RelativeBias(2, extents=extents, queries=queries, keys=keys)
    rows = bias.index()[: torch.Size(queries).numel(), : torch.Size(keys).numel()]
    got = bias()
    assert torch.equal(got, bias.table[rows].permute(2, 0, 1))
    weights = some(*got.shape)
    (gradient,) = torch.autograd.grad((got * weights).sum(), bias.table)
    expected = torch.zeros_like(bias.table).index_put_(
        (rows.flatten(),), weights.permute(1, 2, 0).flatten(0, 1), accumulate=True
    )
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("self_attention", [True, False])
def test_global_attention_is_one_softmax_over_repeated_keys(self_attention):
    heads, width, tokens = 2, 8, 6
    layer = GlobalAttention(
        width, heads=heads, self_attention=self_attention, attention_dropout=0.0, projection_dropout=0.0
    )
    vectors = [some(2, 3, width, seed=seed) for seed in range(4)]
    key, value = some(2, tokens, width, seed=7), some(2, tokens, width, seed=8)
    update = GlobalUpdate(
        query=vectors[0], key=key, value=value, self_query=vectors[1], self_key=vectors[2], self_value=vectors[3]
    )
    counts, zero_keys = torch.tensor([1, 0, 2, 1, 1, 3]), 4
    order = torch.tensor([0, 2, 2, 3, 4, 5, 5, 5])
    keys = torch.cat([key[:, order], torch.zeros(2, zero_keys, width)], dim=1)
    values = torch.cat([value[:, order], torch.zeros(2, zero_keys, width)], dim=1)

    def split(x):
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    scores = split(update.query) @ split(keys).mT
    if self_attention:
        scores = torch.cat([scores, split(update.self_query) @ split(update.self_key).mT], dim=-1)
        values = torch.cat([values, update.self_value], dim=1)
    weights = (scores * (width // heads) ** -0.5).softmax(-1)
    expected = layer.project((weights @ split(values)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(update, key_counts=counts, zero_keys=zero_keys), expected, rtol=1e-5, atol=1e-5)


def test_key_multiplicity_per_padding():
    cuboid, tokens = Cuboid((2, 2, 2), shift=(1, 1, 1)), (3, 4, 5)
    assert key_multiplicity(Cuboid((1, 2, 5)), tokens, padding="ignore") == (None, 0)
    assert key_multiplicity(cuboid, tokens, padding="zeros") == (None, 4 * 4 * 6 - 3 * 4 * 5)
    counts, zero_keys = key_multiplicity(cuboid, tokens, padding="nearest")
    assert counts is not None
    assert (int(counts.sum()), int(counts.min()), zero_keys) == (4 * 4 * 6, 1, 0)
    counts, zero_keys = key_multiplicity(cuboid, tokens, padding="ignore")
    assert counts is not None
    assert int(counts.sum()) + zero_keys == 3 * 4 * 5
    assert set(counts.tolist()) == {0, 1}
    assert zero_keys == int((counts == 0).sum()) > 0


@pytest.mark.parametrize(("size", "shift"), [(4, 2), (3, 1), (5, 2)])
def test_cross_attention_splits_shifted_axis(size, shift):
    cuboid = Cuboid((2, 1, size), shift=(0, 0, shift)).split_shifted_axes((1, 1, size))
    key_value = torch.cat([torch.zeros(size, size), torch.eye(size)], dim=1).view(1, 1, 1, size, 2 * size)
    weights = cuboid_cross_attention_reference(
        torch.zeros(1, 1, 1, size, size),
        key_value,
        heads=1,
        cuboid=cuboid.size,
        strategy=cuboid.strategy,
        shift=cuboid.shift,
        padding="ignore",
    )
    part = torch.arange(size) >= shift
    assert torch.equal(weights.view(size, size) > 0, part[:, None] == part[None, :])


def test_patch_merge_order_and_padding():
    merge = PatchMerge(1, 4, scale=2, padding="zeros")
    patches = []
    merge.norm.register_forward_hook(lambda module, inputs, output: patches.append(inputs[0]))
    x = torch.arange(1.0, 7.0).view(1, 2, 3, 1)
    assert merge(x).shape == (1, 1, 2, 4)
    assert patches[0].tolist() == [[[[1, 2, 4, 5], [3, 0, 6, 0]]]]
    resampled = PatchMerge(1, 4, scale=2, padding="nearest")
    resampled.norm.register_forward_hook(lambda module, inputs, output: patches.append(inputs[0]))
    resampled(x)
    assert patches[1].tolist() == [[[[1, 1, 4, 4], [2, 3, 5, 6]]]]
    columns = PatchMerge(1, 4, scale=(1, 2), padding="zeros")
    columns.norm.register_forward_hook(lambda module, inputs, output: patches.append(inputs[0]))
    assert columns(x).shape == (1, 2, 2, 4)
    assert patches[2].tolist() == [[[[1, 2], [3, 0]], [[4, 5], [6, 0]]]]


@pytest.mark.parametrize("scales", [(2, 2), (3, 3), (4, 2)])
def test_upsample_equals_convolution_of_repeated_tokens(scales):
    up = Upsample(2, 3, grid=(3 * scales[0], 4 * scales[1])).double()
    leaves = [some(2, 1, 3, 4, 2).double().requires_grad_(), *up.parameters()]
    repeated = leaves[0].flatten(0, 1).permute(0, 3, 1, 2)
    for axis, scale in enumerate(scales, start=2):
        repeated = repeated.repeat_interleave(scale, dim=axis)
    want = torch.nn.functional.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1)
    got = up(leaves[0])
    torch.testing.assert_close(got, want.permute(0, 2, 3, 1).unflatten(0, (2, 1)))
    grad = some(*got.shape, seed=1).double()
    gradients = torch.autograd.grad(want, leaves, grad.flatten(0, 1).permute(0, 3, 1, 2))
    for gradient, expected in zip(torch.autograd.grad(got, leaves, grad), gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_upsample_to_non_multiple_uses_nearest_token():
    up = Upsample(2, 3, grid=(4, 3))
    x = some(1, 2, 2, 2, 2)
    repeated = x.flatten(0, 1).permute(0, 3, 1, 2)[:, :, [0, 0, 1, 1]][:, :, :, [0, 0, 1]]
    want = torch.nn.functional.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1)
    torch.testing.assert_close(up(x), want.permute(0, 2, 3, 1).unflatten(0, (1, 2)))


def test_upsample_dtypes_under_autocast():
    up = Upsample(2, 3, grid=(4, 4))
    x = some(1, 2, 2, 2, 2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = up(x)
    result.float().square().sum().backward()
    assert result.dtype == torch.bfloat16
    assert {x.grad.dtype, up.conv.weight.grad.dtype, up.conv.bias.grad.dtype} == {torch.float32}
