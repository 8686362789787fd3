"""cuboid_attention: reference and kernels equal the definition in float64, results and gradients, in all geometries."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases.cuboid_attention_cases import CASES, CuboidAttentionCase
from simcast_kernels.cuboid_attention import cuboid_attention, cuboid_cross_attention, reference
from simcast_kernels.cuboid_attention.geometry import Inputs, Options, make_problem
from simcast_kernels.cuboid_attention.reference import cuboid_attention_reference, resample
from simcast_kernels.dispatch import interpreter_is_on
from tests.tolerance import assert_all_close

# For L tokens of a cuboid: (cuboid, grid, shift) of self-attention, then of cross-attention, whose cuboids hold every
# frame. No grid is a multiple of its cuboid, so every case is padded.
GEOMETRY = {
    5: (((5, 1, 1), (7, 2, 1), (2, 0, 0)), ((9, 5, 1), (1, 7, 2), (0, 2, 0))),
    8: (((2, 2, 2), (3, 3, 2), (1, 1, 1)), ((9, 2, 2), (2, 3, 3), (0, 1, 1))),
    10: (((1, 5, 2), (1, 6, 3), (0, 2, 1)), ((9, 5, 1), (2, 6, 2), (0, 3, 0))),
    13: (((13, 1, 1), (15, 1, 2), (4, 0, 0)), ((9, 13, 1), (1, 15, 1), (0, 6, 0))),
    16: (((1, 4, 4), (1, 6, 5), (0, 2, 2)), ((9, 4, 4), (1, 6, 5), (0, 2, 1))),
    32: (((2, 4, 4), (3, 5, 4), (1, 2, 2)), ((9, 4, 4), (2, 5, 4), (0, 2, 2))),
    49: (((1, 7, 7), (1, 8, 9), (0, 3, 3)), ((9, 7, 7), (1, 8, 7), (0, 3, 0))),
    64: (((4, 4, 4), (5, 4, 6), (2, 0, 2)), ((9, 8, 4), (2, 9, 4), (0, 4, 0))),
    128: (((2, 8, 8), (3, 8, 9), (1, 0, 4)), ((9, 8, 8), (2, 9, 8), (0, 4, 0))),
}
VALUES = {
    "strategy": ("lll", "ddd", "ldl"),
    "shifted": (False, True),
    "padding": ("ignore", "zeros"),
    "tokens": tuple(GEOMETRY),
    "global_vectors": (0, 1, 8),
    "dtype": (torch.float32, torch.bfloat16),
    "cross": (False, True),
}
Choice = tuple
# A dilated axis has no shift, so a cuboid dilated along all three axes is not shifted.
IMPOSSIBLE_PAIRS = {((0, "ddd"), (1, True))}


def pairs_of(choice: Choice) -> set[tuple]:
    return set(itertools.combinations(enumerate(choice), 2))


def covering(product: Iterable[Choice]) -> list[Choice]:
    """Return a subset of the choices that covers every pair of values (pairwise testing)."""
    choices = list(product)
    missing = set().union(*map(pairs_of, choices))
    found = []
    while missing:
        best = max(choices, key=lambda choice: len(pairs_of(choice) & missing))
        found.append(best)
        missing -= pairs_of(best)
    return found


def case_of(choice: Choice) -> CuboidAttentionCase:
    values = dict(zip(VALUES, choice, strict=True))
    cuboid, grid, shift = GEOMETRY[values["tokens"]][values["cross"]]
    kind = "cross" if values["cross"] else "self"
    name = f"{kind}-{values['tokens']}-{values['strategy']}-{values['padding']}-g{values['global_vectors']}"
    return CuboidAttentionCase(
        name=f"{name}-{'shifted-' if values['shifted'] else ''}{str(values['dtype']).removeprefix('torch.')}",
        shape=(1, *grid, 16),
        heads=2,
        cuboid=cuboid,
        strategy=tuple(values["strategy"]),
        shift=shift if values["shifted"] else (0, 0, 0),
        padding=values["padding"],
        global_vectors=values["global_vectors"],
        shared_query=values["tokens"] % 2 == 1,
        memory_frames=grid[0] + 1 if values["cross"] else 0,
        dtype=values["dtype"],
    )


def shift_is_felt(choice: Choice) -> bool:
    """Return whether a choice called shifted has a shifted axis: neither dilated nor covered by one cuboid."""
    case = case_of(choice)
    main = {name: torch.empty(shape, device="meta") for name, shape in case.shapes.items()}
    return not choice[1] or any(make_problem(Inputs(**main), Options(**case.options)).query.shift)


PRODUCT = list(itertools.product(*VALUES.values()))
EVERY = [case_of(choice) for choice in PRODUCT]
CHOSEN = covering(filter(shift_is_felt, PRODUCT))
COVERING = [case_of(choice) for choice in CHOSEN]
BASE = CuboidAttentionCase(
    name="base", shape=(2, 3, 5, 6, 24), heads=2, cuboid=(2, 3, 4), shift=(1, 0, 2), global_vectors=3,
    dtype=torch.float32,
)  # fmt: skip
SMALL = dataclasses.replace(BASE, shape=(2, 3, 3, 5, 24))  # fewer programs for the interpreter
SPECIAL = [
    dataclasses.replace(SMALL, name="head-size-12-in-16"),
    dataclasses.replace(SMALL, name="no-bias", biased=False, shared_query=True),
    dataclasses.replace(SMALL, name="one-token", cuboid=(1, 1, 1), shift=(0, 0, 0), global_vectors=0),
    dataclasses.replace(SMALL, name="one-token-and-globals", cuboid=(1, 1, 1), shift=(0, 0, 0)),
    dataclasses.replace(BASE, name="larger-than-the-grid", cuboid=(9, 9, 4)),
    dataclasses.replace(BASE, name="dropout", shape=(1, 2, 3, 5, 48), heads=6, dropout=0.4, padding="zeros"),
    dataclasses.replace(SMALL, name="dropout-cross", dropout=0.1, cuboid=(9, 3, 4), memory_frames=2),
    dataclasses.replace(BASE, name="dropout-split", shape=(1, 2, 9, 5, 16), cuboid=(2, 9, 5), dropout=0.2),
    # Three cuboids of 5 tokens in a tile: no four adjacent columns of a tile belong to one call of Philox.
    dataclasses.replace(SMALL, name="dropout-packed", cuboid=(1, 1, 5), shift=(0, 0, 0), dropout=0.3),
    dataclasses.replace(
        SMALL, name="dropout-13-tokens", shape=(1, 13, 1, 3, 24), cuboid=(13, 1, 1), shift=(0, 0, 0), dropout=0.3
    ),
    dataclasses.replace(BASE, name="wide-heads", shape=(1, 3, 2, 4, 192), heads=4, cuboid=(3, 1, 2), shift=(0, 0, 1)),
]


def factor_of(case: CuboidAttentionCase, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(99)
    return torch.randn(case.shape, device=device, generator=generator).to(case.dtype)


def result_and_gradients(case: CuboidAttentionCase, tensors: dict[str, Tensor], *, reference: bool = False) -> dict:
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    result = case.attention(leaves, reference=reference)
    factor = factor_of(case, result.device).to(result.dtype)
    kept = factor.clone()
    grads = torch.autograd.grad(result, list(leaves.values()), factor)
    assert torch.equal(factor, kept), "the backward must not write into grad_output"
    return {"result": result.detach()} | {f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}


def by_name(case: CuboidAttentionCase) -> str:
    return case.name


def terms_of_sums(case: CuboidAttentionCase, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the magnitudes of the terms of gradients that are sums over cuboids: bias, global key and value.

    With weights p and the gradient g of the result, that of the bias is the sum of ``d = p (g v - sum p g v)``, that of
    a global key the sum of ``d q`` and that of a global value the sum of ``p g``.
    """
    inputs = Inputs(**{name: x.double() for name, x in tensors.items()})
    problem = make_problem(inputs, Options(**case.options))
    q, k, v = reference.projections(inputs, problem)
    weights, gq, keep = reference.softmax_weights(inputs, problem, q, k)
    kept = weights if keep is None else weights * keep
    factor = factor_of(case, q.device).double().abs()
    (grad,) = reference.to_cuboid_heads(factor, problem.query, parts=1, heads=case.heads)
    tokens, found = problem.memory.tokens, {}
    if inputs.global_value is not None:
        far = (kept[..., tokens:].mT @ grad).sum(1)
        found["gradient of global_value"] = far.transpose(1, 2).flatten(2)
        v = torch.cat([v, inputs.global_value.unflatten(-1, (case.heads, -1)).transpose(1, 2)[:, None].expand(
            -1, v.shape[1], -1, -1, -1)], dim=-2)  # fmt: skip
    products = kept * (grad @ v.abs().mT)
    scores = products + weights * products.sum(-1, keepdim=True)
    found["gradient of bias"] = scores[..., :tokens].sum((0, 1))
    if inputs.global_key is not None:
        far = (scores[..., tokens:].mT @ gq.abs()).sum(1) * problem.scale
        found["gradient of global_key"] = far.transpose(1, 2).flatten(2)
    return found


def assert_matches_definition(case: CuboidAttentionCase, device: str) -> None:
    tensors = case.tensors(device, seed=1)
    got = result_and_gradients(case, tensors)
    reference = result_and_gradients(case, tensors, reference=True)
    exact = result_and_gradients(case, {name: x.double() for name, x in tensors.items()}, reference=True)
    terms = {} if case.padding == "nearest" else terms_of_sums(case, tensors)
    for name, value in got.items():
        assert value.is_contiguous() or case.padding == "nearest", name
    assert_all_close(got, reference=reference, exact=exact, terms=terms, truncates_bf16=interpreter_is_on())


@pytest.mark.kernel
@pytest.mark.parametrize("case", COVERING, ids=by_name)
def test_kernel_matches_definition(case, kernel_device):
    assert_matches_definition(case, kernel_device)


@pytest.mark.kernel
@pytest.mark.parametrize("case", SPECIAL, ids=by_name)
def test_kernel_matches_definition_in_special_cases(case, kernel_device):
    assert_matches_definition(case, kernel_device)


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.parametrize("case", EVERY, ids=by_name)
def test_kernel_matches_definition_in_every_case(case, kernel_device):
    assert_matches_definition(case, kernel_device)


@pytest.mark.parametrize("case", COVERING + SPECIAL, ids=by_name)
def test_reference_matches_definition(case, reference_device):
    assert_matches_definition(case, reference_device)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [dataclasses.replace(c, shape=(2, *c.shape[1:])) for c in CASES], ids=by_name)
def test_kernel_matches_definition_at_real_shapes(case, cuda):
    assert_matches_definition(case, cuda)


def test_few_cases_cover_every_pair():
    assert len(COVERING) <= 36
    every = set().union(*map(pairs_of, PRODUCT))
    assert every - set().union(*map(pairs_of, CHOSEN)) == IMPOSSIBLE_PAIRS
    assert all(map(shift_is_felt, CHOSEN))


def keys_by_hand(case: CuboidAttentionCase, axis: int, place: int) -> list[tuple[int, int]]:
    """Return the keys of a query at ``place`` along one axis, as (place or -1 for padding, token number)."""
    size, tokens = case.shape[1 + axis], case.cuboid[axis]
    if tokens >= size:
        return [(x, x) for x in range(size)]
    blocks = math.ceil(size / tokens)
    length = blocks * tokens
    if case.strategy[axis] == "d":
        return [(x if x < size else -1, x // blocks) for x in range(place % blocks, length, blocks)]
    shift = case.shift[axis]
    rolled = (place - shift) % length
    seen = []
    for other in range(rolled // tokens * tokens, rolled // tokens * tokens + tokens):
        x = (other + shift) % length
        # In the last block, tokens that the roll moved from the start do not attend to those from the end.
        if (rolled >= length - shift) == (other >= length - shift):
            seen.append((x if x < size else -1, other % tokens))
    return seen


def token_by_hand(case: CuboidAttentionCase, axis: int, place: int) -> int:
    return next(token for x, token in keys_by_hand(case, axis, place) if x == place)


def attention_by_hand(case: CuboidAttentionCase, tensors: dict[str, Tensor], head: int, where: tuple) -> Tensor:
    """Return the attention of one query and head of the first sample, computed key by key."""
    size = case.shape[-1] // case.heads
    features = slice(head * size, (head + 1) * size)
    q, k, v = (part[0, ..., features] for part in tensors["query"].chunk(3, dim=-1))
    _, bh, bw = (min(b, n) for b, n in zip(case.cuboid, case.shape[1:4], strict=True))
    number = lambda t, h, w: (t * bh + h) * bw + w  # noqa: E731
    row = number(*(token_by_hand(case, axis, place) for axis, place in enumerate(where)))
    scores, values = [], []
    for (t, a), (h, b), (w, c) in itertools.product(*(keys_by_hand(case, i, x) for i, x in enumerate(where))):
        padded = -1 in (t, h, w)
        if padded and case.padding == "ignore":
            continue
        dot = torch.zeros(()).double() if padded else q[where] @ k[t, h, w]
        scores.append(dot / size**0.5 + tensors["bias"][head, row, number(a, b, c)])
        values.append(torch.zeros(size).double() if padded else v[t, h, w])
    for g in range(case.global_vectors):
        scores.append(tensors["global_query"][0][where][features] @ tensors["global_key"][0, g, features] / size**0.5)
        values.append(tensors["global_value"][0, g, features])
    return torch.stack(scores).softmax(0) @ torch.stack(values)


@pytest.mark.parametrize("padding", ["ignore", "zeros"])
@pytest.mark.parametrize("strategy", ["lll", "ldl", "ddd"])
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 2, 2), (1, 1, 3)])
def test_definition_by_hand(padding, strategy, shift):
    case = dataclasses.replace(BASE, padding=padding, strategy=tuple(strategy), shift=shift)
    tensors = {name: x.double() for name, x in case.tensors("cpu", seed=2).items()}
    got = case.attention(tensors, reference=True)[0].unflatten(-1, (case.heads, -1))
    for where in [(0, 0, 0), (2, 4, 5), (1, 2, 3), (0, 3, 4), (2, 0, 1)]:
        for head in range(case.heads):
            torch.testing.assert_close(got[where][head], attention_by_hand(case, tensors, head, where))


def test_nearest_padding_is_attention_on_the_resampled_grid(reference_device):
    case = dataclasses.replace(BASE, padding="nearest", shape=(2, 3, 4, 6, 24), cuboid=(2, 4, 4), shift=(1, 0, 1))
    assert_matches_definition(case, reference_device)
    tensors = case.tensors("cpu", seed=3)
    larger = dict(tensors)
    for name in ("query", "global_query"):
        folded = tensors[name].movedim(-1, 1)
        larger[name] = torch.nn.functional.interpolate(folded, size=(4, 4, 8)).movedim(1, -1)
    whole = dataclasses.replace(case, padding="ignore", shape=(2, 4, 4, 8, 24)).attention(larger)
    want = torch.nn.functional.interpolate(whole.movedim(-1, 1), size=(3, 4, 6)).movedim(1, -1)
    assert torch.equal(case.attention(tensors), want)


def test_resampling_equals_interpolate():
    for length, size in itertools.product((1, 2, 13, 22, 31), (1, 3, 14, 26, 40)):
        x = torch.arange(float(length)).view(1, 1, length)
        got = resample(x.view(1, 1, length, 1, 1), (1, size, 1)).flatten()
        assert torch.equal(got, torch.nn.functional.interpolate(x, size=size).flatten())


def test_dropout_rate_and_mean(reference_device):
    qkv = torch.zeros(1, 1, 64, 64, 3)
    qkv[..., 2] = 1  # every value is 1, so a result is the sum of the kept weights
    table: dict[str, Any] = {
        "heads": 1,
        "cuboid": (1, 64, 1),
        "strategy": ("l",) * 3,
        "shift": (0, 0, 0),
        "dropout": 0.25,
    }
    out = cuboid_attention(qkv, **table, seed=3)
    count = 64 * 64 * 64
    assert out.mean().item() == pytest.approx(1, abs=4 * (0.25 / 0.75 / count) ** 0.5)
    assert torch.equal(out, cuboid_attention(qkv, **table, seed=3))
    assert not torch.equal(out, cuboid_attention(qkv, **table, seed=3 + 2**40))
    assert torch.equal(cuboid_attention(qkv, **{**table, "dropout": 0.0}, seed=4), torch.ones_like(out))


def test_scale_replaces_the_default(reference_device):
    tensors = dataclasses.replace(BASE, biased=False, global_vectors=0).tensors("cpu", seed=4)
    options = {k: v for k, v in BASE.options.items() if k != "dropout"}
    doubled = tensors["query"].clone()
    doubled[..., :24] *= 2
    want = cuboid_attention_reference(doubled, **options)
    torch.testing.assert_close(cuboid_attention(tensors["query"], scale=2 * 12**-0.5, **options), want)


# A shard of the grid (offset, size); its cuboids are cuboids of the grid.
SHARDS = {
    "columns": (BASE, (1, 4, 1), (0, 0, 2), (3, 4, 4)),
    "rows": (BASE, (1, 1, 6), (0, 1, 0), (3, 3, 6)),
    "frames-packed": (dataclasses.replace(BASE, padding="zeros"), (1, 2, 2), (1, 2, 0), (2, 2, 6)),
    "split": (dataclasses.replace(BASE, global_vectors=1), (3, 3, 8), (0, 3, 0), (3, 3, 8)),
    "cross": (dataclasses.replace(BASE, memory_frames=2, shared_query=True), (9, 2, 2), (0, 2, 4), (3, 2, 2)),
}


def assert_shard_is_slice(name: str, device: str) -> None:
    case, cuboid, offset, size = SHARDS[name]
    case = dataclasses.replace(
        case, shape=(1, 3, 6 if name == "split" else 4, 8 if name == "split" else 6, 24), cuboid=cuboid,
        shift=(0, 0, 0), dropout=0.4,
    )  # fmt: skip
    part = tuple(slice(first, first + n) for first, n in zip(offset, size, strict=True))
    shard = {"query": part, "memory": (slice(None), *part[1:]), "global_query": part}
    leaves = {n: x.requires_grad_() for n, x in case.tensors(device, seed=6).items()}
    factor = torch.zeros(case.shape, device=device)
    factor[:, *part] = torch.randn(1, *size, 24, generator=torch.Generator().manual_seed(1)).to(device)
    whole = case.attention(leaves)
    grads = torch.autograd.grad(whole, list(leaves.values()), factor)
    local = {n: x.detach()[:, *shard[n]] if n in shard else x.detach() for n, x in leaves.items()}
    local = {n: x.requires_grad_() for n, x in local.items()}
    main = [local[n] for n in ("query", "memory") if n in local]
    rest = {n: x for n, x in local.items() if n not in ("query", "memory")}
    function = cuboid_cross_attention if case.memory_frames else cuboid_attention
    got = function(*main, **rest, **case.options, offset=offset, domain=case.shape[1:4])
    torch.testing.assert_close(got, whole[:, *part], rtol=1e-5, atol=1e-6)
    other = function(*main, **rest, **case.options)
    assert not torch.allclose(other, got, atol=1e-3), "without its place the shard has another dropout"
    found = torch.autograd.grad(got, list(local.values()), factor[:, *part])
    for n, value, want in zip(local, found, grads, strict=True):
        torch.testing.assert_close(value, want[:, *shard[n]] if n in shard else want, rtol=1e-5, atol=1e-5)


@pytest.mark.kernel
@pytest.mark.parametrize("name", SHARDS)
def test_dropout_of_a_shard_is_that_of_the_domain(name, kernel_device):
    assert_shard_is_slice(name, kernel_device)


@pytest.mark.parametrize("name", SHARDS)
def test_dropout_of_a_shard_is_that_of_the_domain_in_the_reference(name, reference_device):
    assert_shard_is_slice(name, reference_device)
